"""Matrices as MLX packs them: MXFP4 in its own words, or affine, w = scale * code + bias, of 2 to 8 bits.

Codes fill 32-bit words from the lowest bit on, without gaps in a row. Source: MLX's manual on `quantize`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from quant.errors import QuantError
from quant.format.config import OTHER_FORMS
from quant.format.jit import jit
from quant.format.numbers import F32
from quant.format.safetensors import TensorFiles
from quant.format.weight_formats import TILE_COLUMNS
from quant.sources.base import FLOATS, Blocks, as_f32

AFFINE_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Packed:
    """The tensors of one packed matrix (…, R, C): codes U32, scales, and biases where it is affine."""

    codes: str
    scales: str
    biases: str
    columns: int


def require_packed(files: TensorFiles, packed: Packed, shape: tuple[int, ...]) -> None:
    """Raises: QuantError unless the tensors of `packed` are all there and make a matrix of `shape`."""
    path, info = files.tensors[packed.codes]
    if packed.scales not in files.tensors:
        raise QuantError(f"{path}: {packed.codes} is packed, and its scales are missing; {OTHER_FORMS}")
    scales = files.tensors[packed.scales][1]
    bits, rest = divmod(32 * info.shape[-1], packed.columns)
    group, uneven = divmod(packed.columns, scales.shape[-1])
    if rest or uneven or info.shape[:-1] != shape[:-1] or scales.shape[:-1] != shape[:-1]:
        raise QuantError(
            f"{path}: {packed.codes} of shape {list(info.shape)} with scales {list(scales.shape)} does not "
            f"make the {list(shape)} of config.json; {OTHER_FORMS}"
        )
    if packed.biases in files.tensors:
        files.require(packed.biases, FLOATS, scales.shape)
    if scales.dtype == "U8" and (bits, group) == (4, TILE_COLUMNS) and packed.biases not in files.tensors:
        return
    if scales.dtype not in FLOATS or bits not in AFFINE_BITS or packed.biases not in files.tensors:
        raise QuantError(
            f"{path}: {packed.codes} has {bits} bits in groups of {group} with scales in {scales.dtype}, "
            f"one of MLX's forms that localoss cannot read; {OTHER_FORMS}"
        )


def read_packed(files: TensorFiles, packed: Packed, start: int, stop: int) -> Blocks | F32:
    """Entries start:stop of the first axis of `packed`, as one matrix (R, C)."""
    codes = files.read_rows(packed.codes, start, stop)
    codes = codes.reshape(-1, codes.shape[-1])
    scales = files.read_rows(packed.scales, start, stop)
    scales = scales.reshape(-1, scales.shape[-1])
    if packed.biases not in files.tensors:
        return Blocks(codes.view(np.uint8).reshape(*scales.shape, 16), scales)
    biases = files.read_rows(packed.biases, start, stop).reshape(scales.shape)
    weights = np.empty((len(codes), packed.columns), np.float32)
    bits = 32 * codes.shape[-1] // packed.columns
    _unpack_affine(codes.view(np.uint8), bits, _f32(scales), _f32(biases), weights)
    return weights


def _f32(values: Any) -> F32:
    return np.ascontiguousarray(as_f32(values), np.float32)


@jit
def _unpack_affine(packed: Any, bits: int, scales: Any, biases: Any, out: Any) -> None:
    """out (R, C) f32 of `packed` (R, C * bits / 8) u8, with scales and biases (R, C / group) f32."""
    group = out.shape[1] // scales.shape[1]
    mask = (1 << bits) - 1
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            first = column * bits
            word = np.int64(packed[row, first >> 3])
            if (first & 7) + bits > 8:
                word |= np.int64(packed[row, (first >> 3) + 1]) << 8
            code = np.float32((word >> (first & 7)) & mask)
            out[row, column] = scales[row, column // group] * code + biases[row, column // group]
