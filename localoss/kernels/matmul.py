"""Matrix products over tiles.

Threads take runs of row groups from a shared counter, and multiply panels of 8 of them (64 rows). Parameters
are addresses, numbers, and plain tuples of them:

    tiles    (kind, codes, scales, bias, groups, blocks): a matrix of 8 * groups rows and 32 * blocks columns.
             bias (8 * groups,) f32, or 0 for none. kind, codes, scales: see products.py.
    inputs   (exact, x, x_scales): x (blocks, T, 32) f32 if exact, else int8 with x_scales (blocks, T) f32.
    workers  (threads, scratch, counter, panel): scratch (threads, SCRATCH_BYTES), counter an i64; PANELS'
             address, see calls.py.
"""

from numba import types

from localoss.kernels import isa
from localoss.kernels.calls import Routine, call_for_number, packing
from localoss.kernels.isa.common import force_inline
from localoss.kernels.pairs import write_row_pair
from localoss.kernels.products import add_row_group, clear
from localoss.kernels.sharing import share
from localoss.kernels.simd import add, fetch_add, inner, jit, load_f32x8, store_f32x8, store_i64
from localoss.plan.sizes import PAIR_SCRATCH_BYTES, PANEL, SCRATCH_BYTES, TILE_SCRATCH_BYTES, TOKENS_AT_ONCE
from quant.format.weight_formats import BY_KERNEL_KIND, TILE_ROWS

TILE_BYTES = tuple(form.tile_bytes for form in BY_KERNEL_KIND)
_PAIR_TOKENS = 8  # fewer wait for the weights, however fast they are multiplied
SCALES_BYTES = tuple(TILE_ROWS * form.scale_bytes for form in BY_KERNEL_KIND)


@inner
def _pair(kind, exact, sums, codes, scales, x, x_scales, tokens, stride, blocks, scratch):
    """Multiply a row group and the next one, if that is worth it: how many row groups it did."""
    if exact or tokens < _PAIR_TOKENS:
        return 0
    work = scratch + TILE_SCRATCH_BYTES
    write_row_pair(kind, sums, codes, scales, x, x_scales, tokens, stride, blocks, work)
    return 2


@inner
def _no_pair(kind, exact, sums, codes, scales, x, x_scales, tokens, stride, blocks, scratch):
    return 0


_try_pair = _pair if isa.HAS_PAIRS else _no_pair


@inner
def multiply_panel(tiles, group, groups, inputs, first, tokens, stride, scratch):
    """Multiply `groups` row groups from `group` on with `tokens` tokens from `first` on, of `stride` in all.

    Gives the address, in a thread's scratch, of the sums (groups, tokens, 8) f32. It is called by address.
    """
    kind, codes, scales, _, _, blocks = tiles
    exact, x, x_scales = inputs
    sums = scratch + TILE_SCRATCH_BYTES + PAIR_SCRATCH_BYTES
    clear(sums, groups * tokens)
    x, x_scales = x + (128 if exact else 32) * first, x_scales + 4 * first
    g = 0
    while g < groups:
        tile = (group + g) * blocks
        its_sums = sums + 32 * tokens * g
        its_codes, its_scales = codes + TILE_BYTES[kind] * tile, scales + SCALES_BYTES[kind] * tile
        sources = its_codes, its_scales, x, x_scales, tokens, stride, blocks, scratch
        done = _try_pair(kind, exact, its_sums, *sources) if g + 1 < groups else 0
        if done == 0:
            add_row_group(kind, exact, its_sums, *sources)
            done = 1
        g += done
    return sums


_NUMBER = types.int64
TILES, INPUTS = types.UniTuple(_NUMBER, 6), types.Tuple((types.boolean, _NUMBER, _NUMBER))
WORKERS = types.UniTuple(_NUMBER, 4)
PANELS = Routine(multiply_panel, TILES, _NUMBER, _NUMBER, INPUTS, *[_NUMBER] * 4)
_put, _take = packing((_NUMBER, TILES, INPUTS, _NUMBER, types.boolean, WORKERS))


@inner
def store_panel(out, tiles, group, groups, sums, first, tokens, adding):
    """Write sums (groups, tokens, 8) plus bias to `out` (T, all rows) f32, or add them if `adding`."""
    _, _, _, bias, all_groups, _ = tiles
    for g in range(group, group + groups):
        for t in range(tokens):
            value = load_f32x8(sums + 32 * ((g - group) * tokens + t))
            if bias:
                value = add(value, load_f32x8(bias + 32 * g))
            place = out + 32 * (all_groups * (first + t) + g)
            if adding:
                value = add(value, load_f32x8(place))
            store_f32x8(place, value)


@force_inline
def take_run(counter, threads, count):
    """Take the next run of `count` pieces for this thread: its first, and the one after its last.

    A round gives each of `threads` a run, together half of what is left: memory streams best over long runs,
    and short ones at the end let cores of different speed finish together. Nothing is left if both are the
    same.
    """
    ticket, begin = fetch_add(counter, 1), 0
    while begin < count:
        size = max((count - begin) // (2 * threads), 1)
        if ticket < threads:
            begin = min(begin + ticket * size, count)
            return begin, min(begin + size, count)
        ticket -= threads
        begin += threads * size
    return count, count


@inner
def _take_panels(out, tiles, inputs, tokens, adding, threads, scratch, counter, panel):
    while True:
        begin, end = take_run(counter, threads, tiles[4])
        if begin == end:
            break
        for group in range(begin, end, PANEL):
            count = min(PANEL, end - group)
            for first in range(0, tokens, TOKENS_AT_ONCE):
                here = min(TOKENS_AT_ONCE, tokens - first)
                sums = call_for_number(panel, (tiles, group, count, inputs, first, here, tokens, scratch))
                store_panel(out, tiles, group, count, sums, first, here, adding)


@inner
def take_panels(begin, end, arguments):
    out, tiles, inputs, tokens, adding, workers = _take(arguments)
    threads, scratch, counter, panel = workers
    for thread in range(begin, end):
        own_scratch = scratch + SCRATCH_BYTES * thread
        _take_panels(out, tiles, inputs, tokens, adding, threads, own_scratch, counter, panel)


@jit
def matmul(out, tiles, inputs, tokens, adding, workers, at):
    """Write W @ x + bias to `out` (tokens, 8 * groups) f32, or add it if `adding`.

    tiles, inputs, workers: see the module; at: of take_panels, as activations.py has it.
    Oracle: tests/support/naive.py.
    """
    threads, _, counter, _ = workers
    store_i64(counter, 0)
    parts = threads if tiles[4] > PANEL else 1
    share(at, _put((out, tiles, inputs, tokens, adding, workers)), parts, parts)
