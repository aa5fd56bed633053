"""What becomes of each published tensor: the model directory's tensors in file order, in slices.

Published names are Hugging Face's; shapes below are those of docs/format.md.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant import fast
from quant.checkpoint import Checkpoint
from quant.config import ModelConfig
from quant.errors import QuantError
from quant.formats import E8M0_NAN, U8, U16, bf16_to_f32
from quant.layout import TILE_COLUMNS, TILE_ROWS, ExpertRun, expert_run, round_up
from quant.manifest import Dtypes
from quant.tiles import scales_to_tiles

SLICE_BYTES = 16 << 20  # of a source tensor, read at once
Part = tuple[str, NDArray[Any]]  # tensor of the model directory, its next entries

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
UNEMBEDDING = "lm_head.weight"


def source_shapes(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of every tensor that a published checkpoint of `config` has."""
    d, i, e = config.hidden, config.intermediate, config.experts
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        EMBEDDING: ("BF16", (config.vocab, d)),
        FINAL_NORM: ("BF16", (d,)),
        UNEMBEDDING: ("BF16", (config.vocab, d)),
    }
    for layer in range(config.layers):
        names = {
            "input_layernorm.weight": ("BF16", (d,)),
            "post_attention_layernorm.weight": ("BF16", (d,)),
            "self_attn.sinks": ("BF16", (config.heads,)),
            "self_attn.o_proj.weight": ("BF16", (d, config.q_rows)),
            "self_attn.o_proj.bias": ("BF16", (d,)),
            "mlp.router.weight": ("BF16", (e, d)),
            "mlp.router.bias": ("BF16", (e,)),
            "mlp.experts.gate_up_proj_blocks": ("U8", (e, 2 * i, d // TILE_COLUMNS, 16)),
            "mlp.experts.gate_up_proj_scales": ("U8", (e, 2 * i, d // TILE_COLUMNS)),
            "mlp.experts.gate_up_proj_bias": ("BF16", (e, 2 * i)),
            "mlp.experts.down_proj_blocks": ("U8", (e, d, i // TILE_COLUMNS, 16)),
            "mlp.experts.down_proj_scales": ("U8", (e, d, i // TILE_COLUMNS)),
            "mlp.experts.down_proj_bias": ("BF16", (e, d)),
        }
        for name, rows in (("q", config.q_rows), ("k", config.kv_rows), ("v", config.kv_rows)):
            names[f"self_attn.{name}_proj.weight"] = ("BF16", (rows, d))
            names[f"self_attn.{name}_proj.bias"] = ("BF16", (rows,))
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in names.items()}
    return shapes


def layer_parts(checkpoint: Checkpoint, config: ModelConfig, layer: int, dtypes: Dtypes) -> Iterator[Part]:
    """The tensors of one layer's file, in the order of layout.layer_specs."""
    source = f"model.layers.{layer}."
    attention = source + "self_attn."
    run = expert_run(config, dtypes.experts)
    for expert in range(config.experts):
        yield "experts", _expert(checkpoint, config, source + "mlp.experts.", expert, run)
    yield from _matrices(
        checkpoint,
        {
            "qkv": ([f"{attention}{name}_proj.weight" for name in "qkv"], dtypes.attention),
            "output": ([f"{attention}o_proj.weight"], dtypes.attention),
            "router": ([f"{source}mlp.router.weight"], "bf16"),
        },
    )
    for name, names in {
        "attention_norm": [source + "input_layernorm.weight"],
        "qkv.bias": [f"{attention}{name}_proj.bias" for name in "qkv"],
        "sinks": [attention + "sinks"],
        "output.bias": [attention + "o_proj.bias"],
        "mlp_norm": [source + "post_attention_layernorm.weight"],
        "router.bias": [source + "mlp.router.bias"],
    }.items():
        for vector in names:
            yield name, _vector(checkpoint, vector)


def vocabulary_parts(checkpoint: Checkpoint, dtypes: Dtypes) -> Iterator[Part]:
    """The tensors of the vocabulary file, in the order of layout.vocabulary_specs."""
    unembedding_scales: list[Part] = []
    embedding_scales: list[Part] = []
    for part in _matrices(checkpoint, {"unembedding": ([UNEMBEDDING], dtypes.unembedding)}):
        if part[0].endswith(".scales"):
            unembedding_scales.append(part)
        else:
            yield part
    for bits in _slices(checkpoint, EMBEDDING, pad=False):
        if dtypes.embedding == "bf16":
            yield "embedding.codes", bits
        else:
            codes, scales = _named(EMBEDDING, fast.encode_int8_rows, bits)
            yield "embedding.codes", codes
            embedding_scales.append(("embedding.scales", scales))
    yield "final_norm", _vector(checkpoint, FINAL_NORM)
    yield from unembedding_scales
    yield from embedding_scales


def _matrices(checkpoint: Checkpoint, matrices: dict[str, tuple[list[str], str]]) -> Iterator[Part]:
    """Tiles of all `matrices` (name: source tensors, one below the other, and dtype), then their scales."""
    later: list[Part] = []
    for name, (sources, dtype) in matrices.items():
        for source in sources:
            for bits in _slices(checkpoint, source):
                if dtype == "bf16":
                    yield f"{name}.codes", fast.tile_bf16(bits)
                else:
                    codes, scales = _named(
                        source, fast.tile_int4 if dtype == "int4" else fast.tile_int8, bits
                    )
                    yield f"{name}.codes", codes
                    later.append((f"{name}.scales", scales))
    yield from later


def _slices(checkpoint: Checkpoint, name: str, pad: bool = True) -> Iterator[U16]:
    """bfloat16 rows of matrix `name` in slices of whole tiles; `pad` fills the last one with zeros."""
    rows, columns = checkpoint.tensors[name][1].shape
    step = max(TILE_ROWS, SLICE_BYTES // (2 * columns) // TILE_ROWS * TILE_ROWS)
    for start in range(0, rows, step):
        bits = checkpoint.read_rows(name, start, min(start + step, rows))
        missing = round_up(len(bits), TILE_ROWS) - len(bits) if pad else 0
        yield np.pad(bits, ((0, missing), (0, 0))) if missing else bits


def _vector(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    return bf16_to_f32(checkpoint.read_rows(name, 0, checkpoint.tensors[name][1].shape[0]))


def _expert(checkpoint: Checkpoint, config: ModelConfig, source: str, expert: int, run: ExpertRun) -> U8:
    """One expert's run, (run.size,) u8. Raises: QuantError for a scale that is NaN."""
    d, i = config.hidden, config.intermediate
    out = np.zeros(run.size, np.uint8)

    def put(name: str, rows: int, columns: int, codes_at: int, scales_at: int, bias_at: int) -> None:
        def read(kind: str) -> NDArray[Any]:
            return checkpoint.read_rows(f"{source}{name}_{kind}", expert, expert + 1)[0]

        groups, blocks = rows // TILE_ROWS, columns // TILE_COLUMNS
        codes = out[codes_at : codes_at + rows * columns // 2].reshape(groups, blocks, 128)
        fast.tile_mxfp4(read("blocks"), codes)
        scales = read("scales")
        if (scales == E8M0_NAN).any():
            raise QuantError(
                f"{source}{name}_scales: expert {expert} has a scale of 255, NaN; download it again"
            )
        out[scales_at : scales_at + scales.size] = scales_to_tiles(scales).reshape(-1)
        out[bias_at : bias_at + 4 * rows] = bf16_to_f32(read("bias")).view(np.uint8)

    put("gate_up_proj", 2 * i, d, run.gate_up_codes, run.gate_up_scales, run.gate_up_bias)
    put("down_proj", d, i, run.down_codes, run.down_scales, run.down_bias)
    return out


def _named(name: str, encode: Any, bits: U16) -> Any:
    """encode(bits), with tensor `name` in front of what is wrong with it."""
    try:
        return encode(bits)
    except QuantError as error:
        raise QuantError(f"{name}: {error}") from None
