"""What the converter spends its time on, jitted; equal to formats.py and tiles.py bit for bit.

The scale rules stay in formats.py: the jitted loops find each group's extreme, NumPy makes the scales of
these, and the jitted loops quantize straight into tiles.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from quant.formats import F16, GROUP, I8, U8, U16, bf16_to_f32, in_groups, int4_scales, int8_scales
from quant.layout import TILE_BYTES, TILE_ROWS
from quant.tiles import scales_to_tiles, tile_counts


def _jit(function: Callable[..., None]) -> Callable[..., None]:
    """Numba's jit, cached on disk where a folder for that can be written.

    On one thread: it keeps ahead of the disk, and the writer's threads have the other cores.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no place for the cache: compile once a process
        return numba.njit(nogil=True)(function)


def tile_bf16(bits: U16) -> U8:
    """bf16 tiles (R/8, C/32, 512) u8 of `bits` (R, C) u16."""
    groups, blocks = tile_counts(*bits.shape)
    tiles = np.empty((groups, blocks, TILE_BYTES["bf16"]), np.uint8)
    _tile_pairs(bits.view(np.uint32).reshape(groups, TILE_ROWS, blocks, 16), tiles.view(np.uint32))
    return tiles


def tile_int8(bits: U16) -> tuple[U8, F16]:
    """int8 tiles (R/8, C/32, 256) u8 and scales (R/8, C/32, 8) f16 of bfloat16 `bits` (R, C) u16.

    Raises: QuantError as formats.encode_int8.
    """
    groups, blocks = tile_counts(*bits.shape)
    scales = scales_to_tiles(int8_scales(_group_extremes(bits)))
    tiles = np.empty((groups, blocks, TILE_BYTES["int8"]), np.uint8)
    _tile_int8(bits.reshape(groups, TILE_ROWS, blocks, GROUP), _divisors(scales), tiles.view(np.int8))
    return tiles, scales


def tile_int4(bits: U16) -> tuple[U8, F16]:
    """int4 tiles (R/8, C/32, 128) u8 and scales (R/8, C/32, 8) f16 of bfloat16 `bits` (R, C) u16.

    Raises: QuantError as formats.encode_int4.
    """
    groups, blocks = tile_counts(*bits.shape)
    scales = scales_to_tiles(int4_scales(_group_extremes(bits)))
    tiles = np.empty((groups, blocks, TILE_BYTES["int4"]), np.uint8)
    _tile_int4(bits.reshape(groups, TILE_ROWS, blocks, GROUP), _divisors(scales), tiles)
    return tiles, scales


def encode_int8_rows(bits: U16) -> tuple[I8, F16]:
    """formats.encode_int8 of bfloat16 `bits` (R, C) u16: codes (R, C) i8, scales (R, C/32) f16."""
    scales = int8_scales(_group_extremes(bits))
    codes = np.empty(bits.shape, np.int8)
    _encode_int8(in_groups(bits), _divisors(scales), in_groups(codes))
    return codes, scales


def tile_mxfp4(blocks: U8, out: U8) -> None:
    """Write the mxfp4 tiles of published `blocks` (R, C/32, 16) u8 into `out` (R/8, C/32, 128) u8."""
    rows, columns, _ = blocks.shape
    groups, _ = tile_counts(rows, columns * GROUP)
    _permute_blocks(blocks.view(np.uint32).reshape(groups, TILE_ROWS, columns, 4), out.view(np.uint32))


def _divisors(scales: F16) -> NDArray[np.float32]:
    """`scales` as float32, 1 in place of 0: such a group is all zero."""
    divisors = scales.astype(np.float32)
    divisors[divisors == 0] = 1
    return divisors


def _group_extremes(bits: U16) -> NDArray[np.float32]:
    """formats.group_extremes of bfloat16 `bits` (R, C) u16: NaN counts as the largest."""
    groups = in_groups(bits)
    extremes = np.empty(groups.shape[:2], np.uint16)
    _extreme_bits(groups, extremes)
    return bf16_to_f32(extremes)


@_jit
def _extreme_bits(bits: Any, out: Any) -> None:
    """out (R, B) u16: the bits of largest magnitude among `bits` (R, B, 32) u16; ties go to the negative."""
    for row in range(bits.shape[0]):
        for block in range(bits.shape[1]):
            largest = np.int32(0)
            for column in range(32):
                value = np.int32(bits[row, block, column])
                # Magnitude first, sign last: one integer maximum finds both.
                largest = max(largest, ((value & 0x7FFF) << 1) | (value >> 15))
            out[row, block] = (largest >> 1) | ((largest & 1) << 15)


@numba.njit(inline="always")
def _code(bits: Any, divisor: Any) -> Any:
    """A bfloat16's code before clipping, float32: value / divisor to nearest, ties to even."""
    return np.rint(np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32) / divisor)


@_jit
def _tile_int8(bits: Any, divisors: Any, out: Any) -> None:
    """out (G, B, 256) i8 tiles of `bits` (G, 8, B, 32) u16 with `divisors` (G, B, 8) f32."""
    for group in range(bits.shape[0]):
        for block in range(bits.shape[2]):
            for row in range(8):
                for column in range(32):
                    code = _code(bits[group, row, block, column], divisors[group, block, row])
                    code = min(max(code, np.float32(-127)), np.float32(127))
                    out[group, block, 32 * (column >> 2) + 4 * row + (column & 3)] = np.int8(code)


@_jit
def _encode_int8(bits: Any, divisors: Any, out: Any) -> None:
    """out (R, B, 32) i8 codes of `bits` (R, B, 32) u16 with `divisors` (R, B) f32."""
    for row in range(bits.shape[0]):
        for block in range(bits.shape[1]):
            for column in range(32):
                code = _code(bits[row, block, column], divisors[row, block])
                code = min(max(code, np.float32(-127)), np.float32(127))
                out[row, block, column] = np.int8(code)


@_jit
def _tile_int4(bits: Any, divisors: Any, out: Any) -> None:
    """out (G, B, 128) u8 tiles of `bits` (G, 8, B, 32) u16 with `divisors` (G, B, 8) f32."""
    for group in range(bits.shape[0]):
        for block in range(bits.shape[2]):
            for row in range(8):
                divisor = divisors[group, block, row]
                for j in range(4):
                    for i in range(4):
                        low = _code(bits[group, row, block, 8 * j + i], divisor)
                        high = _code(bits[group, row, block, 8 * j + 4 + i], divisor)
                        low = min(max(low, np.float32(-8)), np.float32(7))
                        high = min(max(high, np.float32(-8)), np.float32(7))
                        byte = (np.int32(low) & 15) | ((np.int32(high) & 15) << 4)
                        out[group, block, 32 * j + 4 * row + i] = byte


@_jit
def _tile_pairs(pairs: Any, out: Any) -> None:
    """out (G, B, 128) u32 tiles of `pairs` (G, 8, B, 16) u32, two bfloat16 each."""
    for group in range(pairs.shape[0]):
        for block in range(pairs.shape[2]):
            for pair in range(16):
                for row in range(8):
                    out[group, block, 8 * pair + row] = pairs[group, row, block, pair]


@_jit
def _permute_blocks(words: Any, out: Any) -> None:
    """out (G, B, 32) u32 tiles of `words` (G, 8, B, 4) u32, eight published columns each.

    A word's nibbles 0 1 2 3 4 5 6 7 become 0 4 1 5 2 6 3 7: swap its middle bytes, then the middle
    nibbles of each half.
    """
    for group in range(words.shape[0]):
        for block in range(words.shape[2]):
            for j in range(4):
                for row in range(8):
                    word = words[group, row, block, j]
                    swap = (word ^ (word >> np.uint32(8))) & np.uint32(0x0000FF00)
                    word ^= swap ^ (swap << np.uint32(8))
                    swap = (word ^ (word >> np.uint32(4))) & np.uint32(0x00F000F0)
                    word ^= swap ^ (swap << np.uint32(4))
                    out[group, block, 8 * j + row] = word
