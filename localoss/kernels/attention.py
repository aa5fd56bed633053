"""The KV cache's layout, and attention with sinks and a sliding window; kv_store.py writes what it reads.

The cache of one layer is five arrays: keys (K, S/16, head_dim, 16), values (K, S, head_dim), and for int8
alone, else with 0 for S: the keys' low bits (K, S/16, head_dim/4, 16) u8, scales of keys (K, S/16, G, 16) u8
and of values (K, S, G) u8, for G groups of 16 channels (the last may have 8). S slots, a multiple of
KEYS_AT_ONCE; position p has the slot p % S. Numbers are float32, float16 bits (uint16), or int8. Keys lie 16
positions side by side (KEY_LANES), so that scores need no sums across lanes. An int8 cache's keys have 10
bits, of which bits 2i and 2i + 1 of low byte q are channel 4q + i's lowest; kv_store.py says what they leave
out. It is decoded a block at a time.
Parameters named after buffers are addresses, unless their description says "array".
"""

from functools import lru_cache

import numpy as np
from numba import types
from numba.extending import overload

from localoss.kernels import isa
from localoss.kernels.calls import Routine, call, packing
from localoss.kernels.isa.common import force_inline
from localoss.kernels.kv_store import FLOAT_ROWS, NUMBER, OFFSETS, SCALES, cache_type, storing, turn_bias
from localoss.kernels.sharing import SHARE, share, worker
from localoss.kernels.simd import (
    add,
    div,
    exp,
    fetch_add,
    fma,
    inner_in_order,
    jit_in_order,
    load_f32x8,
    load_i8x8,
    max_lanes,
    maximum,
    mul,
    prefetch,
    splat_f32,
    store_f32,
    store_f32x8,
    store_i64,
    sub,
    sum_lanes,
    zero,
)
from localoss.kernels.wide import (
    LANES,
    ROWS,
    TILE_COLUMNS,
    add_eights,
    add_products,
    load_f32w,
    load_key_codes,
    load_key_scales,
    load_tile,
    maximum_of_eights,
    splat_f32w,
    store_f32w,
    store_tile,
)
from localoss.plan.sizes import CACHE_GROUP, KEY_LANES, KEYS_AT_ONCE, KV_NUMPY_DTYPES, QUERIES_AT_ONCE


def _load_values(cache, address):
    """8 cached numbers at `address` as float32; the type of array `cache` says how they are written."""


@overload(_load_values, jit_options={"forceinline": True})
def _overload_load(cache, address):
    if cache.dtype == types.uint16:
        return lambda cache, address: isa.load_f16(address)
    return lambda cache, address: load_f32x8(address)


def _load_wide(cache, address):
    """As _load_values, LANES numbers."""


@overload(_load_wide, jit_options={"forceinline": True})
def _overload_wide(cache, address):
    if cache.dtype == types.uint16:
        return lambda cache, address: isa.load_f16w(address)
    return lambda cache, address: load_f32w(address)


@inner_in_order
def _decode_keys(out, turned, cache, within, k, slot, count, ahead):
    """Write the keys of `count` slots from `slot` on to out (1, KEYS_AT_ONCE/16, head_dim, 16) f32, an array.

    turned (head_dim,) f32 array: the head's bias, turned to the first of their positions. The slots `ahead`
    further will be wanted next.
    """
    keys, _, low, scales, _ = cache
    half = len(turned) // 2
    for lane in range(0, count, LANES):
        group, at, place = (slot + lane) // KEY_LANES, lane // KEY_LANES, lane % KEY_LANES
        for i in range(half):
            j = i + half
            cos, sin = load_f32w(within[0, i, lane:].ctypes.data), load_f32w(within[1, i, lane:].ctypes.data)
            x, y = splat_f32w(turned[i]), splat_f32w(turned[j])
            first, second = keys[k, group, i, place:].ctypes.data, keys[k, group, j, place:].ctypes.data
            prefetch(first + ahead * len(turned))
            prefetch(second + ahead * len(turned))
            a = load_key_codes(first, low[k, group, i // 4, place:].ctypes.data, np.int32(2 * (i % 4)))
            b = load_key_codes(second, low[k, group, j // 4, place:].ctypes.data, np.int32(2 * (j % 4)))
            a_scale = load_key_scales(scales[k, group, i // CACHE_GROUP, place:].ctypes.data)
            b_scale = load_key_scales(scales[k, group, j // CACHE_GROUP, place:].ctypes.data)
            a, b = mul(a, a_scale), mul(b, b_scale)
            store_f32w(out[0, at, i, place:].ctypes.data, add(a, sub(mul(x, cos), mul(y, sin))))
            store_f32w(out[0, at, j, place:].ctypes.data, add(b, add(mul(y, cos), mul(x, sin))))


@inner_in_order
def _decode_values(out, cache, k, slot, count, ahead):
    """Write the values of `count` slots from `slot` on to out (1, KEYS_AT_ONCE, head_dim) f32, an array."""
    values, scales = cache[1], cache[4]
    for n in range(count):
        row = values[k, slot + n].ctypes.data
        prefetch(row + ahead * out.shape[2])
        for i in range(0, out.shape[2], 8):
            scale = splat_f32(SCALES[scales[k, slot + n, i // CACHE_GROUP]])
            store_f32x8(out[0, n, i:].ctypes.data, mul(load_i8x8(row + i), scale))


def _open_block(cache, offsets, scratch, k, base, count, ahead):
    """A block of head k's keys and values, `count` positions from `base` on, as the products take them.

    Gives the arrays of keys and values, the head and the slot there, and how many slots further on those
    lie that will be wanted next.
    """


@overload(_open_block)
def _overload_open(cache, offsets, scratch, k, base, count, ahead):
    def decoded(cache, offsets, scratch, k, base, count, ahead):
        _, slots, head_dim = cache[1].shape
        size = KEYS_AT_ONCE * head_dim
        keys = scratch[:size].reshape(1, KEYS_AT_ONCE // KEY_LANES, head_dim, KEY_LANES)
        values = scratch[size : 2 * size].reshape(1, KEYS_AT_ONCE, head_dim)
        turned = scratch[2 * size : 2 * size + head_dim]
        turn_bias(turned, offsets, k, base)
        _decode_keys(keys, turned, cache, offsets[2], k, base % slots, count, ahead)
        _decode_values(values, cache, k, base % slots, count, ahead)
        return keys, values, np.int64(0), np.int64(0), np.int64(0)

    def plain(cache, offsets, scratch, k, base, count, ahead):
        return cache[0], cache[1], k, base % cache[1].shape[1], ahead

    return decoded if cache[0].dtype == types.int8 else plain


@force_inline
def _add_tile(out, rows, cache, vectors, next_vector, stride, count, ahead):
    """Add to a tile of sums the products of `count` numbers of each row with as many pairs of vectors.

    out, rows: addresses, and bytes from row to row. vectors: the address of the first pair's first vector,
    whose second one is `next_vector` bytes further; stride: bytes from pair to pair; ahead: how far off lie
    those that will be wanted next.
    """
    tile = load_tile(out)
    for n in range(count):
        pair = vectors + stride * n
        prefetch(pair + ahead)
        prefetch(pair + next_vector + ahead)
        values = _load_wide(cache, pair), _load_wide(cache, pair + next_vector)
        tile = add_products(tile, (rows[0] + 4 * n, rows[1]), values)
    store_tile(out, tile)


@inner_in_order
def _softmax_step(scores, low, high, count, out, head_dim, largest, total):
    """Turn a row of `count` scores into weights, those outside low ≤ i < high into none.

    Rescales the row's results so far, `out` (head_dim,) f32, to the new maximum. Gives the new maximum and
    sum.
    """
    for i in range(low):
        store_f32(scores + 4 * i, -np.inf)
    for i in range(high, count):
        store_f32(scores + 4 * i, -np.inf)
    top = splat_f32w(largest)
    for i in range(0, count, LANES):
        top = maximum(top, load_f32w(scores + 4 * i))
    new = max_lanes(maximum_of_eights(splat_f32(largest), top))
    new_v, sums = splat_f32w(new), zero()
    for i in range(0, count, LANES):
        store_f32w(scores + 4 * i, exp(sub(load_f32w(scores + 4 * i), new_v)))
    for i in range(low):  # exp gives e**-87, which would decide between equally near sums
        store_f32(scores + 4 * i, np.float32(0.0))
    for i in range(high, count):
        store_f32(scores + 4 * i, np.float32(0.0))
    for i in range(0, count, LANES):
        sums = add_eights(sums, load_f32w(scores + 4 * i))
    if new > largest:
        factor = np.exp(largest - new)
        for i in range(0, 4 * head_dim, 32):
            store_f32x8(out + i, mul(load_f32x8(out + i), splat_f32(factor)))
        total *= factor
    return new, total + sum_lanes(sums)


@inner_in_order
def _score_keys(scores, queries, keys, k, slot, count, ahead):
    """Write queries · keys to scores (rows, KEYS_AT_ONCE), for `count` positions from `slot` on. Arrays."""
    rows, head_dim = queries.shape
    stride = KEY_LANES * keys.itemsize
    next_vector = LANES * keys.itemsize if LANES < KEY_LANES else head_dim * stride
    scores[:, :count] = 0.0
    for r in range(0, rows, ROWS):
        for i in range(0, count, TILE_COLUMNS):
            _add_tile(
                (scores[r, i:].ctypes.data, 4 * KEYS_AT_ONCE),
                (queries[r].ctypes.data, 4 * head_dim),
                keys,
                keys[k, (slot + i) // KEY_LANES].ctypes.data,
                next_vector,
                stride,
                head_dim,
                ahead * head_dim * keys.itemsize,
            )


@inner_in_order
def _add_values(results, scores, values, k, slot, count, ahead):
    """Add scores · values to results (rows, head_dim), for `count` positions from `slot` on. Arrays."""
    rows, head_dim = results.shape
    in_tiles = head_dim // TILE_COLUMNS * TILE_COLUMNS
    stride = head_dim * values.itemsize
    for r in range(0, rows, ROWS):
        for i in range(0, in_tiles, TILE_COLUMNS):
            _add_tile(
                (results[r, i:].ctypes.data, 4 * head_dim),
                (scores[r].ctypes.data, 4 * KEYS_AT_ONCE),
                values,
                values[k, slot, i:].ctypes.data,
                LANES * values.itemsize,
                stride,
                count,
                ahead * stride,
            )
    for r in range(rows):
        for i in range(in_tiles, head_dim, 8):  # no published model has such heads
            total, here = load_f32x8(results[r, i:].ctypes.data), values[k, slot, i:].ctypes.data
            for n in range(count):
                total = fma(_load_values(values, here + stride * n), splat_f32(scores[r, n]), total)
            store_f32x8(results[r, i:].ctypes.data, total)


@inner_in_order
def _attend_block(out, out_first, qkv, cache, offsets, sinks, position, chunk, window, k, scratch, threads):
    """Attention of query rows first … first + tokens - 1, for the heads that share key/value head `k`.

    Source: online softmax, https://arxiv.org/abs/1805.02867; a sink is one more score with no value.
    """
    first, tokens = chunk
    kv_heads, slots, head_dim = cache[1].shape
    group = len(sinks) // kv_heads
    rows = (tokens * group + 7) // 8 * 8
    size = rows * head_dim
    queries, results = (
        scratch[:size].reshape(rows, head_dim),
        scratch[size : 2 * size].reshape(rows, head_dim),
    )
    scores = scratch[2 * size : 2 * size + rows * KEYS_AT_ONCE].reshape(rows, KEYS_AT_ONCE)
    state = scratch[2 * size + rows * KEYS_AT_ONCE :][: 2 * rows].reshape(2, rows)
    decoded = scratch[2 * size + rows * (KEYS_AT_ONCE + 2) :]
    queries[:], results[:] = 0.0, 0.0
    factor = np.float32(head_dim**-0.5)
    for row in range(tokens * group):
        head = k * group + row % group
        query = qkv[first + row // group, head * head_dim : (head + 1) * head_dim]
        for i in range(0, head_dim, 8):
            scaled = mul(load_f32x8(query[i:].ctypes.data), splat_f32(factor))
            store_f32x8(queries[row, i:].ctypes.data, scaled)
        state[0, row], state[1, row] = sinks[head], 1.0

    begin, end = position + first, position + first + tokens
    lowest = max(begin - window + 1, 0) if window else 0
    lowest = lowest // KEYS_AT_ONCE * KEYS_AT_ONCE
    for base in range(lowest, end, KEYS_AT_ONCE):
        count = min((end - base + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS, KEYS_AT_ONCE)
        following = (base + KEYS_AT_ONCE) % slots
        if base + KEYS_AT_ONCE >= end:  # this thread's next head, most likely
            following = lowest % slots + (threads * slots if k + threads < kv_heads else 0)
        keys, values, head, slot, ahead = _open_block(
            cache, offsets, decoded, k, base, count, following - base % slots
        )
        _score_keys(scores, queries, keys, head, slot, count, ahead)
        for row in range(tokens * group):
            here = begin + row // group
            low = max(here - window + 1 - base, 0) if window else 0
            state[0, row], state[1, row] = _softmax_step(
                scores[row].ctypes.data,
                min(low, count),
                min(max(here + 1 - base, 0), count),  # 0: a later token of the block opened these keys
                count,
                results[row].ctypes.data,
                head_dim,
                state[0, row],
                state[1, row],
            )
        _add_values(results, scores, values, head, slot, count, ahead)

    for row in range(tokens * group):
        column, total = (k * group + row % group) * head_dim, splat_f32(state[1, row])
        for i in range(column, column + head_dim, 8):
            value = div(load_f32x8(results[row, i - column :].ctypes.data), total)
            store_f32x8(out[i // 32, out_first + first + row // group, i % 32 :].ctypes.data, value)


def _kinds(kv_dtype):
    sinks, out = types.Array(types.float32, 1, "C"), types.Array(types.float32, 3, "C")
    own = (out, NUMBER, FLOAT_ROWS, cache_type(kv_dtype), OFFSETS, sinks, NUMBER)
    return (*own, NUMBER, FLOAT_ROWS, NUMBER, NUMBER)


_put, _take = packing({kv_dtype: _kinds(kv_dtype) for kv_dtype in KV_NUMPY_DTYPES})


@lru_cache
def attending(kv_dtype):
    """What a thread does of attention, for caches of `kv_dtype`."""

    @inner_in_order
    def attend_in_threads(begin, end, arguments):
        own = _take(arguments, kv_dtype)
        out, out_first, qkv, cache, offsets, sinks, position, window, scratch, counter, block = own
        kv_heads, tokens = cache[1].shape[0], len(qkv)
        blocks = (tokens + QUERIES_AT_ONCE - 1) // QUERIES_AT_ONCE
        for thread in range(begin, end):
            while True:
                work = fetch_add(counter, 1)
                if work >= blocks * kv_heads:
                    break
                first = work // kv_heads * QUERIES_AT_ONCE
                count = min(QUERIES_AT_ONCE, tokens - first)
                chunk, k = (first, count), work % kv_heads
                its = (out, out_first, qkv, cache, offsets, sinks, position, chunk, window, k)
                call(block, (*its, scratch[thread], len(scratch)))

    return worker(attend_in_threads)


@jit_in_order
def attention(out, out_first, qkv, cache, offsets, sinks, position, window, scratch, counter, at):
    """Write each query's attention over its sequence's cache to `out`, block by block.

    Arrays: out (H * head_dim / 32, ≥ out_first + T, 32) f32, of which tokens out_first, … are overwritten;
    qkv (T, (H + 2K) * head_dim) f32 with rotated queries, of positions `position`, position + 1, …, already
    in the cache; cache: the layer's arrays; offsets: see kv_store.py; sinks (H,) f32; scratch (threads,
    attention_scratch_floats()) f32. counter: the address of an i64. window: 0 for full attention. at: of
    `attending`, as activations.py has it, and of _attend_block. Sums in f32. Oracle: tests/support/naive.py.
    """
    store_i64(counter, 0)
    threads = len(scratch)
    own = (out, out_first, qkv, cache, offsets, sinks, position, window, scratch, counter, at[2])
    share(at, _put(own), threads, threads)


@lru_cache
def routines(kv_dtype):
    """Addresses, for caches of `kv_dtype`.

    What shares work, what threads do to store and to attend, and _attend_block.
    """
    chunk, scratch = types.UniTuple(NUMBER, 2), types.Array(types.float32, 1, "C")
    block = Routine(_attend_block, *_kinds(kv_dtype)[:7], chunk, NUMBER, NUMBER, scratch, NUMBER)
    return SHARE.address, storing(kv_dtype).address, attending(kv_dtype).address, block.address
