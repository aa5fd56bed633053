"""What becomes of each published tensor: the model directory's tensors in file order, in slices.

Published names are Hugging Face's; shapes below are those of docs/format.md.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.calibration import Moments
from quant.errors import QuantError
from quant.format import jit_loops as fast
from quant.format.finite import require_finite, require_finite_blocks
from quant.format.fold import factor_of, shift_of
from quant.format.hf_names import (
    EMBEDDING,
    EXPERT_MATRICES,
    FINAL_NORM,
    UNEMBEDDING,
    experts_prefix,
    layer_prefix,
)
from quant.format.layout import ExpertRun, expert_run, round_up
from quant.format.manifest import Dtypes
from quant.format.numbers import F32, U8, Weights, decode_mxfp4, unpack_blocks
from quant.format.tiles import scales_to_tiles
from quant.format.weight_formats import MXFP4, ROUTER, TILE_ROWS, WEIGHT_FORMATS, Coded
from quant.pipeline import in_order
from quant.sources import Blocks, Source
from quant.sources.base import as_f32

SLICE_BYTES = 16 << 20  # of a source tensor, read at once
Part = tuple[str, NDArray[Any]]  # tensor of the model directory, its next entries
Encode = Callable[[Weights], Coded]
NO_MOMENTS = Moments(None)


def layer_parts(source: Source, layer: int, dtypes: Dtypes, moments: Moments = NO_MOMENTS) -> Iterator[Part]:
    """The tensors of one layer's file, in the order of layout.layer_specs."""
    weighed = f"layer-{layer:03d}."
    gain = _vector(source, f"{layer_prefix(layer)}input_layernorm.weight")
    shift = shift_of(gain)
    prefix = layer_prefix(layer)
    attention = prefix + "self_attn."
    for run in in_order(_expert_runs(source, layer, dtypes.experts, moments)):
        yield "experts", run
    yield from _matrices(
        source,
        {
            "qkv": (
                [f"{attention}{name}_proj.weight" for name in "qkv"],
                _tiler(dtypes.attention, moments.of(weighed + "qkv"), factor_of(shift)),
            ),
            "output": (
                [f"{attention}o_proj.weight"],
                _tiler(dtypes.attention, moments.of(weighed + "output")),
            ),
            "router": ([f"{prefix}mlp.router.weight"], _tiler(ROUTER, None)),
        },
    )
    yield "attention_norm", np.ldexp(gain, -shift.astype(np.int32))
    yield "attention_norm.shift", shift
    for name, names in {
        "qkv.bias": [f"{attention}{name}_proj.bias" for name in "qkv"],
        "sinks": [attention + "sinks"],
        "output.bias": [attention + "o_proj.bias"],
        "mlp_norm": [prefix + "post_attention_layernorm.weight"],
        "router.bias": [prefix + "mlp.router.bias"],
    }.items():
        for vector in names:
            yield name, _vector(source, vector)


def vocabulary_parts(source: Source, dtypes: Dtypes, moments: Moments = NO_MOMENTS) -> Iterator[Part]:
    """The tensors of the vocabulary file, in the order of layout.vocabulary_specs."""
    unembedding_scales: list[Part] = []
    embedding_scales: list[Part] = []
    gain = _vector(source, FINAL_NORM)
    shift = shift_of(gain)
    tiler = _tiler(dtypes.unembedding, moments.of("unembedding"), factor_of(shift))
    for part in _matrices(source, {"unembedding": ([UNEMBEDDING], tiler)}):
        if part[0].endswith(".scales"):
            unembedding_scales.append(part)
        else:
            yield part
    slices = _slices(source, EMBEDDING, pad=False)
    encode_rows = WEIGHT_FORMATS[dtypes.embedding].encode_rows
    assert encode_rows is not None  # manifest.CHOICES: formats that an embedding may have, have it
    for codes, scales in in_order(
        partial(_encoded, EMBEDDING, encode_rows, start, weights) for start, weights in slices
    ):
        yield "embedding.codes", codes
        if scales is not None:
            embedding_scales.append(("embedding.scales", scales))
    yield "final_norm", np.ldexp(gain, -shift.astype(np.int32))
    yield "final_norm.shift", shift
    yield from unembedding_scales
    yield from embedding_scales


def _matrices(source: Source, matrices: dict[str, tuple[list[str], Encode]]) -> Iterator[Part]:
    """Tiles of all `matrices` (name: source tensors, one below the other, and encoder), then their scales."""
    later: list[Part] = []
    work = (
        partial(_part, name, tensor, encode, start, weights)
        for name, (tensors, encode) in matrices.items()
        for tensor in tensors
        for start, weights in _slices(source, tensor)
    )
    for name, (codes, scales) in in_order(work):
        yield f"{name}.codes", codes
        if scales is not None:
            later.append((f"{name}.scales", scales))
    yield from later


def _part(name: str, tensor: str, encode: Encode, start: int, weights: Weights) -> tuple[str, Coded]:
    return name, _encoded(tensor, encode, start, weights)


def _encoded(tensor: str, encode: Encode, start: int, weights: Weights) -> Coded:
    """encode(weights) of `tensor`'s rows from `start` on. Raises: QuantError, for NaN and infinity too."""
    require_finite(tensor, weights, start)
    coded: Coded = _named(tensor, encode, weights)
    return coded


def _vector(source: Source, name: str) -> F32:
    vector = source.vector(name)
    require_finite(name, vector)
    return vector


def _tiler(dtype: str, moments: F32 | None, factor: F32 | None = None) -> Encode:
    """What makes tiles of `dtype`, of columns times `factor` (see fold.py); `moments` weigh these where it is
    calibrated.
    """
    form = WEIGHT_FORMATS[dtype]
    if factor is None:
        return lambda weights: form.tile(weights, moments)
    return lambda weights: form.tile(as_f32(weights) * factor, moments)


def _slices(source: Source, name: str, pad: bool = True) -> Iterator[tuple[int, Weights]]:
    """(first row, rows) of matrix `name` in slices of whole tiles; `pad` fills the last one with zeros."""
    rows, columns = source.shape(name)
    step = max(TILE_ROWS, SLICE_BYTES // (2 * columns) // TILE_ROWS * TILE_ROWS)
    for start in range(0, rows, step):
        weights = source.rows(name, start, min(start + step, rows))
        missing = round_up(len(weights), TILE_ROWS) - len(weights) if pad else 0
        yield start, np.pad(weights, ((0, missing), (0, 0))) if missing else weights


def _expert_runs(source: Source, layer: int, dtype: str, moments: Moments) -> Iterator[Callable[[], U8]]:
    """The work that gives each expert's run, its weights read already."""
    run = expert_run(source.config, dtype)
    for expert in range(source.config.experts):
        parts = [
            (
                name,
                source.expert(layer, name, expert),
                source.expert_bias(layer, name, expert),
                moments.of(f"layer-{layer:03d}.{name}", expert),
            )
            for name in EXPERT_MATRICES
        ]
        yield partial(_expert_run, run, f"{experts_prefix(layer)}%s, expert {expert}", parts, dtype)


def _expert_run(
    run: ExpertRun, where: str, parts: list[tuple[str, Blocks | Weights, F32, F32 | None]], dtype: str
) -> U8:
    """One expert's run, (run.size,) u8. Raises: QuantError for a scale or a weight that is NaN."""
    out = np.zeros(run.size, np.uint8)
    for name, matrix, bias, moments in parts:
        codes_at, scales_at, bias_at = _places(run)[name]
        require_finite(f"{where % name}, bias", bias)
        scales = _expert_tiles(where % name, matrix, dtype, moments, out[codes_at:])
        for at, array in ((scales_at, scales), (bias_at, bias)):
            if array is not None:
                out[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
    return out


def _places(run: ExpertRun) -> dict[str, tuple[int, int, int]]:
    """Where codes, scales and bias of an expert's matrices lie in its run."""
    return {
        "gate_up_proj": (run.gate_up_codes, run.gate_up_scales, run.gate_up_bias),
        "down_proj": (run.down_codes, run.down_scales, run.down_bias),
    }


def _expert_tiles(
    name: str, matrix: Blocks | Weights, dtype: str, moments: F32 | None, out: U8
) -> NDArray[Any] | None:
    """Write the tiles of an expert's matrix to the start of `out`; gives their scales, in tiles too.

    MXFP4 is permuted, floats are rounded or kept.
    """
    if isinstance(matrix, Blocks) and dtype == MXFP4.name:
        require_finite_blocks(name, matrix.blocks, matrix.scales)
        rows, blocks, _ = matrix.blocks.shape
        fast.tile_mxfp4(matrix.blocks, out[: matrix.blocks.nbytes].reshape(rows // TILE_ROWS, blocks, -1))
        return scales_to_tiles(matrix.scales)
    weights = _decoded(name, matrix) if isinstance(matrix, Blocks) else matrix
    require_finite(name, weights)
    codes, scales = _named(name, _tiler(dtype, moments), weights)
    out[: codes.nbytes] = codes.reshape(-1)
    return scales


def _decoded(name: str, matrix: Blocks) -> Weights:
    require_finite_blocks(name, matrix.blocks, matrix.scales)
    return decode_mxfp4(unpack_blocks(matrix.blocks), matrix.scales)


def _named(name: str, encode: Any, weights: Weights) -> Any:
    """encode(weights), with tensor `name` in front of what is wrong with it."""
    try:
        return encode(weights)
    except QuantError as error:
        raise QuantError(f"{name}: {error}") from None
