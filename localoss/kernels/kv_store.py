"""Rotary embedding, and writing keys and values to the KV cache, whose layout attention.py describes.

An int8 cache keeps of a key what its position and its bias don't tell. A published model's key biases have a
few channels far larger than all else; a scale that holds them leaves the rest of the key a few steps. So the
bias is turned to the key's position and taken off before rounding, and added when the key is read.
**Offsets** are what that takes: key_bias (K, head_dim) f32; blocks (n, 2, head_dim/2) f32, cos and sin that
turn it to the first position of each block of KEYS_AT_ONCE; within (2, head_dim/2, KEYS_AT_ONCE) f32, from
there on. Both kernels turn it by the same numbers: what one takes off is what the other adds.

Parameters named after buffers are addresses, unless their description says "array".
"""

from functools import lru_cache

import numpy as np
from numba import types
from numba.extending import overload

from localoss.kernels import isa
from localoss.kernels.activations import SERIAL_TOKENS
from localoss.kernels.calls import packing
from localoss.kernels.isa.common import force_inline
from localoss.kernels.sharing import share, worker
from localoss.kernels.simd import (
    add,
    inner,
    jit,
    load_f32x8,
    maximum,
    minimum,
    mul,
    prefetch,
    splat_f32,
    store_f32x8,
    sub,
)
from localoss.kernels.wide import SCALE_ORIGIN
from localoss.plan.sizes import CACHE_GROUP, KEY_LANES, KEYS_AT_ONCE, KV_NUMPY_DTYPES

_F16_LARGEST = np.float32(65504.0)
_KEY_STEPS, _VALUE_STEPS = 511, 127  # codes go as far to both sides

# An int8 cache's scale is a byte: see wide.load_key_scales.
SCALES = ((np.arange(256, dtype=np.uint32) + SCALE_ORIGIN) << 20).view(np.float32)


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
    return lambda cache, address, value: store_f32x8(address, value)


@inner
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


@force_inline
def _turned_pair(offsets, k, i, position):
    """Channels i and i + head_dim/2 of head k's bias, turned to the first position of `position`'s block."""
    key_bias, blocks, _ = offsets
    block, half = position // KEYS_AT_ONCE, blocks.shape[2]
    x, y, cos, sin = key_bias[k, i], key_bias[k, i + half], blocks[block, 0, i], blocks[block, 1, i]
    return x * cos - y * sin, y * cos + x * sin


@inner
def turn_bias(out, offsets, k, position):
    """Turn the bias of key head k to the first position of `position`'s block: out (head_dim,) f32 array."""
    half = len(out) // 2
    for i in range(half):
        out[i], out[i + half] = _turned_pair(offsets, k, i, position)


@inner
def _take_bias_off(key, offsets, k, position):
    """key (head_dim,) f32 array, rotated to `position`, minus its head's bias there."""
    half, within, step = len(key) // 2, offsets[2], position % KEYS_AT_ONCE
    for i in range(half):
        x, y = _turned_pair(offsets, k, i, position)
        key[i] -= x * within[0, i, step] - y * within[1, i, step]
        key[i + half] -= y * within[0, i, step] + x * within[1, i, step]


@inner
def _scale_code(numbers, steps):
    """The code of the least scale that takes all of `numbers`, an array of f32, to ±steps; else the last."""
    largest = np.float32(0.0)
    for number in numbers:
        largest = max(largest, abs(number))
    bits = np.int64(np.float32(largest * np.float32(1 / steps)).view(np.uint32))
    return max(min(((bits + 0xFFFFF) >> 20) - SCALE_ORIGIN, 255), 0)


@inner
def _code(number, scale, steps):
    code = np.rint(number * (np.float32(1.0) / scale))
    return np.int64(max(min(code, np.float32(steps)), np.float32(-steps)))


def _store_key(cache, offsets, key, k, slot, position):
    """Write a rotated key, an array (head_dim,) f32, to its place; for int8 it loses its bias on the way."""


@overload(_store_key)
def _overload_key(cache, offsets, key, k, slot, position):
    def coded(cache, offsets, key, k, slot, position):
        keys, _, low, key_scales, _ = cache
        group, lane = slot // KEY_LANES, slot % KEY_LANES
        _take_bias_off(key, offsets, k, position)
        for i in range(0, len(key), CACHE_GROUP):
            key_scales[k, group, i // CACHE_GROUP, lane] = _scale_code(key[i : i + CACHE_GROUP], _KEY_STEPS)
        for quad in range(len(key) // 4):
            scale, below = SCALES[key_scales[k, group, 4 * quad // CACHE_GROUP, lane]], 0
            for i in range(4):
                code = _code(key[4 * quad + i], scale, _KEY_STEPS)
                keys[k, group, 4 * quad + i, lane] = code >> 2
                below |= (code & 3) << 2 * i
            low[k, group, quad, lane] = below

    def plain(cache, offsets, key, k, slot, position):
        row = cache[1][k, slot]  # on the way to their lane; the value comes there next
        for i in range(0, len(key), 8):
            _store_values(row, row[i:].ctypes.data, load_f32x8(key[i:].ctypes.data))
        for i in range(len(key)):
            cache[0][k, slot // KEY_LANES, i, slot % KEY_LANES] = row[i]

    return coded if cache[0].dtype == types.int8 else plain


def _store_value(cache, value, k, slot):
    """Write a value, an array (head_dim,) f32, to its place."""


@overload(_store_value)
def _overload_value(cache, value, k, slot):
    def coded(cache, value, k, slot):
        values, scales = cache[1], cache[4]
        for first in range(0, len(value), CACHE_GROUP):
            numbers = value[first : first + CACHE_GROUP]
            scale = _scale_code(numbers, _VALUE_STEPS)
            scales[k, slot, first // CACHE_GROUP] = scale
            for i in range(len(numbers)):
                values[k, slot, first + i] = _code(numbers[i], SCALES[scale], _VALUE_STEPS)

    def plain(cache, value, k, slot):
        row = cache[1][k, slot]
        for i in range(0, len(value), 8):
            _store_values(row, row[i:].ctypes.data, load_f32x8(value[i:].ctypes.data))

    return coded if cache[1].dtype == types.int8 else plain


@inner
def _rotate_and_store_token(qkv, cache, cos, sin, offsets, t, position, heads):
    """As rotate_and_store, for row t of qkv, whose position this is."""
    keys, values = cache[0], cache[1]
    kv_heads, slots, head_dim = values.shape
    slot = position % slots
    for k in range(kv_heads):  # a key's numbers lie in many cache lines: all are asked for at once
        for i in range(head_dim):
            prefetch(keys[k, slot // KEY_LANES, i].ctypes.data)
        prefetch(values[k, slot].ctypes.data)
    for head in range(heads + kv_heads):
        _rotate(qkv[t, head * head_dim : (head + 1) * head_dim], cos[t], sin[t], head_dim)
    for k in range(kv_heads):
        key, value = (heads + k) * head_dim, (heads + kv_heads + k) * head_dim
        _store_key(cache, offsets, qkv[t, key : key + head_dim], k, slot, position)
        _store_value(cache, qkv[t, value : value + head_dim], k, slot)


def _array(kind, dimensions):
    return types.Array(kind, dimensions, "C")


def cache_type(kv_dtype):
    """The type of a layer's arrays, as attention.py has them."""
    number = getattr(types, KV_NUMPY_DTYPES[kv_dtype])
    octets = _array(types.uint8, 4), _array(types.uint8, 4), _array(types.uint8, 3)
    return types.Tuple((_array(number, 4), _array(number, 3), *octets))


FLOAT_ROWS, NUMBER = _array(types.float32, 2), types.int64
OFFSETS = types.Tuple((FLOAT_ROWS, _array(types.float32, 3), _array(types.float32, 3)))
_BOTH = (OFFSETS, NUMBER, NUMBER)
_put, _take = packing(
    {kv: (FLOAT_ROWS, cache_type(kv), FLOAT_ROWS, FLOAT_ROWS, *_BOTH) for kv in KV_NUMPY_DTYPES}
)


@lru_cache
def storing(kv_dtype):
    """What a thread does of rotate_and_store, for caches of `kv_dtype`."""

    @inner
    def store_tokens(begin, end, arguments):
        qkv, cache, cos, sin, offsets, position, heads = _take(arguments, kv_dtype)
        for t in range(begin, end):
            _rotate_and_store_token(qkv, cache, cos, sin, offsets, t, position + t, heads)

    return worker(store_tokens)


@jit
def rotate_and_store(qkv, cache, cos, sin, offsets, position, heads, threads, at):
    """Rotate queries and keys in place, and write keys and values to the cache.

    Arrays: qkv (T, (heads + 2K) * head_dim) f32, of positions `position`, position + 1, …, of which an int8
    cache has the keys' bias taken off; cache: the layer's arrays; cos, sin (T, head_dim/2) f32, YaRN's
    concentration included; offsets: see the module. at: of `storing`, as activations.py has it.
    """
    tokens = len(qkv)
    parts = threads if tokens > SERIAL_TOKENS else 1
    share(at, _put((qkv, cache, cos, sin, offsets, position, heads)), tokens, parts)
