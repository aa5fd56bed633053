"""Where each weight lies in a localoss model directory. docs/format.md says the same in prose.

    config.json            as published
    localoss.json          format version, source, dtypes, sha256 of each file
    layer-000.safetensors  one per layer
    vocabulary.safetensors embedding, final norm, unembedding

All sizes and offsets follow from the config and the dtypes.
"""

from dataclasses import dataclass

from quant.errors import QuantError
from quant.format.config import ModelConfig
from quant.format.weight_formats import ROUTER, TILE_COLUMNS, TILE_ROWS, WEIGHT_FORMATS

FORMAT_VERSION = 1
PAGE = 4096  # tensor data and every expert's run start on a page

MANIFEST = "localoss.json"
JOURNAL = f"{MANIFEST}.part"  # the manifest of an interrupted conversion: the files that are complete
CONFIG_FILES = ("config.json", "generation_config.json")
VOCABULARY_FILE = "vocabulary.safetensors"
CALIBRATION_FILE = "calibration.safetensors"


def layer_file(layer: int) -> str:
    return f"layer-{layer:03d}.safetensors"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the model directory: safetensors dtype name and shape.

    is_newer: models of earlier versions lack it, and mean zeros.
    """

    dtype: str
    shape: tuple[int, ...]
    is_newer: bool = False


@dataclass(frozen=True)
class ExpertRun:
    """Byte offsets inside one expert's run: one aligned read brings the whole expert.

    gate_up codes and scales are tiles of (2I, D), rows gate, up, gate, up, … as published;
    down's of (D, I); the biases are float32.
    """

    gate_up_codes: int
    gate_up_scales: int
    down_codes: int
    down_scales: int
    gate_up_bias: int
    down_bias: int
    size: int  # padded to a page


def expert_run(config: ModelConfig, dtype: str) -> ExpertRun:
    gate_up = 2 * config.intermediate * config.hidden
    down = config.hidden * config.intermediate
    sizes = [
        tile_bytes(gate_up, dtype),
        scale_bytes(gate_up, dtype),
        tile_bytes(down, dtype),
        scale_bytes(down, dtype),
        8 * config.intermediate,
        4 * config.hidden,
    ]
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + round_up(size, 64))
    offsets[6] = round_up(offsets[6], PAGE)
    return ExpertRun(*offsets)


def tile_bytes(weights: int, dtype: str) -> int:
    return weights // (TILE_ROWS * TILE_COLUMNS) * WEIGHT_FORMATS[dtype].tile_bytes


def scale_bytes(weights: int, dtype: str) -> int:
    return weights // TILE_COLUMNS * WEIGHT_FORMATS[dtype].scale_bytes


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def matrix_specs(name: str, rows: int, columns: int, dtype: str) -> dict[str, TensorSpec]:
    """Tiles of a (rows, columns) matrix: `name`.codes and, where the dtype has them, `name`.scales.

    Rows are padded with zeros to a multiple of 8. Raises: QuantError if columns don't fill blocks of 32.
    """
    if columns % TILE_COLUMNS:
        raise QuantError(f"{name} has {columns} columns; {dtype} needs a multiple of {TILE_COLUMNS}")
    groups, blocks = round_up(rows, TILE_ROWS) // TILE_ROWS, columns // TILE_COLUMNS
    form = WEIGHT_FORMATS[dtype]
    specs = {f"{name}.codes": TensorSpec("U8", (groups, blocks, form.tile_bytes))}
    if form.scale_dtype:
        specs[f"{name}.scales"] = TensorSpec(form.scale_dtype, (groups, blocks, TILE_ROWS))
    return specs


def layer_specs(config: ModelConfig, attention: str, experts: str) -> dict[str, TensorSpec]:
    """The tensors of one layer's file, in file order: the most aligned first, so that nothing needs gaps."""
    d = config.hidden
    specs = {"experts": TensorSpec("U8", (config.experts, expert_run(config, experts).size))}
    matrices = (
        matrix_specs("qkv", config.qkv_rows, d, attention)
        | matrix_specs("output", d, config.q_rows, attention)
        | matrix_specs("router", config.experts, d, ROUTER)
    )
    specs |= dict(sorted(matrices.items(), key=lambda item: item[0].endswith(".scales")))
    specs |= {
        "attention_norm": TensorSpec("F32", (d,)),
        "attention_norm.shift": TensorSpec("I8", (d,), is_newer=True),
        "qkv.bias": TensorSpec("F32", (config.qkv_rows,)),
        "sinks": TensorSpec("F32", (config.heads,)),
        "output.bias": TensorSpec("F32", (d,)),
        "mlp_norm": TensorSpec("F32", (d,)),
        "router.bias": TensorSpec("F32", (config.experts,)),
    }
    return specs


def vocabulary_specs(config: ModelConfig, embedding: str, unembedding: str) -> dict[str, TensorSpec]:
    """The tensors of the vocabulary file, in file order.

    The embedding lies row by row, not in tiles: a token reads one row of it. int8 rows have a float16
    scale per 32 columns.
    """
    v, d, form = config.vocab, config.hidden, WEIGHT_FORMATS[embedding]
    unembedding_specs = matrix_specs("unembedding", v, d, unembedding)
    specs = {"unembedding.codes": unembedding_specs.pop("unembedding.codes")}
    specs["embedding.codes"] = TensorSpec("I8" if form.has_scales else "BF16", (v, d))
    specs["final_norm"] = TensorSpec("F32", (d,))  # before the float16 scales, which could leave it unaligned
    specs["final_norm.shift"] = TensorSpec("I8", (d,), is_newer=True)
    specs |= unembedding_specs
    if form.scale_dtype:
        specs["embedding.scales"] = TensorSpec(form.scale_dtype, (v, d // TILE_COLUMNS))
    return specs
