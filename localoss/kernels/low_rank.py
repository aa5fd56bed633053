"""What adapters add to a product: B @ (A @ x), a matrix of few rows and one of few columns, beside W @ x.

Both are float32 in panels of 8 rows: (rows / 8, columns, 8). x lies block by block, (columns / 32, T, 32), as
for matmul.py; what lies between, A @ x, is (T, ranks) f32. Each sum is one token's alone and always in the
same order, so that no other token changes a bit of it. Parameters named after buffers are addresses, unless
their description says "array".

Of a mixture of experts each set of adapters has a pair of factors for each expert:

    factors  (sets, addresses, ranks, between, stride): arrays sets (T,) i32, each token's set or -1 for none;
             addresses (S, 4, E) i64 of gate_up's A and B and of down's, 0 for none; ranks (S, 2) i64 of
             these two pairs, multiples of 8. between (P, stride) f32.
"""

import numpy as np
from numba import prange

from localoss.kernels.isa.common import force_inline
from localoss.kernels.simd import (
    add,
    broadcast_f32,
    broadcast_i8,
    fma,
    inner,
    jit,
    load_f32x8,
    parallel,
    store_f32x8,
    zero,
)

GATE_UP, DOWN = 0, 1
SERIAL_PRODUCTS = 1 << 18  # with fewer, waking the other threads costs more than they save: 20 µs of one


@inner
def _multiply_panel(panel, x, blocks, columns, stride):
    """A panel of 8 rows times `blocks` blocks of `columns` floats, a multiple of 4, `stride` bytes apart."""
    a, b, c, d = zero(), zero(), zero(), zero()
    for block in range(blocks):
        place = x + stride * block
        for i in range(0, columns, 4):
            a = fma(load_f32x8(panel), broadcast_f32(place + 4 * i), a)
            b = fma(load_f32x8(panel + 32), broadcast_f32(place + 4 * i + 4), b)
            c = fma(load_f32x8(panel + 64), broadcast_f32(place + 4 * i + 8), c)
            d = fma(load_f32x8(panel + 96), broadcast_f32(place + 4 * i + 12), d)
            panel += 128
    return add(add(a, b), add(c, d))


@inner
def _multiply_panel_int8(panel, codes, scales, blocks, stride, offset):
    """The same for blocks of 32 bytes, each plus `offset`, with a scale each; stride: of both, in blocks."""
    total = zero()
    for block in range(blocks):
        place, a, b = codes + 32 * stride * block, zero(), zero()
        for i in range(0, 32, 2):
            a = fma(load_f32x8(panel), broadcast_i8(place + i, offset), a)
            b = fma(load_f32x8(panel + 32), broadcast_i8(place + i + 1, offset), b)
            panel += 64
        total = fma(add(a, b), broadcast_f32(scales + 4 * stride * block), total)
    return total


@force_inline
def _add_to(place, value):
    store_f32x8(place, add(load_f32x8(place), value))


@inner
def _reduce_panel(between, a, ranks, columns, x, rows, group):
    first, tokens, all_tokens = rows
    panel = a + 32 * columns * group
    for t in range(tokens):
        value = _multiply_panel(panel, x + 128 * (first + t), columns // 32, 32, 128 * all_tokens)
        store_f32x8(between + 4 * ranks * t + 32 * group, value)


@parallel
def _reduce(between, a, ranks, columns, x, rows):
    if ranks * columns * rows[1] <= SERIAL_PRODUCTS:
        for group in range(ranks // 8):
            _reduce_panel(between, a, ranks, columns, x, rows, group)
    else:
        for group in prange(ranks // 8):
            _reduce_panel(between, a, ranks, columns, x, rows, np.int64(group))


@inner
def _expand_panel(out, row_bytes, panels, between, ranks, rows, n):
    first, tokens, _ = rows
    group, panel, first_rank, count = panels[n, 0], panels[n, 1], panels[n, 2], panels[n, 3]
    for t in range(tokens):
        value = _multiply_panel(panel, between + 4 * (ranks * t + first_rank), 1, count, 0)
        _add_to(out + row_bytes * (first + t) + 32 * group, value)


@parallel
def _expand(out, row_bytes, panels, between, ranks, rows):
    if 8 * len(panels) * ranks * rows[1] <= SERIAL_PRODUCTS:
        for n in range(len(panels)):
            _expand_panel(out, row_bytes, panels, between, ranks, rows, n)
    else:
        for n in prange(len(panels)):
            _expand_panel(out, row_bytes, panels, between, ranks, rows, np.int64(n))


@jit
def add_low_rank(out, row_bytes, factors, x, rows, between):
    """Add B @ (A @ x) to some rows of `out`, row_bytes apart, f32.

    factors (a, ranks, columns, panels): A (ranks, columns) in panels, and an array (n, 4) i64 of B's: the
    group of 8 columns of `out`, the panel's address, the first of its ranks, and how many. rows (first,
    tokens, all tokens): which of x. between (tokens, ranks) f32 is overwritten.
    """
    a, ranks, columns, panels = factors
    _reduce(between, a, ranks, columns, x, rows)
    _expand(out, row_bytes, panels, between, ranks, rows)


@inner
def _reduce_expert(kind, factors, x, sources, starts, expert, panel):
    sets, addresses, ranks, between, width = factors
    exact, floats, codes, scales, blocks, stride, offset = x
    for p in range(starts[expert], starts[expert + 1]):
        its = sets[sources[p]]
        if its < 0 or 8 * panel >= ranks[its, kind] or addresses[its, 2 * kind, expert] == 0:
            continue
        a = addresses[its, 2 * kind, expert] + 1024 * blocks * panel
        place = np.int64(sources[p]) if kind == GATE_UP else p
        if exact:
            value = _multiply_panel(a, floats + 128 * place, blocks, 32, 128 * stride)
        else:
            value = _multiply_panel_int8(a, codes + 32 * place, scales + 4 * place, blocks, stride, offset)
        store_f32x8(between + 4 * width * p + 32 * panel, value)


@parallel
def reduce_for_experts(kind, factors, x, sources, starts, active):
    """Write A @ x of each place to `between`; kind: GATE_UP or DOWN.

    x (exact, floats, codes, scales, blocks, stride, offset): floats (blocks, stride, 32) f32 if exact, else
    codes of int8 with scales. Arrays: sources (P,) i32, the token of each place; starts (E + 1,) i64 and
    active (n,) i32 as sort_by_expert and list_active give them.
    """
    sets, addresses, ranks, between, width = factors
    panels = width // 8
    if 32 * x[4] * width * len(sources) <= SERIAL_PRODUCTS:
        for work in range(len(active) * panels):
            expert = active[work // panels]
            _reduce_expert(kind, factors, x, sources, starts, expert, work % panels)
    else:
        for work in prange(len(active) * panels):
            expert, panel = active[np.int64(work) // panels], np.int64(work) % panels
            its = (sets, addresses, ranks, between, width)  # Numba takes no array in a tuple into a loop
            _reduce_expert(kind, its, x, sources, starts, expert, panel)


@inner
def add_to_panel(sums, factors, sources, expert, group, groups, first, tokens):
    """Add B @ between to gate_up's sums (groups, tokens, 8) of the row groups from `group` on, and of the
    places from `first` on.
    """
    sets, addresses, ranks, between, width = factors
    for t in range(tokens):
        its = sets[sources[first + t]]
        if its < 0 or addresses[its, 1, expert] == 0:
            continue
        count = ranks[its, GATE_UP]
        for g in range(groups):
            b = addresses[its, 1, expert] + 32 * count * (group + g)
            value = _multiply_panel(b, between + 4 * width * (first + t), 1, count, 0)
            _add_to(sums + 32 * (tokens * g + t), value)


@inner
def _expand_group(y, groups, factors, sources, starts, active, group):
    sets, addresses, ranks, between, width = factors
    for n in range(len(active)):
        expert = active[n]
        for p in range(starts[expert], starts[expert + 1]):
            its = sets[sources[p]]
            if its >= 0 and addresses[its, 3, expert] != 0:
                count = ranks[its, DOWN]
                b = addresses[its, 3, expert] + 32 * count * group
                value = _multiply_panel(b, between + 4 * width * p, 1, count, 0)
                _add_to(y + 32 * (groups * p + group), value)


@parallel
def expand_for_experts(y, groups, factors, sources, starts, active):
    """Add down's B @ between to y (P, 8 * groups) f32, of the places of `active`; see reduce_for_experts."""
    sets, addresses, ranks, between, width = factors
    if 8 * groups * width * len(sources) <= SERIAL_PRODUCTS:
        for group in range(groups):
            _expand_group(y, groups, factors, sources, starts, active, group)
    else:
        for group in prange(groups):
            its = (sets, addresses, ranks, between, width)
            _expand_group(y, groups, its, sources, starts, active, np.int64(group))
