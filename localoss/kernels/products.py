"""Tiles of weights times activations: the innermost loops, for every number format.

A **row group** is 8 rows of a matrix: `blocks` tiles one after the other, and their scales likewise.
Activations lie block by block, (blocks, P, 32), so that the 32 columns of a block stand together for all P
tokens. They are int8 with a float32 scale per block and token, or float32 ("exact").
"""

import numpy as np

from localoss.kernels import isa
from localoss.kernels.exponents import (
    all_at_most,
    e8m0_to_f32,
    larger_int,
    load_u8x8,
    smaller_int,
    splat_i32,
)
from localoss.kernels.isa.common import force_inline, load_8bit, load_fp4, load_int4
from localoss.kernels.simd import (
    add,
    broadcast_f32,
    byte_0,
    byte_1,
    byte_2,
    byte_3,
    fma,
    inner,
    load_bf16_even,
    load_bf16_odd,
    load_e8m0,
    load_f32x8,
    mul,
    prefetch,
    prefetch_once,
    splat_f32,
    store_f32x8,
    sub_int,
    to_f32,
    zero,
)
from quant.format.weight_formats import WEIGHT_FORMATS

KINDS = {name: form.kernel_kind for name, form in WEIGHT_FORMATS.items()}
MXFP4, INT4, INT8, BF16 = (KINDS[name] for name in ("mxfp4", "int4", "int8", "bf16"))
OFFSETS = (isa.OFFSET_4BIT, isa.OFFSET_4BIT, isa.OFFSET_8BIT, 0)  # what int8 activations have added, by kind

# How far before their use weights are asked for, in bytes. int8 takes fewer instructions a byte.
AHEAD_4BIT, AHEAD_8BIT = 6144, 4096
_ONCE_4BIT, _ONCE_8BIT = (6144, 4096) if isa.STREAMS_WELL else (2048, 2048)  # what one token reads
_STREAMS_WELL = isa.STREAMS_WELL
_FOLDED = 14  # powers of two up to this one are signed 16-bit numbers
_LEAST, _MOST = 32, 222  # a row's exponents, so that nothing on the way leaves float32's range


@force_inline
def _fp4_scales(scales):
    """Halved: the codes are decoded to twice their value."""
    return mul(load_e8m0(scales), splat_f32(0.5))


@force_inline
def _plus_4bit(total, w, correction, scale, x, x_scale):
    """total + scale * x_scale * (w · x): one tile of 4-bit weights times one token's block."""
    return fma(to_f32(isa.dot_4bit(x, w, correction)), mul(scale, broadcast_f32(x_scale)), total)


@force_inline
def _plus_8bit(total, w, correction, scale, x, x_scale):
    return fma(to_f32(isa.dot_8bit(x, w, correction)), mul(scale, broadcast_f32(x_scale)), total)


@force_inline
def _add_4bit(sums, w, scale, x, x_scales, tokens):
    correction = isa.correction_4bit(w)
    for t in range(tokens):
        total = load_f32x8(sums + 32 * t)
        total = _plus_4bit(total, w, correction, scale, x + 32 * t, x_scales + 4 * t)
        store_f32x8(sums + 32 * t, total)


@force_inline
def _add_8bit(sums, w, scale, x, x_scales, tokens):
    correction = isa.correction_8bit(w)
    for t in range(tokens):
        total = load_f32x8(sums + 32 * t)
        total = _plus_8bit(total, w, correction, scale, x + 32 * t, x_scales + 4 * t)
        store_f32x8(sums + 32 * t, total)


@force_inline
def ask_for(once, ahead, codes, code_bytes, scales, scale_bytes, b):
    """Ask for the codes of a tile `ahead` bytes further on, and, at times, for the scales of the tiles there.

    once: they are used by one token, and shouldn't push what all tokens use out of the caches.
    """
    there = codes + code_bytes * b + ahead
    if once:
        for line in range(0, code_bytes, 64):
            prefetch_once(there + line)
    else:
        for line in range(0, code_bytes, 64):
            prefetch(there + line)
    if b % (64 // scale_bytes) == 0:  # once for each cache line, which must stay for several tiles
        prefetch(scales + scale_bytes * b + ahead // code_bytes * scale_bytes)


@inner
def _add_row_group_mxfp4(sums, codes, scales, x, x_scales, tokens, stride, blocks):
    for b in range(blocks):
        ask_for(False, AHEAD_4BIT, codes, 128, scales, 8, b)
        w, scale = load_fp4(codes + 128 * b), _fp4_scales(scales + 8 * b)
        _add_4bit(sums, w, scale, x + 32 * stride * b, x_scales + 4 * stride * b, tokens)


@inner
def _exponents(scales, blocks):
    """The largest exponent of each row of a row group, and the smallest."""
    most = load_u8x8(scales)
    least = most
    for b in range(1, blocks):
        here = load_u8x8(scales + 8 * b)
        most, least = larger_int(most, here), smaller_int(least, here)
    return most, least


@inner
def _add_row_group_folded(sums, codes, scales, x, x_scales, tokens, stride, blocks):
    """As _add_row_group_mxfp4 to sums of 0, and to the last bit: powers of two round nothing.

    A block's exponent, less the least that its row may have, is multiplied to the integers where pairs of
    them are added up, and the row's to its sums, so that the loop over tokens has a product less.
    """
    most, least = _exponents(scales, blocks)
    base = sub_int(most, splat_i32(np.int32(_FOLDED)))
    near_one = all_at_most(splat_i32(np.int32(_LEAST)), base) and all_at_most(
        most, splat_i32(np.int32(_MOST))
    )
    if not (near_one and all_at_most(base, least)):
        _add_row_group_mxfp4(sums, codes, scales, x, x_scales, tokens, stride, blocks)
        return
    for b in range(blocks):
        ask_for(False, AHEAD_4BIT, codes, 128, scales, 8, b)
        w, powers = load_fp4(codes + 128 * b), isa.powers_of_two(sub_int(load_u8x8(scales + 8 * b), base))
        correction = isa.correction_4bit(w)
        for t in range(tokens):
            place = stride * b + t
            dots = to_f32(isa.dot_4bit_scaled(x + 32 * place, w, correction, powers))
            total = fma(dots, broadcast_f32(x_scales + 4 * place), load_f32x8(sums + 32 * t))
            store_f32x8(sums + 32 * t, total)
    factor = mul(e8m0_to_f32(base), splat_f32(0.5))
    for t in range(tokens):
        store_f32x8(sums + 32 * t, mul(load_f32x8(sums + 32 * t), factor))


def tokens_mxfp4(folds):
    """What adds up a row group of MXFP4 where powers of two can be folded into the integers, or can't."""
    return _add_row_group_folded if folds else _add_row_group_mxfp4


_add_tokens_mxfp4 = tokens_mxfp4(isa.FOLDS_EXPONENTS)


@inner
def _add_one_token_mxfp4(sums, codes, scales, x, x_scales, stride, blocks):
    total = load_f32x8(sums)
    for b in range(blocks):
        ask_for(_STREAMS_WELL, _ONCE_4BIT, codes, 128, scales, 8, b)
        dots = isa.dot_fp4_tile(x + 32 * stride * b, codes + 128 * b)
        scale = mul(_fp4_scales(scales + 8 * b), broadcast_f32(x_scales + 4 * stride * b))
        total = fma(to_f32(dots), scale, total)
    store_f32x8(sums, total)


@inner
def _add_row_group_int4(sums, codes, scales, x, x_scales, tokens, stride, blocks):
    for b in range(blocks):
        ask_for(False, AHEAD_4BIT, codes, 128, scales, 16, b)
        w, scale = load_int4(codes + 128 * b), isa.load_f16(scales + 16 * b)
        _add_4bit(sums, w, scale, x + 32 * stride * b, x_scales + 4 * stride * b, tokens)


@inner
def _add_one_token_int4(sums, codes, scales, x, x_scales, stride, blocks):
    total = load_f32x8(sums)
    for b in range(blocks):
        ask_for(_STREAMS_WELL, _ONCE_4BIT, codes, 128, scales, 16, b)
        dots = isa.dot_int4_tile(x + 32 * stride * b, codes + 128 * b)
        scale = mul(isa.load_f16(scales + 16 * b), broadcast_f32(x_scales + 4 * stride * b))
        total = fma(to_f32(dots), scale, total)
    store_f32x8(sums, total)


@inner
def _add_row_group_int8(sums, codes, scales, x, x_scales, tokens, stride, blocks):
    for b in range(blocks):
        ask_for(False, AHEAD_8BIT, codes, 256, scales, 16, b)
        w, scale = load_8bit(codes + 256 * b), isa.load_f16(scales + 16 * b)
        _add_8bit(sums, w, scale, x + 32 * stride * b, x_scales + 4 * stride * b, tokens)


@inner
def _add_one_token_int8(sums, codes, scales, x, x_scales, stride, blocks):
    total = load_f32x8(sums)
    for b in range(blocks):
        ask_for(_STREAMS_WELL, _ONCE_8BIT, codes, 256, scales, 16, b)
        dots = isa.dot_int8_tile(x + 32 * stride * b, codes + 256 * b)
        scale = mul(isa.load_f16(scales + 16 * b), broadcast_f32(x_scales + 4 * stride * b))
        total = fma(to_f32(dots), scale, total)
    store_f32x8(sums, total)


@force_inline
def _decode_4_columns(scratch, w, scale):
    store_f32x8(scratch, mul(byte_0(w), scale))
    store_f32x8(scratch + 32, mul(byte_1(w), scale))
    store_f32x8(scratch + 64, mul(byte_2(w), scale))
    store_f32x8(scratch + 96, mul(byte_3(w), scale))


@force_inline
def _decode_integers(scratch, w, scale):
    _decode_4_columns(scratch, w[0], scale)
    _decode_4_columns(scratch + 128, w[1], scale)
    _decode_4_columns(scratch + 256, w[2], scale)
    _decode_4_columns(scratch + 384, w[3], scale)
    _decode_4_columns(scratch + 512, w[4], scale)
    _decode_4_columns(scratch + 640, w[5], scale)
    _decode_4_columns(scratch + 768, w[6], scale)
    _decode_4_columns(scratch + 896, w[7], scale)


@inner
def _decode_tile(kind, scratch, codes, scales, block):
    """Write tile `block` of a row group to `scratch` as float32, column by column: (32, 8)."""
    if kind == MXFP4:
        _decode_integers(scratch, load_fp4(codes + 128 * block), _fp4_scales(scales + 8 * block))
    elif kind == INT4:
        _decode_integers(scratch, load_int4(codes + 128 * block), isa.load_f16(scales + 16 * block))
    elif kind == INT8:
        _decode_integers(scratch, load_8bit(codes + 256 * block), isa.load_f16(scales + 16 * block))
    else:
        for pair in range(16):
            store_f32x8(scratch + 64 * pair, load_bf16_even(codes + 512 * block + 32 * pair))
            store_f32x8(scratch + 64 * pair + 32, load_bf16_odd(codes + 512 * block + 32 * pair))


@inner
def _add_row_group_exact(kind, sums, codes, scales, x, tokens, stride, blocks, scratch):
    for b in range(blocks):
        _decode_tile(kind, scratch, codes, scales, b)
        for t in range(tokens):
            row = x + 128 * (stride * b + t)
            even, odd = zero(), zero()
            for column in range(0, 32, 2):
                even = fma(load_f32x8(scratch + 32 * column), broadcast_f32(row + 4 * column), even)
                odd = fma(load_f32x8(scratch + 32 * column + 32), broadcast_f32(row + 4 * column + 4), odd)
            store_f32x8(sums + 32 * t, add(load_f32x8(sums + 32 * t), add(even, odd)))


@inner
def _add_one_token_bf16(sums, codes, x, stride, blocks):
    """As _add_row_group_exact, to the last bit, without a detour over scratch: the router of each token."""
    total = load_f32x8(sums)
    for b in range(blocks):
        even, odd = zero(), zero()
        for pair in range(16):
            weights, values = codes + 512 * b + 32 * pair, x + 128 * stride * b + 8 * pair
            even = fma(load_bf16_even(weights), broadcast_f32(values), even)
            odd = fma(load_bf16_odd(weights), broadcast_f32(values + 4), odd)
        total = add(total, add(even, odd))
    store_f32x8(sums, total)


@inner
def add_row_group(kind, exact, sums, codes, scales, x, x_scales, tokens, stride, blocks, scratch):
    """Write to `sums` (tokens, 8) f32, which are 0, the products of a row group with `tokens` tokens.

    kind: MXFP4, INT4, INT8 or BF16 (exact only). All else are addresses: codes and scales of the row group's
    first block, x (blocks, stride, 32) f32 if exact, else int8 (with the offset that isa.py names), x_scales
    (blocks, stride) f32. scratch: TILE_SCRATCH_BYTES, for exact. Accumulates in int32 within a block, then in
    f32.
    Oracle: tests/support/naive.py. Source: OCP Microscaling Formats v1.0.
    """
    if kind == BF16 and tokens == 1:
        _add_one_token_bf16(sums, codes, x, stride, blocks)
    elif exact:
        _add_row_group_exact(kind, sums, codes, scales, x, tokens, stride, blocks, scratch)
    elif tokens == 1:  # decoding: the sums stay in a register, and memory is what it waits for
        if kind == MXFP4:
            _add_one_token_mxfp4(sums, codes, scales, x, x_scales, stride, blocks)
        elif kind == INT4:
            _add_one_token_int4(sums, codes, scales, x, x_scales, stride, blocks)
        else:
            _add_one_token_int8(sums, codes, scales, x, x_scales, stride, blocks)
    elif kind == MXFP4:
        _add_tokens_mxfp4(sums, codes, scales, x, x_scales, tokens, stride, blocks)
    elif kind == INT4:
        _add_row_group_int4(sums, codes, scales, x, x_scales, tokens, stride, blocks)
    else:
        _add_row_group_int8(sums, codes, scales, x, x_scales, tokens, stride, blocks)


@inner
def clear(sums, count):
    """Write zeros to `sums` (count, 8) f32."""
    for i in range(count):
        store_f32x8(sums + 32 * i, zero())
