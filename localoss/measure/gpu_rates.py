"""At which rate a GPU multiplies weights of each number format: a matrix of each, many times over."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localoss.gpu.device import Device, Dispatch
from localoss.gpu.features import FP4_FILES, Features, features_of
from localoss.gpu.kernels import Kernels
from localoss.gpu.sources import source
from localoss.gpu.weights import GpuMatrix, MatrixPart
from localoss.plan.gpu_sizes import tokens_at_once
from quant.format.config import ModelConfig
from quant.format.manifest import Dtypes
from quant.format.weight_formats import MXFP4, TILE_COLUMNS, TILE_ROWS, WEIGHT_FORMATS

_BYTES = 120 << 20  # of a matrix: more than a card's cache, and what every card binds
_SOFTWARE_BYTES = 8 << 20  # where the cores play the GPU
_TIMES = 9  # in a submit, so that what a submit takes can be told from what a product takes
_RUNS = 5  # of which the fastest counts: whatever else the machine does makes it slower
_MANY = 8  # tokens at once, as in a prompt
_READERS = 1024  # workgroups that only read
_LEAST_S = 1e-9


@dataclass(frozen=True)
class Rate:
    """Of one format. gb_per_s: of its codes and scales, for one token. many_gmacs: multiply-adds a second, in
    units of 1e9, for 8 tokens at once. is_used: whether models on this GPU are multiplied that way.
    """

    name: str
    gb_per_s: float
    many_gmacs: float
    is_used: bool


@dataclass(frozen=True)
class Rates:
    """read_gb_per_s: of plain reading. bus_gb_per_s: of copying from this machine's memory to the GPU's."""

    read_gb_per_s: float
    bus_gb_per_s: float
    formats: list[Rate]


def measure_rates(device: Device, config: ModelConfig) -> Rates:
    """Every format's, for rows as long as the model's hidden state. Raises: GpuError."""
    size = _SOFTWARE_BYTES if device.adapter.is_software else _BYTES
    bytes_ = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    codes, scales = device.buffer(size), device.upload(np.full(size // 4, 0x3C, np.uint8))

    def copy() -> None:
        device.write(codes, bytes_)
        device.wait()

    bus_s, used, formats = _fastest_s(copy), features_of(device), []
    for name in WEIGHT_FORMATS:
        matrix = _matrix(device, config, name, codes, scales)
        for file in FP4_FILES if name == MXFP4.name else ("",):
            kernels = Kernels(
                device, config, Dtypes(), "f32", Features(file or used.fp4_file, used.subgroups)
            )
            one_s, many_s = (_product_s(device, kernels, matrix, tokens) for tokens in (1, _MANY))
            label = f"mxfp4 by {file.removeprefix('fp4_')}" if file else name
            its_bytes = _matrix_bytes(matrix)
            weights = _MANY * matrix.groups * matrix.blocks * TILE_ROWS * TILE_COLUMNS
            rate = Rate(label, its_bytes / one_s / 1e9, weights / many_s / 1e9, file in ("", used.fp4_file))
            formats.append(rate)
    vectors = size // 16 // _READERS
    kernel = device.kernel(source("read", VECTORS=vectors), "rw")
    bound = device.bind(kernel, [codes, device.buffer(4 * _READERS)])
    read_s = _seconds(device, [Dispatch(kernel, bound, _READERS)])
    return Rates(size / read_s / 1e9, size / bus_s / 1e9, formats)


def _matrix(device: Device, config: ModelConfig, name: str, codes: Any, scales: Any) -> GpuMatrix:
    """As many rows as the bytes of `codes` and of `scales` are enough for."""
    form, blocks = WEIGHT_FORMATS[name], config.hidden // TILE_COLUMNS
    scale_bytes = blocks * TILE_ROWS * form.scale_bytes
    groups = min(codes.size // (blocks * form.tile_bytes), scales.size // max(scale_bytes, 1), 65_535)
    return GpuMatrix(name, groups, blocks, None, [MatrixPart(codes, scales, groups, device.uniform(0))])


def _matrix_bytes(matrix: GpuMatrix) -> int:
    form = WEIGHT_FORMATS[matrix.dtype]
    return matrix.groups * matrix.blocks * (form.tile_bytes + TILE_ROWS * form.scale_bytes)


def _product_s(device: Device, kernels: Kernels, matrix: GpuMatrix, tokens: int) -> float:
    """Seconds of the matrix times so many vectors."""
    kernel = kernels.matmul(matrix, False, tokens_at_once(tokens), False)
    x = device.upload(np.ones((tokens, matrix.blocks * TILE_COLUMNS), np.float32))
    out = device.buffer(4 * tokens * TILE_ROWS * matrix.groups)
    part = matrix.parts[0]
    batch = device.uniform(tokens, 0, 0, 0)
    buffers = [part.codes, part.scales, device.upload(None), x, out, batch, part.which]
    return _seconds(device, [Dispatch(kernel, device.bind(kernel, buffers), matrix.groups)])


def _seconds(device: Device, work: Sequence[Dispatch]) -> float:
    """Seconds of `work` without what a submit takes, by running it once and several times."""
    once = _fastest_s(lambda: device.run(work, device.anything))
    several = _fastest_s(lambda: device.run([*work] * _TIMES, device.anything))
    return max((several - once) / (_TIMES - 1), _LEAST_S)


def _fastest_s(run: Callable[[], object]) -> float:
    """Seconds of a run; the first one, which may have to compile, doesn't count."""
    times = []
    for _ in range(_RUNS + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])
