"""A model directory as a source: what `localoss export` reads, undoing tiles and formats."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.format import jit_loops as fast
from quant.format.config import read_config
from quant.format.fold import factor_of
from quant.format.hf_names import (
    EMBEDDING,
    EXPERT_MATRICES,
    FINAL_NORM,
    UNEMBEDDING,
    expert_shapes,
    layer_prefix,
)
from quant.format.layout import (
    CONFIG_FILES,
    VOCABULARY_FILE,
    ExpertRun,
    expert_run,
    layer_file,
    layer_specs,
    scale_bytes,
    tile_bytes,
    vocabulary_specs,
)
from quant.format.manifest import read_manifest
from quant.format.numbers import F32, Weights, unpack_blocks
from quant.format.safetensors import TensorFiles, read_header
from quant.format.tiles import from_tiles, scales_from_tiles
from quant.format.weight_formats import MXFP4, ROUTER, TILE_COLUMNS, TILE_ROWS, WEIGHT_FORMATS
from quant.sources.base import Blocks, Source, as_f32

_VECTORS = {
    "input_layernorm.weight": "attention_norm",
    "post_attention_layernorm.weight": "mlp_norm",
    "self_attn.sinks": "sinks",
    "self_attn.o_proj.bias": "output.bias",
    "mlp.router.bias": "router.bias",
}


class Coded(NamedTuple):
    """Codes (R, C) of number format `dtype` as in tiles.to_tiles, and scales (R, C/32) if it has them."""

    dtype: str
    codes: NDArray[Any]
    scales: NDArray[Any] | None


class ModelSource(Source):
    """Model directory `folder`. Raises: QuantError if it is damaged or something else.

    Its gains and columns are as published; as_stored: as fold.py has them, which is the same model, too.
    `coded` is always as stored.
    """

    def __init__(self, folder: Path, as_stored: bool = False):
        self.manifest = read_manifest(folder)
        config = read_config(folder / "config.json")
        paths = [folder / name for name in CONFIG_FILES]
        small_files = {path.name: path.read_bytes() for path in paths if path.exists()}
        super().__init__(TensorFiles(folder), self.manifest.source.name, config, small_files)
        for name in [*map(layer_file, range(config.layers)), VOCABULARY_FILE]:
            prefix = "" if name == VOCABULARY_FILE else name.removesuffix("safetensors")
            for tensor, info in read_header(folder / name)[0].items():
                self.files.tensors[prefix + tensor] = (folder / name, info)
        self._run = expert_run(config, self.manifest.dtypes.experts)
        self._places = self._placed()
        self._factors: dict[str, F32] = {} if as_stored else self._stored_factors()

    @property
    def has_mxfp4_experts(self) -> bool:
        return self.manifest.dtypes.experts == MXFP4.name

    def require_tensors(self) -> None:
        dtypes = self.manifest.dtypes
        specs = vocabulary_specs(self.config, dtypes.embedding, dtypes.unembedding)
        for layer in range(self.config.layers):
            prefix = layer_file(layer).removesuffix("safetensors")
            for name, spec in layer_specs(self.config, dtypes.attention, dtypes.experts).items():
                specs[prefix + name] = spec
        for name, spec in specs.items():
            if spec.is_newer and name not in self.files.tensors:
                continue
            self.files.require(name, (spec.dtype,), spec.shape)

    def locate(self, name: str) -> tuple[str, int]:
        stored, first, _ = self._places[name]
        return stored, first

    def rows(self, name: str, start: int, stop: int) -> Weights:
        stored, first, dtype = self._places[name]
        factor = self._factors.get(stored)
        if dtype == "vector":
            vector: F32 = self.files.read_rows(stored, first + start, first + stop).view(np.float32)
            return vector if factor is None else vector * factor[start:stop]
        weights = _decoded(self.coded(name, start, stop))
        return weights if factor is None else as_f32(weights) / factor

    def column_factor(self, name: str) -> F32 | None:
        """What the columns of matrix `name` were multiplied with, where they were; its inputs are smaller."""
        return self._factors.get(self._places[name][0])

    def coded(self, name: str, start: int, stop: int) -> Coded:
        """Rows start:stop of matrix `name` as they are coded."""
        stored, first, dtype = self._places[name]
        start, stop = first + start, first + stop
        if stored == "embedding":
            codes = self.files.read_rows("embedding.codes", start, stop)
            if not WEIGHT_FORMATS[dtype].has_scales:
                return Coded(dtype, codes, None)
            return Coded(dtype, codes.view(np.int8), self.files.read_rows("embedding.scales", start, stop))
        groups = start // TILE_ROWS, -(-stop // TILE_ROWS)
        tiles = self.files.read_rows(f"{stored}.codes", *groups)
        rows = slice(start - TILE_ROWS * groups[0], stop - TILE_ROWS * groups[0])
        codes = from_tiles(tiles, dtype)[rows]
        if not WEIGHT_FORMATS[dtype].has_scales:
            return Coded(dtype, codes, None)
        scales = self.files.read_rows(f"{stored}.scales", *groups)
        return Coded(dtype, codes, scales_from_tiles(scales)[rows])

    def expert(self, layer: int, name: str, expert: int) -> Blocks | Weights:
        if not self.has_mxfp4_experts:
            return _decoded(self.coded_expert(layer, name, expert))
        tiles, scales, _ = self._expert_parts(layer, name, expert)
        return Blocks(fast.untile_mxfp4(tiles), np.ascontiguousarray(scales_from_tiles(scales)))

    def coded_expert(self, layer: int, name: str, expert: int) -> Coded:
        """Matrix `name` of an expert as it is coded."""
        tiles, scales, _ = self._expert_parts(layer, name, expert)
        dtype = self.manifest.dtypes.experts
        if dtype == MXFP4.name:  # jitted: most of an export is this
            return Coded(dtype, unpack_blocks(fast.untile_mxfp4(tiles)), scales_from_tiles(scales))
        tiled = scales_from_tiles(scales) if WEIGHT_FORMATS[dtype].has_scales else None
        return Coded(dtype, from_tiles(tiles, dtype), tiled)

    def expert_bias(self, layer: int, name: str, expert: int) -> F32:
        return self._expert_parts(layer, name, expert)[2]

    def _expert_parts(self, layer: int, name: str, expert: int) -> tuple[NDArray[Any], ...]:
        """Tiles, tiled scales and bias of an expert's matrix."""
        prefix = layer_file(layer).removesuffix("safetensors")
        run = self.files.read_rows(f"{prefix}experts", expert, expert + 1)[0]
        dtype, (rows, columns) = self.manifest.dtypes.experts, expert_shapes(self.config)[name]
        codes_at, scales_at, bias_at = _offsets(self._run, name)
        shape = (rows // TILE_ROWS, columns // TILE_COLUMNS)
        tiles = run[codes_at:][: tile_bytes(rows * columns, dtype)].reshape(*shape, -1)
        scales = run[scales_at:][: scale_bytes(rows * columns, dtype)].view(WEIGHT_FORMATS[dtype].scale_numpy)
        return tiles, scales.reshape(*shape, -1), run[bias_at:][: 4 * rows].view(np.float32)

    def _stored_factors(self) -> dict[str, F32]:
        """What stored gains are to be multiplied with, and the columns after them divided by, by tensor."""
        found = {}
        pairs = {"final_norm": "unembedding"}
        for layer in range(self.config.layers):
            prefix = layer_file(layer).removesuffix("safetensors")
            pairs[f"{prefix}attention_norm"] = f"{prefix}qkv"
        for norm, matrix in pairs.items():
            if f"{norm}.shift" in self.files.tensors:
                shift = self.files.read_rows(f"{norm}.shift", 0, self.config.hidden).view(np.int8)
                if (factor := factor_of(shift)) is not None:
                    found[norm] = found[matrix] = factor
        return found

    def _placed(self) -> dict[str, tuple[str, int, str]]:
        """Published name -> (stored tensor, its first row there, number format or "vector")."""
        config, dtypes = self.config, self.manifest.dtypes
        places = {
            EMBEDDING: ("embedding", 0, dtypes.embedding),
            UNEMBEDDING: ("unembedding", 0, dtypes.unembedding),
            FINAL_NORM: ("final_norm", 0, "vector"),
        }
        for layer in range(config.layers):
            to, prefix = layer_prefix(layer), layer_file(layer).removesuffix("safetensors")
            places[f"{to}self_attn.o_proj.weight"] = (f"{prefix}output", 0, dtypes.attention)
            places[f"{to}mlp.router.weight"] = (f"{prefix}router", 0, ROUTER)
            for name, stored in _VECTORS.items():
                places[to + name] = (prefix + stored, 0, "vector")
            first = 0
            for letter, rows in (("q", config.q_rows), ("k", config.kv_rows), ("v", config.kv_rows)):
                places[f"{to}self_attn.{letter}_proj.weight"] = (f"{prefix}qkv", first, dtypes.attention)
                places[f"{to}self_attn.{letter}_proj.bias"] = (f"{prefix}qkv.bias", first, "vector")
                first += rows
        return places


def _offsets(run: ExpertRun, name: str) -> tuple[int, int, int]:
    if name == EXPERT_MATRICES[0]:
        return run.gate_up_codes, run.gate_up_scales, run.gate_up_bias
    return run.down_codes, run.down_scales, run.down_bias


def _decoded(coded: Coded) -> Weights:
    return WEIGHT_FORMATS[coded.dtype].decode(coded.codes, coded.scales)
