"""Rotary embedding, and writing keys and values to the KV cache, whose layout attention.py describes.

Parameters named after buffers are addresses, unless their description says "array".
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
    jit,
    load_f32x8,
    max_lanes,
    maximum,
    minimum,
    mul,
    parallel,
    prefetch,
    round_even,
    splat_f32,
    store_f32x8,
    store_i8x8,
    sub,
    to_bytes,
    zero,
)
from localoss.plan.sizes import KEY_LANES

_F16_LARGEST = np.float32(65504.0)


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
