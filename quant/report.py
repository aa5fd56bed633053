"""What a conversion did to the weights: a model directory held against its checkpoint, class by class."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.format.config import ModelConfig
from quant.format.fold import factor_of
from quant.format.hf_names import EMBEDDING, UNEMBEDDING, experts_prefix, layer_prefix
from quant.format.layout import (
    VOCABULARY_FILE,
    expert_run,
    layer_file,
    scale_bytes,
    tile_bytes,
)
from quant.format.manifest import Manifest
from quant.format.numbers import F32, decode_mxfp4, unpack_blocks
from quant.format.safetensors import TensorFiles, read_header
from quant.format.tiles import from_tiles, scales_from_tiles
from quant.format.weight_formats import ROUTER, TILE_COLUMNS, TILE_ROWS, WEIGHT_FORMATS
from quant.sources import Blocks, Source, open_source
from quant.sources.base import as_f32

SLICE_ROWS = 2048  # decoded at once, a multiple of a tile's
BINS = 12
# Class -> the model directory's tensors: matrices, whose names get .codes and .scales, or single ones.
CLASSES = {
    "experts": ("experts",),
    "attention": ("qkv.codes", "qkv.scales", "output.codes", "output.scales"),
    "embedding": ("embedding.codes", "embedding.scales"),
    "unembedding": ("unembedding.codes", "unembedding.scales"),
    "router": ("router.codes",),
}
REST = "norms, biases, sinks"


@dataclass(frozen=True)
class ClassReport:
    """One class of tensors. Errors are root mean squares, relative to that of the published weights.

    The experts' bytes include their biases and the padding of their runs.
    """

    name: str
    dtype: str
    weights: int
    bytes: int
    relative_error: float
    worst_tensor: str
    worst_error: float

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.weights


@dataclass(frozen=True)
class Report:
    """`row_errors`: how many rows have a relative error between edges[i] and edges[i + 1]; exact rows not."""

    classes: list[ClassReport]
    edges: list[float]
    row_errors: list[int]


def report(source: Path, out: Path, manifest: Manifest) -> Report:
    """Read the weights of model directory `out` and those it was made from. Raises: QuantError.

    Experts that were published in MXFP4 are permuted only: they are not read, their error is 0.
    """
    with open_source(source) as checkpoint:
        return report_of(checkpoint, out, manifest)


def report_of(checkpoint: Source, out: Path, manifest: Manifest) -> Report:
    """`report` for a checkpoint that is open already. Raises: QuantError."""
    with _Model(out, checkpoint.config) as model:
        dtypes = {
            "experts": manifest.dtypes.experts,
            "attention": manifest.dtypes.attention,
            "embedding": manifest.dtypes.embedding,
            "unembedding": manifest.dtypes.unembedding,
            "router": ROUTER,
        }
        rows: list[F32] = []
        classes = []
        for name, dtype in dtypes.items():
            sums: dict[str, Any] = {}  # tensor -> (squared errors, squared weights)
            for tensor, published, decoded in _pairs(checkpoint, model, name, dtype):
                errors = np.square(decoded - published).sum(axis=1, dtype=np.float64)
                squares = np.square(published).sum(axis=1, dtype=np.float64)
                sums[tensor] = sums.get(tensor, 0) + np.array([errors.sum(), squares.sum()])
                rows.append(_ratio(errors, squares)[errors > 0].astype(np.float32))
            classes.append(_class_report(name, dtype, model, sums))
        rest_bytes = model.total_bytes - sum(entry.bytes for entry in classes)
        classes.append(ClassReport(REST, "f32", rest_bytes // 4, rest_bytes, 0.0, "", 0.0))
    counts, edges = np.histogram(np.concatenate([np.empty(0, np.float32), *rows]), BINS)
    return Report(classes, [float(edge) for edge in edges], [int(count) for count in counts])


def _class_report(name: str, dtype: str, model: "_Model", sums: dict[str, Any]) -> ClassReport:
    errors = {tensor: float(_ratio(*pair)) for tensor, pair in sums.items()}
    worst = max(errors, key=lambda tensor: errors[tensor], default="")
    total = float(_ratio(*sum(sums.values(), np.zeros(2))))
    size = model.class_bytes(CLASSES[name])
    return ClassReport(name, dtype, model.weights(name), size, total, worst, errors.get(worst, 0.0))


def _ratio(errors: Any, squares: Any) -> Any:
    return np.sqrt(errors / np.where(squares == 0, 1, squares))


def _pairs(source: Source, model: "_Model", name: str, dtype: str) -> Iterator[tuple[str, F32, F32]]:
    """(tensor, its published rows, the same rows decoded) of class `name`, slice by slice."""
    if name == "experts":
        if not source.has_mxfp4_experts:
            yield from _expert_pairs(source, model, dtype)
        return
    if name == "embedding":
        places = [(EMBEDDING, VOCABULARY_FILE, "embedding", 0)]
    elif name == "unembedding":
        places = [(UNEMBEDDING, VOCABULARY_FILE, "unembedding", 0)]
    else:
        places = [
            place
            for layer in range(source.config.layers)
            for place in _layer_places(source.config, layer, name)
        ]
    for tensor, file, matrix, first in places:
        total = source.shape(tensor)[0]
        for start in range(0, total, SLICE_ROWS):
            stop = min(start + SLICE_ROWS, total)
            published = as_f32(source.rows(tensor, start, stop))
            yield tensor, published, model.rows(file, matrix, dtype, first + start, first + stop)


def _layer_places(config: ModelConfig, layer: int, name: str) -> list[tuple[str, str, str, int]]:
    """(tensor, file, matrix of the file, its first row there) of the attention's or the router's matrices."""
    prefix, file = layer_prefix(layer), layer_file(layer)
    if name == "router":
        return [(f"{prefix}mlp.router.weight", file, "router", 0)]
    firsts = {"q": 0, "k": config.q_rows, "v": config.q_rows + config.kv_rows}
    places = [
        (f"{prefix}self_attn.{letter}_proj.weight", file, "qkv", first) for letter, first in firsts.items()
    ]
    return [*places, (f"{prefix}self_attn.o_proj.weight", file, "output", 0)]


def _expert_pairs(source: Source, model: "_Model", dtype: str) -> Iterator[tuple[str, F32, F32]]:
    config = source.config
    run = expert_run(config, dtype)
    d, i = config.hidden, config.intermediate
    places = {
        "gate_up_proj": (2 * i, d, run.gate_up_codes, run.gate_up_scales),
        "down_proj": (d, i, run.down_codes, run.down_scales),
    }
    for layer in range(config.layers):
        for expert in range(config.experts):
            content = model.read(layer_file(layer), "experts", expert, expert + 1)[0]
            for name, (rows, columns, codes_at, scales_at) in places.items():
                shape = (rows // TILE_ROWS, columns // TILE_COLUMNS, -1)
                codes = content[codes_at:][: tile_bytes(rows * columns, dtype)].reshape(shape)
                scales = content[scales_at:][: scale_bytes(rows * columns, dtype)]
                decoded = _decode(codes, scales.view(WEIGHT_FORMATS[dtype].scale_numpy).reshape(shape), dtype)
                published = source.expert(layer, name, expert)
                if isinstance(published, Blocks):  # of a GGUF file where some are MXFP4 already
                    published = decode_mxfp4(unpack_blocks(published.blocks), published.scales)
                yield experts_prefix(layer) + name, as_f32(published), decoded


def _decode(tiles: Any, scales: Any, dtype: str) -> F32:
    form = WEIGHT_FORMATS[dtype]
    return form.decode_f32(from_tiles(tiles, dtype), scales_from_tiles(scales) if form.has_scales else None)


class _Model(TensorFiles):
    """The weight files of a model directory; its tensors are named FILE:TENSOR."""

    def __init__(self, folder: Path, config: ModelConfig):
        super().__init__(folder)
        self._config = config
        for file in (*map(layer_file, range(config.layers)), VOCABULARY_FILE):
            tensors = read_header(folder / file)[0]
            self.tensors |= {f"{file}:{name}": (folder / file, info) for name, info in tensors.items()}

    def __enter__(self) -> "_Model":
        return self

    @property
    def total_bytes(self) -> int:
        return sum(info.size for _, info in self.tensors.values())

    def class_bytes(self, names: tuple[str, ...]) -> int:
        return sum(info.size for name, (_, info) in self.tensors.items() if name.partition(":")[2] in names)

    def weights(self, name: str) -> int:
        """How many weights class `name` has."""
        c = self._config
        attention = c.hidden * (c.qkv_rows + c.q_rows)
        per_layer = {"experts": 3 * c.experts * c.hidden * c.intermediate, "attention": attention}
        per_layer["router"] = c.experts * c.hidden
        return c.layers * per_layer[name] if name in per_layer else c.vocab * c.hidden

    def read(self, file: str, name: str, start: int, stop: int) -> NDArray[Any]:
        return self.read_rows(f"{file}:{name}", start, stop)

    def rows(self, file: str, matrix: str, dtype: str, start: int, stop: int) -> F32:
        """Rows start:stop of `matrix`, start on a tile, decoded."""
        form = WEIGHT_FORMATS[dtype]
        if matrix == "embedding":
            codes = self.read(file, "embedding.codes", start, stop)
            if not form.has_scales:
                return form.decode_f32(codes, None)
            return form.decode_f32(codes.view(np.int8), self.read(file, "embedding.scales", start, stop))
        groups = start // TILE_ROWS, -(-stop // TILE_ROWS)
        scales = self.read(file, f"{matrix}.scales", *groups) if form.has_scales else None
        decoded = _decode(self.read(file, f"{matrix}.codes", *groups), scales, dtype)[: stop - start]
        norm = {"qkv": "attention_norm", "unembedding": "final_norm"}.get(matrix)
        if norm is None or f"{file}:{norm}.shift" not in self.tensors:
            return decoded
        factor = factor_of(self.read(file, f"{norm}.shift", 0, self._config.hidden).view(np.int8))
        return decoded if factor is None else decoded / factor
