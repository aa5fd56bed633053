"""What becomes of each published tensor: the model directory's tensors in file order, in slices.

Published names are Hugging Face's; shapes below are those of docs/format.md.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant import fast
from quant.errors import QuantError
from quant.formats import E8M0_NAN, F32, U8, Weights, decode_mxfp4, f32_to_bf16, unpack_blocks
from quant.layout import TILE_COLUMNS, TILE_ROWS, ExpertRun, expert_run, round_up
from quant.manifest import Dtypes
from quant.pipeline import in_order
from quant.published import (
    EMBEDDING,
    EXPERT_MATRICES,
    FINAL_NORM,
    UNEMBEDDING,
    experts_prefix,
    layer_prefix,
)
from quant.sources import Blocks, Source
from quant.tiles import scales_to_tiles

SLICE_BYTES = 16 << 20  # of a source tensor, read at once
Part = tuple[str, NDArray[Any]]  # tensor of the model directory, its next entries
Coded = tuple[NDArray[Any], NDArray[Any] | None]  # codes, and scales where the format has them


def layer_parts(source: Source, layer: int, dtypes: Dtypes) -> Iterator[Part]:
    """The tensors of one layer's file, in the order of layout.layer_specs."""
    prefix = layer_prefix(layer)
    attention = prefix + "self_attn."
    for run in in_order(_expert_runs(source, layer, dtypes.experts)):
        yield "experts", run
    yield from _matrices(
        source,
        {
            "qkv": ([f"{attention}{name}_proj.weight" for name in "qkv"], dtypes.attention),
            "output": ([f"{attention}o_proj.weight"], dtypes.attention),
            "router": ([f"{prefix}mlp.router.weight"], "bf16"),
        },
    )
    for name, names in {
        "attention_norm": [prefix + "input_layernorm.weight"],
        "qkv.bias": [f"{attention}{name}_proj.bias" for name in "qkv"],
        "sinks": [attention + "sinks"],
        "output.bias": [attention + "o_proj.bias"],
        "mlp_norm": [prefix + "post_attention_layernorm.weight"],
        "router.bias": [prefix + "mlp.router.bias"],
    }.items():
        for vector in names:
            yield name, source.vector(vector)


def vocabulary_parts(source: Source, dtypes: Dtypes) -> Iterator[Part]:
    """The tensors of the vocabulary file, in the order of layout.vocabulary_specs."""
    unembedding_scales: list[Part] = []
    embedding_scales: list[Part] = []
    for part in _matrices(source, {"unembedding": ([UNEMBEDDING], dtypes.unembedding)}):
        if part[0].endswith(".scales"):
            unembedding_scales.append(part)
        else:
            yield part
    slices = _slices(source, EMBEDDING, pad=False)
    for codes, scales in in_order(
        partial(_named, EMBEDDING, _ROWS[dtypes.embedding], weights) for weights in slices
    ):
        yield "embedding.codes", codes
        if scales is not None:
            embedding_scales.append(("embedding.scales", scales))
    yield "final_norm", source.vector(FINAL_NORM)
    yield from unembedding_scales
    yield from embedding_scales


def _matrices(source: Source, matrices: dict[str, tuple[list[str], str]]) -> Iterator[Part]:
    """Tiles of all `matrices` (name: source tensors, one below the other, and dtype), then their scales."""
    later: list[Part] = []
    work = (
        partial(_part, name, tensor, _TILES[dtype], weights)
        for name, (tensors, dtype) in matrices.items()
        for tensor in tensors
        for weights in _slices(source, tensor)
    )
    for name, (codes, scales) in in_order(work):
        yield f"{name}.codes", codes
        if scales is not None:
            later.append((f"{name}.scales", scales))
    yield from later


def _part(name: str, tensor: str, encode: Callable[[Weights], Coded], weights: Weights) -> tuple[str, Coded]:
    return name, _named(tensor, encode, weights)


def _bits(weights: Weights) -> Coded:
    return weights if weights.dtype == np.uint16 else f32_to_bf16(weights), None


def _bf16_tiles(weights: Weights) -> Coded:
    return fast.tile_bf16(weights), None


_ROWS: dict[str, Callable[[Weights], Coded]] = {"int8": fast.encode_int8_rows, "bf16": _bits}
_TILES: dict[str, Callable[[Weights], Coded]] = {
    "int8": fast.tile_int8,
    "int4": fast.tile_int4,
    "bf16": _bf16_tiles,
}


def _slices(source: Source, name: str, pad: bool = True) -> Iterator[Weights]:
    """Rows of matrix `name` in slices of whole tiles; `pad` fills the last one with zeros."""
    rows, columns = source.shape(name)
    step = max(TILE_ROWS, SLICE_BYTES // (2 * columns) // TILE_ROWS * TILE_ROWS)
    for start in range(0, rows, step):
        weights = source.rows(name, start, min(start + step, rows))
        missing = round_up(len(weights), TILE_ROWS) - len(weights) if pad else 0
        yield np.pad(weights, ((0, missing), (0, 0))) if missing else weights


def _expert_runs(source: Source, layer: int, dtype: str) -> Iterator[Callable[[], U8]]:
    """The work that gives each expert's run, its weights read already."""
    run = expert_run(source.config, dtype)
    for expert in range(source.config.experts):
        parts = [
            (name, source.expert(layer, name, expert), source.expert_bias(layer, name, expert))
            for name in EXPERT_MATRICES
        ]
        yield partial(_expert_run, run, f"{experts_prefix(layer)}%s, expert {expert}", parts, dtype)


def _expert_run(run: ExpertRun, where: str, parts: list[tuple[str, Blocks | Weights, F32]], dtype: str) -> U8:
    """One expert's run, (run.size,) u8. Raises: QuantError for a scale or a weight that is NaN."""
    out = np.zeros(run.size, np.uint8)
    for name, matrix, bias in parts:
        codes, scales = _expert_tiles(where % name, matrix, dtype)
        for at, array in zip(_places(run)[name], (codes, scales, bias), strict=True):
            if array is not None:
                out[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
    return out


def _places(run: ExpertRun) -> dict[str, tuple[int, int, int]]:
    """Where codes, scales and bias of an expert's matrices lie in its run."""
    return {
        "gate_up_proj": (run.gate_up_codes, run.gate_up_scales, run.gate_up_bias),
        "down_proj": (run.down_codes, run.down_scales, run.down_bias),
    }


def _expert_tiles(name: str, matrix: Blocks | Weights, dtype: str) -> Coded:
    """Tiles and tiled scales of an expert's matrix: MXFP4 is permuted, floats are rounded or kept."""
    if dtype != "mxfp4":
        weights = _decoded(name, matrix) if isinstance(matrix, Blocks) else matrix
        return _named(name, _TILES[dtype], weights)
    if not isinstance(matrix, Blocks):
        matrix = Blocks(*_named(name, fast.encode_mxfp4_blocks, matrix))
    _check_scales(name, matrix)
    rows, blocks, _ = matrix.blocks.shape
    tiles = np.empty((rows // TILE_ROWS, blocks, TILE_COLUMNS * TILE_ROWS // 2), np.uint8)
    fast.tile_mxfp4(matrix.blocks, tiles)
    return tiles, scales_to_tiles(matrix.scales)


def _decoded(name: str, matrix: Blocks) -> Weights:
    _check_scales(name, matrix)
    return decode_mxfp4(unpack_blocks(matrix.blocks), matrix.scales)


def _check_scales(name: str, matrix: Blocks) -> None:
    if (matrix.scales == E8M0_NAN).any():
        raise QuantError(f"{name}: a scale is 255, NaN; the file is damaged, download it again")


def _named(name: str, encode: Any, weights: Weights) -> Any:
    """encode(weights), with tensor `name` in front of what is wrong with it."""
    try:
        return encode(weights)
    except QuantError as error:
        raise QuantError(f"{name}: {error}") from None
