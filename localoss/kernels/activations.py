"""Between the matmuls: RMSNorm, quantizing activations, routing, adding the experts' results up.

x is the residual stream, (T, D) f32. What a matmul reads lies block by block, (D/32, P, 32): see products.py.
at: the addresses of sharing.SHARE and of what a thread does, which stands before each kernel that takes it.
Parameters named after buffers are addresses, unless their description says "array".
"""

import numpy as np
from numba import types

from localoss.kernels.calls import packing
from localoss.kernels.isa.common import force_inline
from localoss.kernels.sharing import share
from localoss.kernels.simd import (
    absolute,
    add,
    div,
    exp,
    fma,
    inner,
    jit,
    load_f32x8,
    max_lanes,
    maximum,
    minimum,
    mul,
    round_even,
    splat_f32,
    store_f32,
    store_f32x8,
    store_i8x8,
    sub,
    sum_lanes,
    to_bytes,
    zero,
)

SERIAL_TOKENS = 4  # for so few tokens, waking the other threads costs more than they save
_NUMBER, _FACTOR, _IDS = types.int64, types.float32, types.Array(types.int32, 1, "C")
_put_norm, _take_norm = packing((*[_NUMBER] * 5, _FACTOR))
_put_quantize, _take_quantize = packing((*[_NUMBER] * 3, _IDS, *[_NUMBER] * 2))
_put_gather, _take_gather = packing((_NUMBER, _NUMBER, _IDS, _NUMBER))
_PLACES, _WEIGHTS = types.Array(types.int32, 2, "C"), types.Array(types.float32, 2, "C")
_put_add, _take_add = packing((_NUMBER, _NUMBER, _PLACES, _WEIGHTS, _NUMBER))


@inner
def _norm_token(out, x, weight, t, tokens, columns, eps):
    row = x + 4 * columns * t
    squares = zero()
    for i in range(0, columns, 8):
        v = load_f32x8(row + 4 * i)
        squares = fma(v, v, squares)
    factor = splat_f32((sum_lanes(squares) / columns + eps) ** -0.5)
    for i in range(0, columns, 8):
        normed = mul(mul(load_f32x8(row + 4 * i), factor), load_f32x8(weight + 4 * i))
        store_f32x8(out + 128 * (i // 32 * tokens + t) + 4 * (i % 32), normed)


@inner
def norm_tokens(begin, end, arguments):
    out, x, weight, tokens, columns, eps = _take_norm(arguments)
    for t in range(begin, end):
        _norm_token(out, x, weight, t, tokens, columns, eps)


@jit
def rms_norm(out, x, weight, tokens, columns, eps, threads, at):
    """Write x / rms(x) * weight to `out` (columns/32, tokens, 32) f32; x (tokens, columns) f32.

    weight (columns,) f32. Sums in f32. Oracle: tests/support/naive.py.
    """
    parts = threads if tokens > SERIAL_TOKENS else 1
    share(at, _put_norm((out, x, weight, tokens, columns, eps)), tokens, parts)


@force_inline
def quantize_block(codes, scale, v0, v1, v2, v3, offset):
    """Write 32 floats to `codes` as int8 plus `offset`, and their scale, max|v| / 127, to `scale`."""
    largest = max_lanes(maximum(maximum(absolute(v0), absolute(v1)), maximum(absolute(v2), absolute(v3))))
    inverse = splat_f32(127.0 / largest if largest > 1e-30 else 0.0)
    store_f32(scale, largest / 127.0)
    store_i8x8(codes, to_bytes(round_even(mul(v0, inverse)), offset))
    store_i8x8(codes + 8, to_bytes(round_even(mul(v1, inverse)), offset))
    store_i8x8(codes + 16, to_bytes(round_even(mul(v2, inverse)), offset))
    store_i8x8(codes + 24, to_bytes(round_even(mul(v3, inverse)), offset))


@inner
def _quantize_block_of_all(codes, scales, x, sources, b, tokens, offset):
    places = len(sources)
    for p in range(places):
        row = x + 128 * (b * tokens + sources[p])
        place = b * places + p
        quantize_block(
            codes + 32 * place,
            scales + 4 * place,
            load_f32x8(row),
            load_f32x8(row + 32),
            load_f32x8(row + 64),
            load_f32x8(row + 96),
            offset,
        )


@inner
def quantize_blocks(begin, end, arguments):
    codes, scales, x, sources, tokens, offset = _take_quantize(arguments)
    for b in range(begin, end):
        _quantize_block_of_all(codes, scales, x, sources, b, tokens, offset)


@jit
def quantize(codes, scales, x, sources, tokens, blocks, offset, threads, at):
    """Write token sources[p] of x (blocks, tokens, 32) f32 as int8 to place p of `codes` (blocks, P, 32).

    scales (blocks, P) f32. sources array (P,) i32. offset is added to the codes (modulo 256): see isa.py.
    """
    parts = threads if tokens > SERIAL_TOKENS else 1
    share(at, _put_quantize((codes, scales, x, sources, tokens, offset)), blocks, parts)


@inner
def gather_blocks(begin, end, arguments):
    out, x, sources, tokens = _take_gather(arguments)
    places = len(sources)
    for b in range(begin, end):
        for p in range(places):
            row = x + 128 * (b * tokens + sources[p])
            for i in range(0, 128, 32):
                store_f32x8(out + 128 * (b * places + p) + i, load_f32x8(row + i))


@jit
def gather(out, x, sources, tokens, blocks, threads, at):
    """As quantize, without quantizing: `out` (blocks, P, 32) f32. sources array (P,) i32."""
    share(at, _put_gather((out, x, sources, tokens)), blocks, threads)


@force_inline
def swiglu(gate, up, alpha, limit):
    """gate * sigmoid(alpha * gate) * (up + 1), gate clamped to `limit` from above and up to ±`limit`."""
    gate = minimum(gate, limit)
    up = minimum(maximum(up, sub(zero(), limit)), limit)
    one = splat_f32(1.0)
    return mul(add(up, one), div(gate, add(one, exp(sub(zero(), mul(gate, alpha))))))


@jit
def route(expert_ids, expert_weights, logits, bias):
    """Choose each token's experts: the A largest of logits + bias, in falling order, and their softmax.

    Arrays: expert_ids (T, A) i32 and expert_weights (T, A) f32, overwritten; bias (E,) f32; logits (≥ T, ≥ E)
    f32, to which the bias is added. Of equals, the lower expert comes first. Oracle: tests/support/naive.py.
    """
    tokens, active = expert_ids.shape
    experts = len(bias)
    for t in range(tokens):
        row = logits[t]
        for e in range(experts):
            row[e] += bias[e]
        for a in range(active):
            best = -1
            for e in range(experts):
                taken = False
                for earlier in range(a):
                    taken |= expert_ids[t, earlier] == e
                if not taken and (best < 0 or row[e] > row[best]):
                    best = e
            expert_ids[t, a] = best
        total = 0.0
        for a in range(active):
            weight = np.exp(row[expert_ids[t, a]] - row[expert_ids[t, 0]])
            expert_weights[t, a] = weight
            total += weight
        for a in range(active):
            expert_weights[t, a] /= total


@jit
def sort_by_expert(starts, sources, places, expert_ids):
    """Order the (token, expert) pairs by expert, tokens in order.

    Arrays: expert_ids (T, A) i32. Overwritten: starts (E + 1,) i64, expert e has the places starts[e] to
    starts[e + 1]; sources (T * A,) i32, the token at each place; places (T, A) i32, the place of each pair.
    """
    tokens, active = expert_ids.shape
    starts[:] = 0
    for t in range(tokens):
        for a in range(active):
            starts[expert_ids[t, a] + 1] += 1
    for e in range(1, len(starts)):
        starts[e] += starts[e - 1]
    for t in range(tokens):
        for a in range(active):
            place = starts[expert_ids[t, a]]
            sources[place] = t
            places[t, a] = place
            starts[expert_ids[t, a]] += 1
    for e in range(len(starts) - 1, 0, -1):
        starts[e] = starts[e - 1]
    starts[0] = 0


@inner
def _add_experts_of_token(x, y, places, expert_weights, t, columns):
    row = x + 4 * columns * t
    for i in range(0, columns, 8):
        total = load_f32x8(row + 4 * i)
        for a in range(places.shape[1]):
            part = load_f32x8(y + 4 * (columns * places[t, a] + i))
            total = fma(part, splat_f32(expert_weights[t, a]), total)
        store_f32x8(row + 4 * i, total)


@inner
def add_experts_of_tokens(begin, end, arguments):
    x, y, places, expert_weights, columns = _take_add(arguments)
    for t in range(begin, end):
        _add_experts_of_token(x, y, places, expert_weights, t, columns)


@jit
def add_experts(x, y, places, expert_weights, columns, threads, at):
    """Add each token's weighted experts to x (T, columns) f32. y (P, columns) f32.

    Arrays: places (T, A) i32, expert_weights (T, A) f32.
    """
    tokens = len(places)
    parts = threads if tokens > SERIAL_TOKENS else 1
    share(at, _put_add((x, y, places, expert_weights, columns)), tokens, parts)
