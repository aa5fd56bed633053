"""Tiles of 8 rows × 32 columns: the order in which the kernels read a matrix.

    mxfp4, int4   byte 32*j + 4*r + i: row r's columns 8*j + i (low nibble) and 8*j + 4 + i (high); j, i < 4
    int8          byte 32*q + 4*r + i: row r's column 4*q + i; q < 8, i < 4
    bf16          16-bit unit 16*p + 2*r + i: row r's column 2*p + i; p < 16, i < 2

So one 32-byte load brings 8 rows × 8, 4 or 2 columns, and every 4-byte lane belongs to one row.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import QuantError
from quant.format.numbers import U8
from quant.format.weight_formats import TILE_COLUMNS, TILE_ROWS, WEIGHT_FORMATS


def to_tiles(codes: NDArray[Any], dtype: str) -> U8:
    """Tiles (R/8, C/32, tile bytes) u8 of `codes` (R, C).

    `codes` are u8 in 0..15 for mxfp4, i8 in -8..7 for int4, i8 for int8, u16 bits for bf16.
    Raises: QuantError for rows or columns that don't fill tiles.
    """
    groups, blocks = tile_counts(*codes.shape)
    form = WEIGHT_FORMATS[dtype]
    shape = (groups, blocks, form.tile_bytes)
    if form.bits == 4:
        nibbles = (codes & 15).astype(np.uint8).reshape(groups, TILE_ROWS, blocks, 4, 2, 4)  # g r b j half i
        nibbles = nibbles.transpose(4, 0, 2, 3, 1, 5)  # half g b j r i
        return (nibbles[0] | nibbles[1] << 4).reshape(shape)
    wide = 32 // form.bits  # columns in a row's 4-byte lane
    lanes = codes.reshape(groups, TILE_ROWS, blocks, TILE_COLUMNS // wide, wide).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(lanes).view(np.uint8).reshape(shape)


def from_tiles(tiles: U8, dtype: str) -> NDArray[Any]:
    """Codes (R, C) of `tiles` (R/8, C/32, tile bytes) u8: the exact inverse of to_tiles."""
    groups, blocks, _ = tiles.shape
    rows, columns = groups * TILE_ROWS, blocks * TILE_COLUMNS
    form = WEIGHT_FORMATS[dtype]
    if form.bits == 4:
        packed = tiles.reshape(groups, blocks, 4, TILE_ROWS, 4)  # g b j r i
        nibbles = np.stack([packed & 15, packed >> 4])  # half g b j r i
        codes = nibbles.transpose(1, 4, 2, 3, 0, 5).reshape(rows, columns)  # g r b j half i
        return codes if not form.signed else ((codes ^ 8).astype(np.int8) - np.int8(8))
    wide, kind = 32 // form.bits, (np.int8 if form.signed else np.uint16)
    lanes = tiles.view(kind).reshape(groups, blocks, TILE_COLUMNS // wide, TILE_ROWS, wide)
    return lanes.transpose(0, 3, 1, 2, 4).reshape(rows, columns)


def scales_to_tiles(scales: NDArray[Any]) -> NDArray[Any]:
    """Scales (R/8, C/32, 8) of `scales` (R, C/32): a tile's eight lie together. Any dtype."""
    rows, blocks = scales.shape
    groups, _ = tile_counts(rows, blocks * TILE_COLUMNS)
    return np.ascontiguousarray(scales.reshape(groups, TILE_ROWS, blocks).transpose(0, 2, 1))


def scales_from_tiles(tiles: NDArray[Any]) -> NDArray[Any]:
    """Scales (R, C/32) of `tiles` (R/8, C/32, 8): the exact inverse of scales_to_tiles."""
    groups, blocks, _ = tiles.shape
    return tiles.transpose(0, 2, 1).reshape(groups * TILE_ROWS, blocks)


def tile_counts(rows: int, columns: int) -> tuple[int, int]:
    """How many tiles lie below and beside each other. Raises: QuantError for weights that don't fill them."""
    if rows % TILE_ROWS or columns % TILE_COLUMNS:
        raise QuantError(f"{rows} × {columns} weights do not fill tiles of {TILE_ROWS} × {TILE_COLUMNS}")
    return rows // TILE_ROWS, columns // TILE_COLUMNS
