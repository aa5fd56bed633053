"""Rotary embedding, the KV cache's layout, and attention with sinks and a sliding window.

The cache of one layer is four arrays: keys (K, S/16, head_dim, 16), values (K, S, head_dim), and the scales
of each, for S slots; position p has the slot p % S, S a multiple of KEYS_AT_ONCE. Numbers are float32,
float16 bits (uint16), or int8 with a float32 scale per head and slot, (K, S); the other two have scales (K,
0). Keys lie 16 positions side by side (KEY_LANES), so that scores need no sums across lanes. Parameters named
after buffers are addresses, unless their description says "array".
"""

import numpy as np
from numba import prange, types
from numba.extending import overload

from localoss.kernels import isa
from localoss.kernels.activations import SERIAL_TOKENS
from localoss.kernels.isa.common import force_inline
from localoss.kernels.simd import (
    absolute,
    add,
    div,
    exp,
    fetch_add,
    fma,
    jit,
    jit_in_order,
    load_f32x8,
    load_i8x8,
    max_lanes,
    maximum,
    minimum,
    mul,
    parallel,
    parallel_in_order,
    prefetch,
    round_even,
    splat_f32,
    store_f32,
    store_f32x8,
    store_i8x8,
    store_i64,
    sub,
    sum_lanes,
    to_bytes,
    zero,
)
from localoss.kernels.wide import (
    LANES,
    ROWS,
    TILE_COLUMNS,
    add_eights,
    add_products,
    load_f32w,
    load_i8w,
    load_tile,
    maximum_of_eights,
    splat_f32w,
    store_f32w,
    store_tile,
)
from localoss.plan.sizes import KEY_LANES, KEYS_AT_ONCE, QUERIES_AT_ONCE

_F16_LARGEST = np.float32(65504.0)


def _load_values(cache, address):
    """8 cached numbers at `address` as float32; the type of array `cache` says how they are written."""


@overload(_load_values, jit_options={"forceinline": True})
def _overload_load(cache, address):
    if cache.dtype == types.uint16:
        return lambda cache, address: isa.load_f16(address)
    if cache.dtype == types.int8:
        return lambda cache, address: load_i8x8(address)
    return lambda cache, address: load_f32x8(address)


def _load_wide(cache, address):
    """As _load_values, LANES numbers."""


@overload(_load_wide, jit_options={"forceinline": True})
def _overload_wide(cache, address):
    if cache.dtype == types.uint16:
        return lambda cache, address: isa.load_f16w(address)
    if cache.dtype == types.int8:
        return lambda cache, address: load_i8w(address)
    return lambda cache, address: load_f32w(address)


@force_inline
def _within_f16(value):
    """`value`, 8 float32, within what float16 holds: one infinity would reach every token that shares its
    block of keys, and later conversations in the same cache, as 0 * inf. A NaN stays one.
    """
    return minimum(splat_f32(_F16_LARGEST), maximum(splat_f32(-_F16_LARGEST), value))


def _store_values(cache, address, value):
    """Write 8 float32 at `address`, as array `cache` keeps them; beyond float16, its largest number."""


@overload(_store_values, jit_options={"forceinline": True})
def _overload_store(cache, address, value):
    if cache.dtype == types.uint16:
        return lambda cache, address, value: isa.store_f16(address, _within_f16(value))
    if cache.dtype == types.int8:
        return lambda cache, address, value: store_i8x8(address, to_bytes(round_even(value), np.int32(0)))
    return lambda cache, address, value: store_f32x8(address, value)


def _keep_scale(cache, scales, k, slot, numbers, head_dim):
    """What to multiply a head's numbers, head_dim f32 at address `numbers`, by before storing them.

    Its reciprocal becomes scales[k, slot]: max|number| / 127 where `cache` is int8.
    """


@overload(_keep_scale, jit_options={"forceinline": True})
def _overload_scale(cache, scales, k, slot, numbers, head_dim):
    def scale(cache, scales, k, slot, numbers, head_dim):
        top = zero()
        for i in range(0, head_dim, 8):
            top = maximum(top, absolute(load_f32x8(numbers + 4 * i)))
        largest = max_lanes(top)
        scales[k, slot] = largest / np.float32(127.0)
        return np.float32(127.0) / largest if largest > np.float32(1e-30) else np.float32(0.0)

    if cache.dtype == types.int8:
        return scale
    return lambda cache, scales, k, slot, numbers, head_dim: np.float32(1.0)


def _multiply_columns(cache, scores, scales, k, slot, count):
    """scores[:, i] *= scales[k, slot + i] for i < count, where `cache` has scales. Arrays."""


@overload(_multiply_columns)
def _overload_columns(cache, scores, scales, k, slot, count):
    def multiply(cache, scores, scales, k, slot, count):
        for row in range(len(scores)):
            for i in range(0, count, 8):
                here = scores[row, i:].ctypes.data
                store_f32x8(here, mul(load_f32x8(here), load_f32x8(scales[k, slot + i :].ctypes.data)))

    if cache.dtype == types.int8:
        return multiply
    return lambda cache, scores, scales, k, slot, count: None


@jit
def _rotate(row, cos, sin, head_dim):
    """Rotate one head in place. row (head_dim,), cos and sin (head_dim/2,) f32 arrays."""
    half = head_dim // 2
    in_vectors = half // 8 * 8
    for i in range(0, in_vectors, 8):
        first, second = row[i:].ctypes.data, row[half + i :].ctypes.data
        x, y = load_f32x8(first), load_f32x8(second)
        c, s = load_f32x8(cos[i:].ctypes.data), load_f32x8(sin[i:].ctypes.data)
        store_f32x8(first, sub(mul(x, c), mul(y, s)))
        store_f32x8(second, add(mul(y, c), mul(x, s)))
    for i in range(in_vectors, half):
        x, y = row[i], row[i + half]
        row[i] = x * cos[i] - y * sin[i]
        row[i + half] = y * cos[i] + x * sin[i]


@jit
def _store_head(row, numbers, scales, k, slot):
    """Write a head's numbers, an array of f32, to `row` (head_dim,) in the cache's dtype."""
    factor = splat_f32(_keep_scale(row, scales, k, slot, numbers.ctypes.data, len(row)))
    for i in range(0, len(row), 8):
        _store_values(row, row[i:].ctypes.data, mul(load_f32x8(numbers[i:].ctypes.data), factor))


@jit
def _rotate_and_store_token(qkv, cache, cos, sin, t, slot, heads):
    keys, values, key_scales, value_scales = cache
    kv_heads, _, head_dim = values.shape
    for k in range(kv_heads):  # a key's numbers lie in many cache lines: all are asked for at once
        for i in range(head_dim):
            prefetch(keys[k, slot // KEY_LANES, i].ctypes.data)
        prefetch(values[k, slot].ctypes.data)
    for head in range(heads + kv_heads):
        _rotate(qkv[t, head * head_dim : (head + 1) * head_dim], cos[t], sin[t], head_dim)
    for k in range(kv_heads):
        row = values[k, slot]
        _store_head(row, qkv[t, (heads + k) * head_dim :], key_scales, k, slot)  # on the way to their lane
        for i in range(head_dim):
            keys[k, slot // KEY_LANES, i, slot % KEY_LANES] = row[i]
        _store_head(row, qkv[t, (heads + kv_heads + k) * head_dim :], value_scales, k, slot)


@parallel
def rotate_and_store(qkv, cache, cos, sin, position, heads):
    """Rotate queries and keys in place, and write keys and values to the cache.

    Arrays: qkv (T, (heads + 2K) * head_dim) f32, of positions `position`, position + 1, …; cache: the
    layer's four arrays; cos, sin (T, head_dim/2) f32, YaRN's concentration included.
    """
    slots = cache[1].shape[1]
    if len(qkv) <= SERIAL_TOKENS:
        for t in range(len(qkv)):
            _rotate_and_store_token(qkv, cache, cos, sin, t, (position + t) % slots, heads)
    else:
        for i in prange(len(qkv)):
            t = np.int64(i)
            _rotate_and_store_token(qkv, cache, cos, sin, t, (position + t) % slots, heads)


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


@jit_in_order
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


@jit_in_order
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


@jit_in_order
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


@jit_in_order
def _attend_block(out, out_first, qkv, cache, sinks, position, first, tokens, window, k, scratch, threads):
    """Attention of query rows first … first + tokens - 1, for the heads that share key/value head `k`.

    Source: online softmax, https://arxiv.org/abs/1805.02867; a sink is one more score with no value.
    """
    keys, values, key_scales, value_scales = cache
    kv_heads, slots, head_dim = values.shape
    group = len(sinks) // kv_heads
    rows = (tokens * group + 7) // 8 * 8
    size = rows * head_dim
    queries, results = (
        scratch[:size].reshape(rows, head_dim),
        scratch[size : 2 * size].reshape(rows, head_dim),
    )
    scores = scratch[2 * size : 2 * size + rows * KEYS_AT_ONCE].reshape(rows, KEYS_AT_ONCE)
    state = scratch[2 * size + rows * KEYS_AT_ONCE :][: 2 * rows].reshape(2, rows)
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
        slot = base % slots
        following = (base + KEYS_AT_ONCE) % slots
        if base + KEYS_AT_ONCE >= end:  # this thread's next head, most likely
            following = lowest % slots + (threads * slots if k + threads < kv_heads else 0)
        ahead = following - slot
        _score_keys(scores, queries, keys, k, slot, count, ahead)
        _multiply_columns(keys, scores, key_scales, k, slot, count)
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
        _multiply_columns(values, scores, value_scales, k, slot, count)
        _add_values(results, scores, values, k, slot, count, ahead)

    for row in range(tokens * group):
        column, total = (k * group + row % group) * head_dim, splat_f32(state[1, row])
        for i in range(column, column + head_dim, 8):
            value = div(load_f32x8(results[row, i - column :].ctypes.data), total)
            store_f32x8(out[i // 32, out_first + first + row // group, i % 32 :].ctypes.data, value)


@parallel_in_order
def attention(out, out_first, qkv, cache, sinks, position, window, scratch, counter):
    """Write each query's attention over its sequence's cache to `out`, block by block.

    Arrays: out (H * head_dim / 32, ≥ out_first + T, 32) f32, of which tokens out_first, … are overwritten;
    qkv (T, (H + 2K) * head_dim) f32 with rotated queries, of positions `position`, position + 1, …, already
    in the cache; cache: the layer's four arrays; sinks (H,) f32; scratch (threads,
    attention_scratch_floats()) f32; counter: the address of an i64. window: 0 for full attention. Sums in
    f32. Oracle: tests/support/naive.py.
    """
    kv_heads = cache[1].shape[0]
    tokens = len(qkv)
    blocks = (tokens + QUERIES_AT_ONCE - 1) // QUERIES_AT_ONCE
    store_i64(counter, 0)
    for thread in prange(len(scratch)):
        while True:
            work = fetch_add(counter, 1)
            if work >= blocks * kv_heads:
                break
            first = work // kv_heads * QUERIES_AT_ONCE
            count = min(QUERIES_AT_ONCE, tokens - first)
            _attend_block(
                out,
                out_first,
                qkv,
                cache,
                sinks,
                position,
                first,
                count,
                window,
                work % kv_heads,
                scratch[thread],
                len(scratch),
            )
