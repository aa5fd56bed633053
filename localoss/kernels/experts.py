"""The two matrices of each expert, over all tokens that chose it.

(token, expert) pairs are sorted by expert: expert e has the places starts[e] to starts[e + 1] of the
activations, see activations.sort_by_expert. Its weights are one run of bytes at the address runs[e], laid
out as quant/format/layout.py's ExpertRun says. Parameters named after buffers are addresses, unless their
description says "array".
"""

import numpy as np
from numba import prange, types

from localoss.kernels.activations import quantize_block, swiglu
from localoss.kernels.calls import call_for_number, packing
from localoss.kernels.isa.common import force_inline
from localoss.kernels.low_rank import add_to_panel
from localoss.kernels.matmul import INPUTS, TILES, WORKERS, store_panel, take_run
from localoss.kernels.products import OFFSETS
from localoss.kernels.sharing import share
from localoss.kernels.simd import (
    add,
    even_lanes,
    inner,
    jit,
    load_f32x8,
    odd_lanes,
    parallel,
    splat_f32,
    store_f32x8,
    store_i64,
)
from localoss.plan.sizes import PANEL, SCRATCH_BYTES, TOKENS_AT_ONCE

_NUMBER, _FACTOR = types.int64, types.float32
_PLACES, _IDS = types.Array(types.int64, 1, "C"), types.Array(types.int32, 1, "C")
_put_gate_up, _take_gate_up = packing(
    (INPUTS, TILES, _PLACES, INPUTS, _PLACES, _IDS, _FACTOR, _FACTOR, WORKERS)
)
_put_down, _take_down = packing((_NUMBER, TILES, _PLACES, INPUTS, _PLACES, _IDS, WORKERS))


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


@inner
def _activate_panel(tiles, panel, sums, h, first, tokens, stride, alpha, limit):
    """SwiGLU of sums (8, tokens, 8), 64 rows: block `panel` of h for `tokens` tokens from `first` on."""
    bias = tiles[3] + 32 * PANEL * panel
    exact, codes, scales = h
    alpha, limit = splat_f32(alpha), splat_f32(limit)
    pair = 64 * tokens  # bytes of two row groups' sums
    for t in range(tokens):
        v0 = _activate_16_rows(sums + 32 * t, bias, tokens, alpha, limit)
        v1 = _activate_16_rows(sums + 32 * t + pair, bias + 64, tokens, alpha, limit)
        v2 = _activate_16_rows(sums + 32 * t + 2 * pair, bias + 128, tokens, alpha, limit)
        v3 = _activate_16_rows(sums + 32 * t + 3 * pair, bias + 192, tokens, alpha, limit)
        place = panel * stride + first + t
        if exact:
            store_f32x8(codes + 128 * place, v0)
            store_f32x8(codes + 128 * place + 32, v1)
            store_f32x8(codes + 128 * place + 64, v2)
            store_f32x8(codes + 128 * place + 96, v3)
        else:
            quantize_block(codes + 32 * place, scales + 4 * place, v0, v1, v2, v3, OFFSETS[tiles[0]])


@force_inline
def _tiles_of(tiles, run):
    """`tiles` with the byte offsets of a run made addresses."""
    kind, codes, scales, bias, groups, blocks = tiles
    return kind, run + codes, run + scales, run + bias, groups, blocks


@inner
def _run_gate_up(
    h, tiles, runs, inputs, starts, active, alpha, limit, threads, scratch, counter, panel_at, added
):
    panels, places, count = tiles[4] // PANEL, starts[-1], np.int64(PANEL)
    while True:
        begin, end = take_run(counter, threads, panels * len(active))
        if begin == end:
            break
        for work in range(begin, end):
            expert, panel = active[work // panels], work % panels
            own = _tiles_of(tiles, runs[expert])
            for first in range(starts[expert], starts[expert + 1], TOKENS_AT_ONCE):
                here = min(TOKENS_AT_ONCE, starts[expert + 1] - first)
                sums = call_for_number(
                    panel_at, (own, PANEL * panel, count, inputs, first, here, places, scratch)
                )
                if added is not None:
                    add_to_panel(sums, *added, expert, PANEL * panel, count, first, here)
                _activate_panel(own, panel, sums, h, first, here, places, alpha, limit)


@inner
def gate_up_in_threads(begin, end, arguments):
    h, tiles, runs, inputs, starts, active, alpha, limit, workers = _take_gate_up(arguments)
    threads, scratch, counter, panel = workers
    for thread in range(begin, end):
        own = scratch + SCRATCH_BYTES * thread
        _run_gate_up(h, tiles, runs, inputs, starts, active, alpha, limit, threads, own, counter, panel, None)


@jit
def gate_up(h, tiles, runs, inputs, starts, active, alpha, limit, workers, at):
    """Write SwiGLU(W_e @ x + bias_e) of each place to h, inputs of a product with I columns.

    tiles, inputs, workers: as matmul has them, but with codes, scales and bias as byte offsets in a run; at:
    of gate_up_in_threads. Arrays: runs (E,) i64; starts (E + 1,) i64; active (n,) i32, the experts that have
    places. alpha, limit: SwiGLU's. Oracle: tests/support/naive.py.
    """
    threads, _, counter, _ = workers
    store_i64(counter, 0)
    own = (h, tiles, runs, inputs, starts, active, alpha, limit, workers)
    share(at, _put_gate_up(own), threads, threads)


@parallel
def gate_up_with_adapters(h, tiles, runs, inputs, starts, active, alpha, limit, workers, added):
    """As gate_up. added: what adapters add before SwiGLU, (factors, sources) of low_rank.py."""
    threads, scratch, counter, panel = workers
    store_i64(counter, 0)
    (sets, addresses, ranks, between, width), sources = added  # Numba takes no array in a tuple into a loop
    for thread in prange(threads):
        own = scratch + SCRATCH_BYTES * thread
        its = ((sets, addresses, ranks, between, width), sources)
        _run_gate_up(h, tiles, runs, inputs, starts, active, alpha, limit, threads, own, counter, panel, its)


@inner
def _run_down(y, tiles, runs, inputs, starts, active, threads, scratch, counter, panel_at):
    groups, places = tiles[4], starts[-1]
    while True:
        begin, end = take_run(counter, threads, groups * len(active))
        if begin == end:
            break
        while begin < end:
            expert, group = active[begin // groups], begin % groups
            own, count = _tiles_of(tiles, runs[expert]), min(PANEL, groups - group, end - begin)
            begin += count
            for first in range(starts[expert], starts[expert + 1], TOKENS_AT_ONCE):
                here = min(TOKENS_AT_ONCE, starts[expert + 1] - first)
                sums = call_for_number(panel_at, (own, group, count, inputs, first, here, places, scratch))
                store_panel(y, own, group, count, sums, first, here, np.bool_(False))


@inner
def down_in_threads(begin, end, arguments):
    y, tiles, runs, inputs, starts, active, workers = _take_down(arguments)
    threads, scratch, counter, panel = workers
    for thread in range(begin, end):
        own = scratch + SCRATCH_BYTES * thread
        _run_down(y, tiles, runs, inputs, starts, active, threads, own, counter, panel)


@jit
def down(y, tiles, runs, inputs, starts, active, workers, at):
    """Write W_e @ h + bias_e of each place to y (P, 8 * groups) f32; inputs: the h that gate_up wrote.

    at: of down_in_threads. All else as gate_up has it. Oracle: tests/support/naive.py.
    """
    threads, _, counter, _ = workers
    store_i64(counter, 0)
    share(at, _put_down((y, tiles, runs, inputs, starts, active, workers)), threads, threads)
