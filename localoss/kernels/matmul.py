"""Matrix products over tiles.

Threads take panels of 8 row groups (64 rows) from a shared counter, so that cores of different speed finish
together. Parameters named after buffers are addresses, unless their description says "array".
"""

from numba import prange

from localoss.kernels.products import TILE_SCRATCH_BYTES, add_row_group, clear
from localoss.kernels.simd import add, fetch_add, jit, load_f32x8, parallel, store_f32x8

PANEL = 8  # row groups that a thread takes at once
TOKENS_AT_ONCE = 64  # whose sums stay in the first-level cache
SCRATCH_BYTES = TILE_SCRATCH_BYTES + 32 * PANEL * TOKENS_AT_ONCE  # per thread

TILE_BYTES = (128, 128, 256, 512)  # by kind: MXFP4, INT4, INT8, BF16
SCALES_BYTES = (8, 16, 16, 0)


@jit
def multiply_panel(
    kind, exact, sums, codes, scales, x, x_scales, first, tokens, stride, groups, blocks, tile
):
    """Write to `sums` (groups, tokens, 8) f32 the products of row groups with tokens `first` and after."""
    x += (128 if exact else 32) * first
    clear(sums, groups * tokens)
    for g in range(groups):
        tiles = g * blocks
        add_row_group(
            kind,
            exact,
            sums + 32 * tokens * g,
            codes + TILE_BYTES[kind] * tiles,
            scales + SCALES_BYTES[kind] * tiles,
            x,
            x_scales + 4 * first,
            tokens,
            stride,
            blocks,
            tile,
        )


@jit
def store_panel(out, sums, bias, first, tokens, groups, columns, adding):
    """Write `sums` plus `bias` (0: none) to, or if `adding` add it to, rows of `out` (T, columns) f32."""
    for g in range(groups):
        for t in range(tokens):
            value = load_f32x8(sums + 32 * (g * tokens + t))
            if bias:
                value = add(value, load_f32x8(bias + 32 * g))
            place = out + 4 * columns * (first + t) + 32 * g
            if adding:
                value = add(value, load_f32x8(place))
            store_f32x8(place, value)


@parallel
def matmul(
    out,
    kind,
    exact,
    codes,
    scales,
    bias,
    x,
    x_scales,
    tokens,
    groups,
    blocks,
    adding,
    scratch,
    threads,
    counter,
):
    """Write W @ x + bias to `out` (tokens, 8 * groups) f32, or add it if `adding`.

    kind, exact, codes, scales, x (blocks, tokens, 32), x_scales: as products.add_row_group has them, for
    `groups` row groups. bias (8 * groups,) f32 or 0. scratch (threads, SCRATCH_BYTES). counter array (1,)
    i64.
    Oracle: tests/naive.py.
    """
    counter[0] = 0
    panels = (groups + PANEL - 1) // PANEL
    for thread in prange(threads):
        tile = scratch + SCRATCH_BYTES * thread
        sums = tile + TILE_SCRATCH_BYTES
        while True:
            panel = fetch_add(counter.ctypes.data, 1)
            if panel >= panels:
                break
            group = PANEL * panel
            count = min(PANEL, groups - group)
            tiles = group * blocks
            for first in range(0, tokens, TOKENS_AT_ONCE):
                here = min(TOKENS_AT_ONCE, tokens - first)
                multiply_panel(
                    kind,
                    exact,
                    sums,
                    codes + TILE_BYTES[kind] * tiles,
                    scales + SCALES_BYTES[kind] * tiles,
                    x,
                    x_scales,
                    first,
                    here,
                    tokens,
                    count,
                    blocks,
                    tile,
                )
                panel_bias = bias + 32 * group if bias else 0
                store_panel(out + 32 * group, sums, panel_bias, first, here, count, 8 * groups, adding)
