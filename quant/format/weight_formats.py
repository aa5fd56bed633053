"""The number formats that weights are written in: the one table from which all others are derived.

A format is known by its name (`dtype` everywhere else) and described here: how large its tiles are, what its
scales are, which tensors may have it, which kernel reads it, and the functions that write and read it. A new
format is an entry here, its arithmetic in numbers.py, its kernel in localoss/kernels and its shader.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.format.numbers import (
    F32,
    GROUP,
    Weights,
    bf16_to_f32,
    decode_int,
    decode_mxfp4,
    encode_int4,
    encode_int8,
    encode_mxfp4,
    f32_to_bf16,
)

TILE_ROWS = 8
TILE_COLUMNS = GROUP  # also the size of an MXFP4 block and of an int4 or int8 group

Coded = tuple[NDArray[Any], NDArray[Any] | None]  # codes, and scales where the format has them
Encoder = Callable[[Weights, F32 | None], Coded]

_SCALE_NUMPY: dict[str, Any] = {"U8": np.uint8, "F16": np.float16}


@dataclass(frozen=True)
class WeightFormat:
    """One number format.

    Attributes:
        name: what localoss.json and the options call it.
        kernel_kind: the number that the compiled kernels know it by; the formats are counted from 0.
        bits: of a weight's code.
        scale_dtype: safetensors' name for the type of a scale (one per row and 32 columns), or None.
        tensors: the classes of tensors that may be written in it.
        ggml: what GGUF files call it.
        encode: codes (R, C) and scales (R, C/32) of float32 weights (R, C); `moments` (C,) f32 or None weigh
            the columns' squared errors where the format is calibrated. This is the definition, in NumPy.
        decode: the weights (R, C) of codes and scales; float32, or bfloat16's bits as they are.
        tile: as `encode`, jitted, and in tiles: codes (R/8, C/32, tile_bytes), scales (R/8, C/32, 8).
        encode_rows: as `encode`, jitted, for rows that are read one by one; None where no tensor needs it.
        calibrated: whether the moments of a calibration text change what `encode` gives.
    """

    name: str
    kernel_kind: int
    bits: int
    scale_dtype: str | None
    tensors: tuple[str, ...]
    ggml: str
    encode: Encoder
    decode: Callable[[Any, Any], Weights]
    tile: Encoder
    encode_rows: Callable[[Weights], Coded] | None = None
    calibrated: bool = False

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile's codes."""
        return TILE_ROWS * TILE_COLUMNS * self.bits // 8

    @property
    def scale_bytes(self) -> int:
        """Bytes of scales per row and 32 columns."""
        return 0 if self.scale_dtype is None else int(np.dtype(self.scale_numpy).itemsize)

    @property
    def scale_numpy(self) -> Any:
        """NumPy's type of a scale; that of a byte where there are none, so that empty arrays have one."""
        return _SCALE_NUMPY[self.scale_dtype or "U8"]

    @property
    def signed(self) -> bool:
        """Whether codes are integers with a sign, and not numbers of a table or bits."""
        return self.decode is decode_int

    @property
    def has_scales(self) -> bool:
        return self.scale_dtype is not None

    def decode_f32(self, codes: NDArray[Any], scales: NDArray[Any] | None) -> F32:
        """The weights (R, C) of `codes` (R, C) and `scales` (R, C/32), as float32."""
        weights = self.decode(codes, scales)
        return bf16_to_f32(weights) if weights.dtype == np.uint16 else weights


# The jitted loops are imported where they are used: Numba takes a second, and a plan needs none of it.


def _tile_mxfp4(weights: Weights, moments: F32 | None) -> Coded:
    from quant.format import jit_loops

    return jit_loops.tile_mxfp4_blocks(*jit_loops.encode_mxfp4_blocks(weights))


def _tile_int8(weights: Weights, moments: F32 | None) -> Coded:
    from quant.format import jit_loops

    return jit_loops.tile_int8(weights)


def _tile_int4(weights: Weights, moments: F32 | None) -> Coded:
    from quant.format import jit_loops

    return jit_loops.tile_int4(weights, moments)


def _tile_bf16(weights: Weights, moments: F32 | None) -> Coded:
    from quant.format import jit_loops

    return jit_loops.tile_bf16(weights), None


def _int8_rows(weights: Weights) -> Coded:
    from quant.format import jit_loops

    return jit_loops.encode_int8_rows(weights)


def _bf16_rows(weights: Weights) -> Coded:
    return weights if weights.dtype == np.uint16 else f32_to_bf16(weights), None


# In this order they stand in the help: a class's default is the first that it may have.
MXFP4 = WeightFormat(
    name="mxfp4",
    kernel_kind=0,
    bits=4,
    scale_dtype="U8",
    tensors=("experts",),
    ggml="MXFP4",
    encode=lambda weights, moments: encode_mxfp4(weights),
    decode=decode_mxfp4,
    tile=_tile_mxfp4,
)
INT8 = WeightFormat(
    name="int8",
    kernel_kind=2,
    bits=8,
    scale_dtype="F16",
    tensors=("attention", "embedding", "unembedding"),
    ggml="Q8_0",
    encode=lambda weights, moments: encode_int8(weights),
    decode=decode_int,
    tile=_tile_int8,
    encode_rows=_int8_rows,
)
INT4 = WeightFormat(
    name="int4",
    kernel_kind=1,
    bits=4,
    scale_dtype="F16",
    tensors=("attention", "unembedding", "experts"),
    ggml="Q4_0",
    encode=encode_int4,
    decode=decode_int,
    tile=_tile_int4,
    calibrated=True,
)
BF16 = WeightFormat(
    name="bf16",
    kernel_kind=3,
    bits=16,
    scale_dtype=None,
    tensors=("attention", "embedding", "unembedding", "experts", "router"),
    ggml="BF16",
    encode=lambda weights, moments: (f32_to_bf16(weights), None),
    decode=lambda codes, scales: codes,
    tile=_tile_bf16,
    encode_rows=_bf16_rows,
)

WEIGHT_FORMATS: dict[str, WeightFormat] = {form.name: form for form in (MXFP4, INT8, INT4, BF16)}
BY_KERNEL_KIND = tuple(sorted(WEIGHT_FORMATS.values(), key=lambda form: form.kernel_kind))
ROUTER = BF16.name  # the router's rows choose the experts: they are kept as published


def choices(tensors: str) -> tuple[str, ...]:
    """The names of the formats that class `tensors` may have, its default first."""
    return tuple(form.name for form in WEIGHT_FORMATS.values() if tensors in form.tensors)
