"""A model directory back in Hugging Face's layout: MXFP4 experts bit for bit, the rest in bfloat16."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import QuantError
from quant.format import disk
from quant.format.hf_names import (
    EMBEDDING,
    EXPERT_MATRICES,
    FINAL_NORM,
    MXFP4_CONFIG,
    UNEMBEDDING,
    block_shapes,
    dense_shapes,
    experts_prefix,
    float_shapes,
    layer_prefix,
)
from quant.format.layout import TensorSpec
from quant.format.numbers import Weights, f32_to_bf16
from quant.format.safetensors import INDEX_FILE
from quant.format.writer import PART, Writer, header_of, spec_bytes
from quant.sources import Blocks, Source
from quant.sources.model import ModelSource

ROWS = 4096  # of a matrix, decoded at once
Progress = Callable[[int, int], None]
Specs = dict[str, TensorSpec]


def export(model: Path, out: Path, progress: Progress | None = None) -> int:
    """Write model directory `model` into the new folder `out`, one shard a layer; gives the bytes written.

    config.json comes last, so a folder without it is not complete; what an export that was cut off left there
    is written again. `progress(done_bytes, total_bytes)`. Raises: QuantError if `model` is no model, or `out`
    cannot be written, has no room or holds something else.
    """
    with ModelSource(model) as source:
        source.require_tensors()
        shards = _shards(source)
        total_bytes = sum(spec_bytes(spec) for specs in shards.values() for spec in specs.values())
        _make_empty(out, {*shards, INDEX_FILE, *source.small_files}, total_bytes)
        done_bytes = 0

        def advance(written_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += written_bytes
            if progress:
                progress(min(done_bytes, total_bytes), total_bytes)

        with Writer(advance) as writer:
            for name, specs in shards.items():
                header = header_of(specs, metadata={"format": "pt"}, alignment=8)
                writer.write_tensors(out / name, specs, _parts(source, specs), header=header)
            weight_map = {tensor: name for name, specs in shards.items() for tensor in specs}
            index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
            writer.write(out / INDEX_FILE, [_json(index)])
            for name in reversed(source.small_files):  # config.json last
                content = source.small_files[name]
                writer.write(out / name, [_config(source) if name == "config.json" else content])
    return done_bytes


def _make_empty(out: Path, ours: set[str], needed_bytes: int) -> None:
    """Make folder `out`, without what an export of files `ours` left there when it was cut off.

    Raises: QuantError if it holds anything else, or its disk has no room for `needed_bytes`.
    """
    left = list(out.iterdir()) if out.is_dir() else []
    names = {path.name.removesuffix(PART) for path in left}
    if (out.exists() and not out.is_dir()) or names - ours or (out / "config.json").exists():
        raise QuantError(f"{out}: holds something already; name a new folder")
    with disk.errors_told(out):
        left_bytes = sum(path.stat().st_size for path in left)
        disk.check_room(out, needed_bytes, disk.free_bytes(out) + left_bytes)
        disk.make_folder(out)
        for path in left:
            disk.remove(path)


def _shards(source: Source) -> dict[str, Specs]:
    """The tensors of each shard, in file order: one a layer, and one for the vocabulary."""
    config = source.config
    bf16 = {name: TensorSpec("BF16", shape) for name, shape in float_shapes(config).items()}
    groups: list[Specs] = []
    for layer in range(config.layers):
        shapes = (block_shapes if source.has_mxfp4_experts else dense_shapes)(config, layer)
        dtype = "U8" if source.has_mxfp4_experts else "BF16"
        specs = {name: TensorSpec(dtype, shape) for name, shape in shapes.items()}
        groups.append(specs | {name: bf16[name] for name in bf16 if name.startswith(layer_prefix(layer))})
    groups.append({name: bf16[name] for name in (EMBEDDING, UNEMBEDDING, FINAL_NORM)})
    last = len(groups) - 1
    return {f"model-{i:05d}-of-{last:05d}.safetensors": specs for i, specs in enumerate(groups)}


def _parts(source: Source, names: Iterable[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Each of the tensors `names` in slices, C-order."""
    for name in names:
        for piece in _pieces(source, name):
            yield name, np.ascontiguousarray(piece)


def _pieces(source: Source, name: str) -> Iterator[NDArray[Any]]:
    """Tensor `name` as published, in slices along its first axis."""
    if ".mlp.experts." in name:
        yield from _expert_pieces(source, name)
        return
    rows = source.shape(name)[0]
    for start in range(0, rows, ROWS):
        yield _bf16(source.rows(name, start, min(start + ROWS, rows)))


def _expert_pieces(source: Source, name: str) -> Iterator[NDArray[Any]]:
    layer = int(name.split(".")[2])
    short = name.removeprefix(experts_prefix(layer))
    matrix = next(matrix for matrix in EXPERT_MATRICES if short.startswith(matrix))
    for expert in range(source.config.experts):
        if short.endswith("_bias"):
            yield _bf16(source.expert_bias(layer, matrix, expert))
            continue
        weights = source.expert(layer, matrix, expert)
        if isinstance(weights, Blocks):
            yield weights.blocks if short.endswith("_blocks") else weights.scales
        else:
            yield _bf16(weights).T


def _bf16(weights: Weights) -> NDArray[np.uint16]:
    return weights if weights.dtype == np.uint16 else f32_to_bf16(weights)


def _config(source: Source) -> bytes:
    """The model's config.json, byte for byte unless it tells another number format of the experts."""
    content = source.small_files["config.json"]
    raw = json.loads(content)
    if source.has_mxfp4_experts == ("quantization_config" in raw):
        return content
    if source.has_mxfp4_experts:
        return _json(raw | {"quantization_config": MXFP4_CONFIG})
    del raw["quantization_config"]
    return _json(raw)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
