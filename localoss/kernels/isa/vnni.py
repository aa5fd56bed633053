"""x86-64 with AVX-VNNI or AVX-512-VNNI: as avx2, with vpdpbusd for the integer products.

vpdpbusd multiplies 4 unsigned by 4 signed bytes and adds them to a 32-bit lane, without saturating.
"""

from localoss.kernels.isa.avx2 import (  # noqa: F401
    F32_LANES,
    TILE_ROWS,
    add_4bit,
    decode_fp4,
    decode_int4,
    load_f16,
    load_f16w,
    store_f16,
)
from localoss.kernels.isa.common import (  # noqa: F401
    dot_fp4_tile,
    dot_int4_tile,
    dot_int8_tile,
    force_inline,
)
from localoss.kernels.simd import broadcast_4_bytes, call, i8x32, i32x8, op, splat_i8, sub_int, zero_i32

OFFSET_4BIT = OFFSET_8BIT = 128  # vpdpbusd takes the activations unsigned


@op(i32x8, i32x8, i8x32, i8x32)
def _multiply_add(b, total, unsigned, signed):
    unsigned, signed = b.bitcast(unsigned, i32x8.llvm), b.bitcast(signed, i32x8.llvm)
    return call(b, "llvm.x86.avx512.vpdpbusd.256", i32x8.llvm, total, unsigned, signed)


@force_inline
def correction_4bit(w):
    """The sum that a dot product starts from: -128 * (sum of weights), for the activations' offset."""
    return sub_int(zero_i32(), _multiply_add(zero_i32(), splat_i8(-128), add_4bit(w)))  # -128: unsigned 128


@force_inline
def correction_8bit(w):
    """As correction_4bit, for weights whose sums don't fit a byte."""
    offset = splat_i8(-128)
    s, u = _multiply_add(zero_i32(), offset, w[0]), _multiply_add(zero_i32(), offset, w[1])
    s, u = _multiply_add(s, offset, w[2]), _multiply_add(u, offset, w[3])
    s, u = _multiply_add(s, offset, w[4]), _multiply_add(u, offset, w[5])
    s, u = _multiply_add(s, offset, w[6]), _multiply_add(u, offset, w[7])
    return sub_int(sub_int(zero_i32(), s), u)


@force_inline
def dot_4bit(x, w, correction):
    """Integer dot products of the 32 activations at address `x` with the 8 rows of tile `w`."""
    s = _multiply_add(correction, broadcast_4_bytes(x), w[0])
    s = _multiply_add(s, broadcast_4_bytes(x + 4), w[1])
    s = _multiply_add(s, broadcast_4_bytes(x + 8), w[2])
    s = _multiply_add(s, broadcast_4_bytes(x + 12), w[3])
    s = _multiply_add(s, broadcast_4_bytes(x + 16), w[4])
    s = _multiply_add(s, broadcast_4_bytes(x + 20), w[5])
    s = _multiply_add(s, broadcast_4_bytes(x + 24), w[6])
    return _multiply_add(s, broadcast_4_bytes(x + 28), w[7])


dot_8bit = dot_4bit
