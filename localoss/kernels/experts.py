"""The two matrices of each expert, over all tokens that chose it.

(token, expert) pairs are sorted by expert: expert e has the places starts[e] to starts[e + 1] of the
activations, see activations.sort_by_expert. Its weights are one run of bytes at the address runs[e], laid out
as quant/layout.py's ExpertRun says. Parameters named after buffers are addresses, unless their description
says "array".
"""

from numba import prange

from localoss.kernels.activations import quantize_block, swiglu
from localoss.kernels.isa.common import force_inline
from localoss.kernels.matmul import (
    PANEL,
    SCALES_BYTES,
    SCRATCH_BYTES,
    TILE_BYTES,
    TOKENS_AT_ONCE,
    multiply_panel,
    store_panel,
)
from localoss.kernels.products import OFFSETS, TILE_SCRATCH_BYTES
from localoss.kernels.simd import (
    add,
    even_lanes,
    fetch_add,
    jit,
    load_f32x8,
    odd_lanes,
    parallel,
    splat_f32,
    store_f32x8,
)


@jit
def list_active(active, starts):
    """Write the experts that have tokens to `active` (E,) i32 array, and give their number."""
    count = 0
    for e in range(len(starts) - 1):
        if starts[e + 1] > starts[e]:
            active[count] = e
            count += 1
    return count


@force_inline
def _activate_16_rows(sums, bias, tokens, alpha, limit):
    """SwiGLU of two row groups: rows gate, up, gate, up, … to 8 activations."""
    a = add(load_f32x8(sums), load_f32x8(bias))
    b = add(load_f32x8(sums + 32 * tokens), load_f32x8(bias + 32))
    return swiglu(even_lanes(a, b), odd_lanes(a, b), alpha, limit)


@jit
def _activate_panel(kind, exact, h, h_scales, sums, bias, tokens, alpha, limit):
    """SwiGLU of 64 rows, sums (8, tokens, 8): a block of 32 activations per token, quantized unless exact."""
    alpha, limit = splat_f32(alpha), splat_f32(limit)
    pair = 64 * tokens  # bytes of two row groups
    for t in range(tokens):
        v0 = _activate_16_rows(sums + 32 * t, bias, tokens, alpha, limit)
        v1 = _activate_16_rows(sums + 32 * t + pair, bias + 64, tokens, alpha, limit)
        v2 = _activate_16_rows(sums + 32 * t + 2 * pair, bias + 128, tokens, alpha, limit)
        v3 = _activate_16_rows(sums + 32 * t + 3 * pair, bias + 192, tokens, alpha, limit)
        if exact:
            store_f32x8(h + 128 * t, v0)
            store_f32x8(h + 128 * t + 32, v1)
            store_f32x8(h + 128 * t + 64, v2)
            store_f32x8(h + 128 * t + 96, v3)
        else:
            quantize_block(h + 32 * t, h_scales + 4 * t, v0, v1, v2, v3, OFFSETS[kind])


@parallel
def gate_up(
    h,
    h_scales,
    kind,
    exact,
    runs,
    codes,
    scales,
    bias,
    x,
    x_scales,
    starts,
    active,
    intermediate,
    blocks,
    alpha,
    limit,
    scratch,
    threads,
    counter,
):
    """Write SwiGLU(W_e @ x + bias_e) of each place to h (I/32, P, 32): f32 if exact, else int8 with h_scales
    (I/32, P).

    Arrays: runs (E,) i64; starts (E + 1,) i32; active (n,) i32, the experts that have places; counter (1,)
    i64. codes, scales, bias: byte offsets in a run. x (blocks, P, 32), x_scales: see products.add_row_group.
    alpha, limit: SwiGLU's. Oracle: tests/naive.py.
    """
    counter[0] = 0
    panels = intermediate // 32
    places = starts[len(starts) - 1]
    h_bytes = 128 if exact else 32
    for thread in prange(threads):
        tile = scratch + SCRATCH_BYTES * thread
        sums = tile + TILE_SCRATCH_BYTES
        while True:
            work = fetch_add(counter.ctypes.data, 1)
            if work >= panels * len(active):
                break
            expert, panel = active[work // panels], work % panels
            run = runs[expert]
            tiles = PANEL * panel * blocks
            for first in range(starts[expert], starts[expert + 1], TOKENS_AT_ONCE):
                here = min(TOKENS_AT_ONCE, starts[expert + 1] - first)
                multiply_panel(
                    kind,
                    exact,
                    sums,
                    run + codes + TILE_BYTES[kind] * tiles,
                    run + scales + SCALES_BYTES[kind] * tiles,
                    x,
                    x_scales,
                    first,
                    here,
                    places,
                    PANEL,
                    blocks,
                    tile,
                )
                place = panel * places + first
                _activate_panel(
                    kind,
                    exact,
                    h + h_bytes * place,
                    h_scales + 4 * place,
                    sums,
                    run + bias + 32 * PANEL * panel,
                    here,
                    alpha,
                    limit,
                )


@parallel
def down(
    y,
    kind,
    exact,
    runs,
    codes,
    scales,
    bias,
    h,
    h_scales,
    starts,
    active,
    groups,
    blocks,
    scratch,
    threads,
    counter,
):
    """Write W_e @ h + bias_e of each place to y (P, 8 * groups) f32.

    h (blocks, P, 32); all else as gate_up has it. Oracle: tests/naive.py.
    """
    counter[0] = 0
    panels = (groups + PANEL - 1) // PANEL
    places = starts[len(starts) - 1]
    for thread in prange(threads):
        tile = scratch + SCRATCH_BYTES * thread
        sums = tile + TILE_SCRATCH_BYTES
        while True:
            work = fetch_add(counter.ctypes.data, 1)
            if work >= panels * len(active):
                break
            expert, group = active[work // panels], PANEL * (work % panels)
            run, count, tiles = runs[expert], min(PANEL, groups - group), group * blocks
            for first in range(starts[expert], starts[expert + 1], TOKENS_AT_ONCE):
                here = min(TOKENS_AT_ONCE, starts[expert + 1] - first)
                multiply_panel(
                    kind,
                    exact,
                    sums,
                    run + codes + TILE_BYTES[kind] * tiles,
                    run + scales + SCALES_BYTES[kind] * tiles,
                    h,
                    h_scales,
                    first,
                    here,
                    places,
                    count,
                    blocks,
                    tile,
                )
                store_panel(
                    y + 32 * group,
                    sums,
                    run + bias + 32 * group,
                    first,
                    here,
                    count,
                    8 * groups,
                    False,
                )
