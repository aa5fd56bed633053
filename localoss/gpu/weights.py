"""Weights on the GPU, their bytes as they lie in the model's files, cut where a binding can't be larger."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localoss.errors import GpuError
from localoss.gpu.device import Device
from quant.format.weight_formats import ROUTER

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class MatrixPart:
    """Row groups from `first_group` on: their codes, scales, and a uniform that says which they are."""

    codes: Any
    scales: Any
    groups: int
    which: Any


@dataclass(frozen=True)
class GpuMatrix:
    """A matrix of 8 * groups rows and 32 * blocks columns in tiles of `dtype`; see quant/format/tiles.py."""

    dtype: str
    groups: int
    blocks: int
    bias: Any  # of all rows, or None
    parts: list[MatrixPart]


@dataclass(frozen=True)
class ExpertPart:
    """The runs of some experts, one after the other, and a uniform that says whose they are."""

    runs: Any
    which: Any


@dataclass(frozen=True)
class GpuLayer:
    """The weights of one layer. Norms are (D,), router_bias (E,), all float32; the sinks (H,) come after the
    bias of qkv, in its buffer: a shader may have 8.
    """

    attention_norm: Any
    qkv: GpuMatrix
    output: GpuMatrix
    mlp_norm: Any
    router: GpuMatrix
    router_bias: Any
    experts: list[ExpertPart]


def upload_layer(device: Device, tensors: Tensors, attention: str, with_experts: bool) -> GpuLayer:
    """Copy one layer's tensors to the GPU. Raises: GpuError."""
    bias_and_sinks = np.concatenate([tensors["qkv.bias"], tensors["sinks"]])
    return GpuLayer(
        attention_norm=device.upload(tensors["attention_norm"]),
        qkv=upload_matrix(device, tensors | {"qkv.bias": bias_and_sinks}, "qkv", attention),
        output=upload_matrix(device, tensors, "output", attention),
        mlp_norm=device.upload(tensors["mlp_norm"]),
        router=upload_matrix(device, tensors, "router", ROUTER, biased=False),  # routing adds its bias
        router_bias=device.upload(tensors["router.bias"]),
        experts=_upload_experts(device, tensors["experts"]) if with_experts else [],
    )


def upload_matrix(device: Device, tensors: Tensors, name: str, dtype: str, biased: bool = True) -> GpuMatrix:
    """Copy matrix `name` to the GPU, in as many parts as its bindings need. Raises: GpuError."""
    codes, scales = tensors[f"{name}.codes"], tensors.get(f"{name}.scales")
    bias = tensors.get(f"{name}.bias") if biased else None
    groups, blocks, _ = codes.shape
    parts = []
    for first, end in _cuts(groups, codes[0].nbytes, device.most_bytes):
        part_scales = device.upload(None if scales is None else scales[first:end])
        part = MatrixPart(device.upload(codes[first:end]), part_scales, end - first, device.uniform(first))
        parts.append(part)
    return GpuMatrix(dtype, groups, blocks, None if bias is None else device.upload(bias), parts)


def _upload_experts(device: Device, experts: NDArray[np.uint8]) -> list[ExpertPart]:
    return [
        ExpertPart(device.upload(experts[first:end]), device.uniform(first, end))
        for first, end in _cuts(len(experts), experts.shape[1], device.most_bytes)
    ]


def _cuts(count: int, item_bytes: int, most_bytes: int) -> list[tuple[int, int]]:
    """(first, end) of stretches of up to `most_bytes`, of `count` items of `item_bytes`."""
    at_once = min(most_bytes // item_bytes, 65_535)
    if not at_once:
        raise GpuError(f"it binds buffers of up to {most_bytes:,} bytes, and an expert has {item_bytes:,}")
    return [(first, min(first + at_once, count)) for first in range(0, count, at_once)]
