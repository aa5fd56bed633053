"""What the converter spends its time on, jitted; equal to numbers.py and tiles.py bit for bit.

`weights` are bfloat16 bits (u16) or float32, C-order.

The scale rules stay in numbers.py: the jitted loops find each group's extreme, NumPy makes the scales of
these, and the jitted loops quantize straight into tiles.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from quant.format.jit import bits_of, jit, words_of
from quant.format.jit_scales import best_int_scales, best_mxfp4_scales
from quant.format.numbers import (
    F16,
    F32,
    GROUP,
    I8,
    INT4,
    INT4_CALIBRATED,
    INT8,
    U8,
    Weights,
    f32_to_bf16,
    in_groups,
    int4_scales,
    int8_scales,
)
from quant.format.tiles import scales_to_tiles, tile_counts
from quant.format.weight_formats import BF16, MXFP4, TILE_ROWS
from quant.format.weight_formats import INT4 as INT4_FORMAT
from quant.format.weight_formats import INT8 as INT8_FORMAT


def tile_bf16(weights: Weights) -> U8:
    """bf16 tiles (R/8, C/32, 512) u8 of `weights` (R, C)."""
    bits = weights if weights.dtype == np.uint16 else f32_to_bf16(weights)
    groups, blocks = tile_counts(*bits.shape)
    tiles = np.empty((groups, blocks, BF16.tile_bytes), np.uint8)
    _tile_pairs(bits.view(np.uint32).reshape(groups, TILE_ROWS, blocks, 16), tiles.view(np.uint32))
    return tiles


def tile_int8(weights: Weights) -> tuple[U8, F16]:
    """int8 tiles (R/8, C/32, 256) u8 and scales (R/8, C/32, 8) f16 of `weights` (R, C).

    Raises: QuantError as formats.encode_int8.
    """
    groups, blocks = tile_counts(*weights.shape)
    words, shift = words_of(weights)
    scales = scales_to_tiles(best_int_scales(words, shift, int8_scales, INT8))
    tiles = np.empty((groups, blocks, INT8_FORMAT.tile_bytes), np.uint8)
    _tile_int8(
        words.reshape(groups, TILE_ROWS, blocks, GROUP), shift, _divisors(scales), tiles.view(np.uint32)
    )
    return tiles, scales


def tile_int4(weights: Weights, moments: F32 | None = None) -> tuple[U8, F16]:
    """int4 tiles (R/8, C/32, 128) u8 and scales (R/8, C/32, 8) f16 of `weights` (R, C); moments (C,).

    Raises: QuantError as formats.encode_int4.
    """
    groups, blocks = tile_counts(*weights.shape)
    words, shift = words_of(weights)
    form = INT4 if moments is None else INT4_CALIBRATED
    scales = scales_to_tiles(best_int_scales(words, shift, int4_scales, form, moments))
    tiles = np.empty((groups, blocks, INT4_FORMAT.tile_bytes), np.uint8)
    _tile_int4(words.reshape(groups, TILE_ROWS, blocks, GROUP), shift, _divisors(scales), tiles)
    return tiles, scales


def encode_int8_rows(weights: Weights) -> tuple[I8, F16]:
    """formats.encode_int8 of `weights` (R, C): codes (R, C) i8, scales (R, C/32) f16."""
    words, shift = words_of(weights)
    scales = best_int_scales(words, shift, int8_scales, INT8)
    codes = np.empty(weights.shape, np.int8)
    _encode_int8(in_groups(words), shift, _divisors(scales), in_groups(codes))
    return codes, scales


def encode_mxfp4_blocks(weights: Weights) -> tuple[U8, U8]:
    """formats.encode_mxfp4 of `weights` (R, C), packed: blocks (R, C/32, 16) u8, scales (R, C/32) u8."""
    words, shift = words_of(weights)
    scales = best_mxfp4_scales(words, shift)
    blocks = np.empty((*scales.shape, 16), np.uint8)
    _encode_mxfp4(in_groups(words), shift, scales, blocks)
    return blocks, scales


def tile_mxfp4(blocks: U8, out: U8) -> None:
    """Write the mxfp4 tiles of published `blocks` (R, C/32, 16) u8 into `out` (R/8, C/32, 128) u8."""
    rows, columns, _ = blocks.shape
    groups, _ = tile_counts(rows, columns * GROUP)
    _permute_blocks(blocks.view(np.uint32).reshape(groups, TILE_ROWS, columns, 4), out.view(np.uint32))


def tile_mxfp4_blocks(blocks: U8, scales: U8) -> tuple[U8, U8]:
    """mxfp4 tiles (R/8, C/32, 128) and scales (R/8, C/32, 8), u8, of published `blocks` and `scales`."""
    groups, columns = tile_counts(blocks.shape[0], blocks.shape[1] * GROUP)
    tiles = np.empty((groups, columns, MXFP4.tile_bytes), np.uint8)
    tile_mxfp4(blocks, tiles)
    return tiles, scales_to_tiles(scales)


def untile_mxfp4(tiles: U8) -> U8:
    """Published blocks (R, C/32, 16) u8 of mxfp4 `tiles` (R/8, C/32, 128) u8: the inverse of tile_mxfp4."""
    groups, columns, _ = tiles.shape
    blocks = np.empty((groups * TILE_ROWS, columns, 16), np.uint8)
    words = blocks.view(np.uint32).reshape(groups, TILE_ROWS, columns, 4)
    _unpermute_blocks(np.ascontiguousarray(tiles).view(np.uint32), words)
    return blocks


def unpack_ggml_mxfp4(packed: U8) -> tuple[U8, U8]:
    """Published blocks (R, B, 16) and scales (R, B) of ggml's `packed` (R, B, 17), all u8.

    ggml's byte i holds columns i and i + 16 of a block, after the scale; the published 2i and 2i + 1.
    """
    blocks = np.empty((*packed.shape[:2], 16), np.uint8)
    _unpack_ggml_mxfp4(packed, blocks)
    return blocks, np.ascontiguousarray(packed[:, :, 0])


@jit
def skip_texts(data: Any, position: int, count: int) -> int:
    """Where `count` texts in `data` (n,) u8 end, each after its length in 8 bytes; -1 if beyond the data."""
    for _ in range(count):
        size: Any = 0
        for i in range(8):
            byte = np.int64(data[position + i]) if position + i < len(data) else np.int64(255)
            size |= byte << (8 * i)
        position += 8 + size
        if not 0 <= size <= len(data) or position > len(data):
            return -1
    return position


def _divisors(scales: F16) -> NDArray[np.float32]:
    """`scales` as float32, 1 in place of 0: such a group is all zero."""
    divisors = scales.astype(np.float32)
    divisors[divisors == 0] = 1
    return divisors


@numba.njit(inline="always", error_model="numpy")
def _encode_group(words: Any, shift: int, divisor: Any, lowest: int, highest: int, codes: Any) -> None:
    """codes (32,) i8: `words` (32,) / divisor, to nearest, ties to even, cut to lowest…highest."""
    for column in range(32):
        code = np.rint(bits_of(words[column], shift).view(np.float32) / divisor)
        codes[column] = np.int8(min(max(code, np.float32(lowest)), np.float32(highest)))


@jit
def _tile_int8(words: Any, shift: int, divisors: Any, out: Any) -> None:
    """out (G, B, 64) u32 tiles of `words` (G, 8, B, 32) with `divisors` (G, B, 8) f32."""
    codes = np.empty((8, 32), np.int8)
    fours = codes.view(np.uint32)
    for group in range(words.shape[0]):
        for block in range(words.shape[2]):
            for row in range(8):
                divisor = divisors[group, block, row]
                _encode_group(words[group, row, block], shift, divisor, -127, 127, codes[row])
            for four in range(8):
                for row in range(8):
                    out[group, block, 8 * four + row] = fours[row, four]


@jit
def _encode_int8(words: Any, shift: int, divisors: Any, out: Any) -> None:
    """out (R, B, 32) i8 codes of `words` (R, B, 32) with `divisors` (R, B) f32."""
    codes = np.empty(32, np.int8)  # of its own: the compiler needn't fear that it overlaps `words`
    for row in range(words.shape[0]):
        for block in range(words.shape[1]):
            _encode_group(words[row, block], shift, divisors[row, block], -127, 127, codes)
            for column in range(32):  # no slice: the message of its error alone takes Numba a second
                out[row, block, column] = codes[column]


@jit
def _tile_int4(words: Any, shift: int, divisors: Any, out: Any) -> None:
    """out (G, B, 128) u8 tiles of `words` (G, 8, B, 32) with `divisors` (G, B, 8) f32."""
    codes = np.empty(32, np.int8)
    for group in range(words.shape[0]):
        for block in range(words.shape[2]):
            for row in range(8):
                divisor = divisors[group, block, row]
                _encode_group(words[group, row, block], shift, divisor, -8, 7, codes)
                for j in range(4):
                    for i in range(4):
                        low, high = np.int32(codes[8 * j + i]), np.int32(codes[8 * j + 4 + i])
                        out[group, block, 32 * j + 4 * row + i] = (low & 15) | ((high & 15) << 4)


@numba.njit(inline="always")
def _fp4_code(word: Any, shift: int, unit: Any) -> Any:
    """The FP4 code, i32, of a weight times `unit`: counts the middles below it; ties go to the even code."""
    bits = bits_of(word, shift)
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF)).view(np.float32) * unit
    code = np.int32(magnitude > np.float32(0.25)) + np.int32(magnitude >= np.float32(0.75))
    code += np.int32(magnitude > np.float32(1.25)) + np.int32(magnitude >= np.float32(1.75))
    code += np.int32(magnitude > np.float32(2.5)) + np.int32(magnitude >= np.float32(3.5))
    code += np.int32(magnitude > np.float32(5))
    return code | (np.int32(bits >> np.uint32(31)) << 3)


@jit
def _encode_mxfp4(words: Any, shift: int, scales: Any, out: Any) -> None:
    """out (R, B, 16) u8 published blocks of `words` (R, B, 32) with `scales` (R, B) u8."""
    codes = np.empty(32, np.int32)
    for row in range(words.shape[0]):
        for block in range(words.shape[1]):
            unit = np.float32(2.0) ** np.float32(127 - np.int32(scales[row, block]))
            for column in range(32):
                codes[column] = _fp4_code(words[row, block, column], shift, unit)
            for i in range(16):
                out[row, block, i] = codes[2 * i] | (codes[2 * i + 1] << 4)


@jit
def _tile_pairs(pairs: Any, out: Any) -> None:
    """out (G, B, 128) u32 tiles of `pairs` (G, 8, B, 16) u32, two bfloat16 each."""
    for group in range(pairs.shape[0]):
        for block in range(pairs.shape[2]):
            for pair in range(16):
                for row in range(8):
                    out[group, block, 8 * pair + row] = pairs[group, row, block, pair]


@jit
def _permute_blocks(words: Any, out: Any) -> None:
    """out (G, B, 32) u32 tiles of `words` (G, 8, B, 4) u32, eight published columns each.

    A word's nibbles 0 1 2 3 4 5 6 7 become 0 4 1 5 2 6 3 7: swap its middle bytes, then the middle
    nibbles of each half. That goes through whole rows, in vectors; then their words are put in place.
    """
    count = words.shape[2]
    rows = np.empty((8, count * 4), np.uint32)
    for group in range(words.shape[0]):
        for row in range(8):
            given, swapped = words[group, row].reshape(count * 4), rows[row]
            for i in range(count * 4):
                word = given[i]
                swap = (word ^ (word >> np.uint32(8))) & np.uint32(0x0000FF00)
                word ^= swap ^ (swap << np.uint32(8))
                swap = (word ^ (word >> np.uint32(4))) & np.uint32(0x00F000F0)
                swapped[i] = word ^ swap ^ (swap << np.uint32(4))
        for block in range(count):
            for j in range(4):
                for row in range(8):
                    out[group, block, 8 * j + row] = rows[row, 4 * block + j]


@jit
def _unpack_ggml_mxfp4(packed: Any, out: Any) -> None:
    """out (R, B, 16) u8 published blocks of ggml's `packed` (R, B, 17) u8."""
    for row in range(packed.shape[0]):
        for block in range(packed.shape[1]):
            for i in range(8):
                first = np.int32(packed[row, block, 1 + 2 * i])
                second = np.int32(packed[row, block, 2 + 2 * i])
                out[row, block, i] = (first & 15) | ((second & 15) << 4)
                out[row, block, 8 + i] = (first >> 4) | (second & 0xF0)


@jit
def _unpermute_blocks(words: Any, out: Any) -> None:
    """out (G, 8, B, 4) u32 published blocks of tiles `words` (G, B, 32) u32: _permute_blocks undone."""
    for group in range(words.shape[0]):
        for block in range(words.shape[1]):
            for j in range(4):
                for row in range(8):
                    word = words[group, block, 8 * j + row]
                    swap = (word ^ (word >> np.uint32(4))) & np.uint32(0x00F000F0)
                    word ^= swap ^ (swap << np.uint32(4))
                    swap = (word ^ (word >> np.uint32(8))) & np.uint32(0x0000FF00)
                    word ^= swap ^ (swap << np.uint32(8))
                    out[group, row, block, j] = word
