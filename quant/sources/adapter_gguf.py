"""LoRA adapters in GGUF, as llama.cpp's convert_lora_to_gguf.py writes them.

A tensor NAME of the model has NAME.lora_a (r, columns) and NAME.lora_b (rows, r), which experts have stacked;
the scale is adapter.lora.alpha / r, or 1 without an alpha. Source: llama.cpp, src/llama-adapter.cpp.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quant.errors import QuantError
from quant.format.config import ModelConfig
from quant.format.finite import require_finite
from quant.format.hf_names import UNEMBEDDING, expert_shapes, experts_prefix, float_shapes, layer_prefix
from quant.format.numbers import F32
from quant.sources.base import FLOATS, as_f32
from quant.sources.gguf_file import GgufFile, dequantize

_ARCHITECTURES = ("gpt-oss", "gptoss")
_TENSOR = re.compile(r"(?P<stored>(?:blk\.(?P<layer>\d+)\.)?(?P<local>[\w.]+?))\.weight\.lora_(?P<side>[ab])")
_LAYER_MATRICES = {
    "attn_q": "self_attn.q_proj.weight",
    "attn_k": "self_attn.k_proj.weight",
    "attn_v": "self_attn.v_proj.weight",
    "attn_output": "self_attn.o_proj.weight",
    "attn_out": "self_attn.o_proj.weight",
    "ffn_gate_inp": "mlp.router.weight",
}
# The experts' matrix, its first row and the step to the next: published, gate and up stand in turns.
_EXPERTS = {
    "ffn_gate_exps": ("gate_up_proj", 0, 2),
    "ffn_up_exps": ("gate_up_proj", 1, 2),
    "ffn_gate_up_exps": ("gate_up_proj", 0, 1),
    "ffn_down_exps": ("down_proj", 0, 1),
}


@dataclass(frozen=True)
class Part:
    """What is added to matrix `name`, a published one's or an expert's with /E: scaling * b @ a."""

    name: str
    stored: str
    a: F32
    b: F32
    shape: tuple[int, ...]  # that the matrix has
    scaling: float


def gguf_parts(path: Path, config: ModelConfig) -> Iterator[Part]:
    """All of an adapter. Raises: QuantError for another kind of file, or tensors that aren't gpt-oss's."""
    files = GgufFile(path)
    try:
        alpha = _alpha(path, files)
        halves: dict[str, dict[str, str]] = {}
        for tensor in files.tensors:
            match = _TENSOR.fullmatch(tensor)
            if not match:
                raise QuantError(f"{path}: {tensor} is no part of a LoRA that localoss can add")
            halves.setdefault(match["stored"], {})[match["side"]] = tensor
        for stored, sides in halves.items():
            if len(sides) != 2:
                raise QuantError(f"{path}: {stored} has lora_{min(sides)} without its other half")
            yield from _parts(path, files, stored, config, alpha)
    finally:
        files.close()


def _alpha(path: Path, files: GgufFile) -> float | None:
    """The scale times the rank; None where the scale is 1. Raises: QuantError unless it is gpt-oss's LoRA."""
    architecture, kind, form = (
        files.metadata.get(key) for key in ("general.architecture", "general.type", "adapter.type")
    )
    if kind != "adapter":
        raise QuantError(f"{path}: a GGUF file of type {kind!r}, not an adapter; give a LoRA's GGUF file")
    if architecture not in _ARCHITECTURES:
        raise QuantError(f"{path}: an adapter of a {architecture!r} model; localoss runs gpt-oss models only")
    if form != "lora":
        raise QuantError(f"{path}: an adapter of type {form!r}; localoss knows lora")
    alpha = files.metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, int | float) or not np.isfinite(alpha):
        raise QuantError(f"{path}: adapter.lora.alpha is {alpha!r}, no finite number")
    return float(alpha) or None


def _parts(
    path: Path, files: GgufFile, stored: str, config: ModelConfig, alpha: float | None
) -> Iterator[Part]:
    """Those of one stored tensor: one, or one for each expert."""
    a, b = (_read(path, files, f"{stored}.weight.lora_{side}") for side in "ab")
    _, _, local = stored.rpartition(".")
    layer = int(stored.split(".")[1]) if stored.startswith("blk.") else None
    if layer is not None and layer >= config.layers:
        raise QuantError(f"{path}: {stored} is of a layer that the model doesn't have")
    is_stacked = layer is not None and local in _EXPERTS
    is_whole = not is_stacked or len(a) == len(b) == config.experts
    if not (a.ndim == b.ndim == (3 if is_stacked else 2) and is_whole):
        raise _misfit(path, stored, a, b)
    scaling = 1.0 if alpha is None else alpha / a.shape[-2]
    if is_stacked:
        assert layer is not None
        matrix, first, step = _EXPERTS[local]
        shape = expert_shapes(config)[matrix]
        if b.shape[1] * step != shape[0]:
            raise _misfit(path, stored, a, b)
        for expert in range(config.experts):
            rows = np.zeros((shape[0], b.shape[2]), np.float32)
            rows[first::step] = b[expert]
            yield Part(f"{experts_prefix(layer)}{matrix}/{expert}", stored, a[expert], rows, shape, scaling)
        return
    if layer is not None and local in _LAYER_MATRICES:
        name = layer_prefix(layer) + _LAYER_MATRICES[local]
    elif stored == "output":
        name = UNEMBEDDING
    else:
        raise QuantError(f"{path}: it changes {stored}, which localoss can't adapt")
    yield Part(name, stored, a, b, float_shapes(config)[name], scaling)


def _misfit(path: Path, stored: str, a: F32, b: F32) -> QuantError:
    shapes = f"lora_a {list(a.shape)} and lora_b {list(b.shape)}"
    return QuantError(f"{path}: {stored} has {shapes}, which don't fit the model; it is of another")


def _read(path: Path, files: GgufFile, name: str) -> F32:
    _, info = files.tensors[name]
    rows = files.read_rows(name, 0, info.shape[0])
    values = as_f32(rows) if info.dtype in FLOATS else dequantize(rows, info.dtype, info.shape[-1])
    values = values.astype(np.float32, copy=False).reshape(info.shape)
    require_finite(f"{path}: {name}", values)
    return values
