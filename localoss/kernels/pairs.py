"""Products of several tokens with two row groups at once, where registers have room for both.

An activation is brought to all lanes once for the two, and an instruction multiplies twice as much. Each
row's sums are added up in the same order as one row group's, so that no bit changes. Parameters: see
products.py; `work` is the address of (tokens, 16) f32.
"""

from localoss.kernels import isa
from localoss.kernels.isa.common import force_inline
from localoss.kernels.products import AHEAD_4BIT, AHEAD_8BIT, INT4, MXFP4, ask_for
from localoss.kernels.simd import inner, load_f32x8, store_f32x8, zero


@force_inline
def _add_tokens(work, x, x_scales, tokens, tiles, own):
    """A block of `tokens` tokens with two tiles; own: their correction and their scales."""
    for t in range(tokens):
        isa.add_to_pair((work + 64 * t, x + 32 * t, x_scales + 4 * t), tiles, own)


@inner
def _add_mxfp4(work, codes, scales, x, x_scales, tokens, stride, blocks):
    other, other_scales = codes + 128 * blocks, scales + 8 * blocks
    for b in range(blocks):
        ask_for(False, AHEAD_4BIT, codes, 128, scales, 8, b)
        ask_for(False, AHEAD_4BIT, other, 128, other_scales, 8, b)
        tiles = isa.load_fp4_pair(codes + 128 * b, other + 128 * b)
        own = isa.correction_pair(tiles), isa.load_fp4_scales_pair(scales + 8 * b, other_scales + 8 * b)
        _add_tokens(work, x + 32 * stride * b, x_scales + 4 * stride * b, tokens, tiles, own)


@inner
def _add_int4(work, codes, scales, x, x_scales, tokens, stride, blocks):
    other, other_scales = codes + 128 * blocks, scales + 16 * blocks
    for b in range(blocks):
        ask_for(False, AHEAD_4BIT, codes, 128, scales, 16, b)
        ask_for(False, AHEAD_4BIT, other, 128, other_scales, 16, b)
        tiles = isa.load_int4_pair(codes + 128 * b, other + 128 * b)
        own = isa.correction_pair(tiles), isa.load_f16_pair(scales + 16 * b, other_scales + 16 * b)
        _add_tokens(work, x + 32 * stride * b, x_scales + 4 * stride * b, tokens, tiles, own)


@inner
def _add_int8(work, codes, scales, x, x_scales, tokens, stride, blocks):
    other, other_scales = codes + 256 * blocks, scales + 16 * blocks
    for b in range(blocks):
        ask_for(False, AHEAD_8BIT, codes, 256, scales, 16, b)
        ask_for(False, AHEAD_8BIT, other, 256, other_scales, 16, b)
        tiles = isa.load_8bit_pair(codes + 256 * b, other + 256 * b)
        own = isa.correction_pair(tiles), isa.load_f16_pair(scales + 16 * b, other_scales + 16 * b)
        _add_tokens(work, x + 32 * stride * b, x_scales + 4 * stride * b, tokens, tiles, own)


@inner
def write_row_pair(kind, sums, codes, scales, x, x_scales, tokens, stride, blocks, work):
    """Write to `sums` (2, tokens, 8) f32 the products of two row groups with `tokens` tokens."""
    for i in range(2 * tokens):
        store_f32x8(work + 32 * i, zero())
    if kind == MXFP4:
        _add_mxfp4(work, codes, scales, x, x_scales, tokens, stride, blocks)
    elif kind == INT4:
        _add_int4(work, codes, scales, x, x_scales, tokens, stride, blocks)
    else:
        _add_int8(work, codes, scales, x, x_scales, tokens, stride, blocks)
    for t in range(tokens):
        store_f32x8(sums + 32 * t, load_f32x8(work + 64 * t))
        store_f32x8(sums + 32 * (tokens + t), load_f32x8(work + 64 * t + 32))
