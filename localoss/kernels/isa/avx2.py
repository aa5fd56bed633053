"""x86-64 with AVX2, FMA and F16C: every such CPU since 2013 (Intel) and 2015 (AMD).

Integer products are sums of 4 neighbouring columns in 32-bit lanes, one lane a row. vpmaddubsw multiplies
unsigned by signed bytes and adds pairs in 16 bits.
"""

from llvmlite import ir

from localoss.kernels.isa.common import (  # noqa: F401
    FP4_TWICE,
    INT4,
    dot_fp4_tile,
    dot_int4_tile,
    dot_int8_tile,
    force_inline,
)
from localoss.kernels.simd import (
    I32,
    add_int,
    broadcast_4_bytes,
    call,
    constant,
    f32x8,
    i8x32,
    i16x8,
    i16x16,
    i32x8,
    op,
    pointer,
    splat_i8,
    sub_int,
    types,
)

# What quantized activations have added to them. Weights of 4 bits take unsigned activations: even 8 products
# of 255 * 12 in one 16-bit lane, if they wrap, come back into range when 128 * (sum of weights) is
# subtracted.
OFFSET_4BIT = 128
OFFSET_8BIT = 0  # two products of 255 * 127 would saturate
F32_LANES, TILE_ROWS = 8, 4


@op(i8x32, i8x32)
def decode_fp4(b, nibbles):
    """E2M1 codes to twice their value, -12 to 12."""
    return call(b, "llvm.x86.avx2.pshuf.b", i8x32.llvm, constant(i8x32, FP4_TWICE * 2), nibbles)


@op(i8x32, i8x32)
def decode_int4(b, nibbles):
    return call(b, "llvm.x86.avx2.pshuf.b", i8x32.llvm, constant(i8x32, INT4 * 2), nibbles)


@op(i16x16, i8x32, i8x32)
def _multiply_pairs(b, unsigned, signed):
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", i16x16.llvm, unsigned, signed)


@op(i32x8, i16x16, i16x16)
def _add_scaled_pairs(b, x, factors):
    return call(b, "llvm.x86.avx2.pmadd.wd", i32x8.llvm, x, factors)


@op(i32x8, i16x16)
def _add_pairs(b, x):
    return call(b, "llvm.x86.avx2.pmadd.wd", i32x8.llvm, x, constant(i16x16, [1] * 16))


@op(i8x32, i8x32, i8x32)
def _with_sign_of(b, x, sign):
    return call(b, "llvm.x86.avx2.psign.b", i8x32.llvm, x, sign)


@force_inline
def add_4bit(w):
    """The sum of a tile's 8 vectors: 8 weights of at most ±12 stay within a byte."""
    return add_int(
        add_int(add_int(w[0], w[1]), add_int(w[2], w[3])),
        add_int(add_int(w[4], w[5]), add_int(w[6], w[7])),
    )


@force_inline
def correction_4bit(w):
    """What to subtract from `dot_4bit`'s 16-bit sums for the activations' offset."""
    return _multiply_pairs(splat_i8(-128), add_4bit(w))  # -128 is 128 as an unsigned byte


@force_inline
def _pairs_4bit(x, w, correction):
    """Sums of 16 columns' products, two for each row."""
    s = add_int(_multiply_pairs(broadcast_4_bytes(x), w[0]), _multiply_pairs(broadcast_4_bytes(x + 4), w[1]))
    u = add_int(
        _multiply_pairs(broadcast_4_bytes(x + 8), w[2]), _multiply_pairs(broadcast_4_bytes(x + 12), w[3])
    )
    s = add_int(s, _multiply_pairs(broadcast_4_bytes(x + 16), w[4]))
    u = add_int(u, _multiply_pairs(broadcast_4_bytes(x + 20), w[5]))
    s = add_int(s, _multiply_pairs(broadcast_4_bytes(x + 24), w[6]))
    u = add_int(u, _multiply_pairs(broadcast_4_bytes(x + 28), w[7]))
    return sub_int(add_int(s, u), correction)


@force_inline
def dot_4bit(x, w, correction):
    """Integer dot products of the 32 activations at address `x` with the 8 rows of tile `w`."""
    return _add_pairs(_pairs_4bit(x, w, correction))


@op(i16x16, i32x8)
def powers_of_two(b, exponents):
    """2 to each of 8 exponents from 0 to 14, in both 16-bit halves of its lane."""
    power = b.shl(constant(i32x8, [1] * 8), exponents)
    both = b.or_(power, b.shl(power, constant(i32x8, [16] * 8)))
    return b.bitcast(both, i16x16.llvm)


@force_inline
def dot_4bit_scaled(x, w, correction, powers):
    """dot_4bit times `powers`, which costs nothing: the instruction that adds pairs up multiplies them."""
    return _add_scaled_pairs(_pairs_4bit(x, w, correction), powers)


@force_inline
def correction_8bit(w):
    """The weights' magnitudes."""
    return (
        _with_sign_of(w[0], w[0]),
        _with_sign_of(w[1], w[1]),
        _with_sign_of(w[2], w[2]),
        _with_sign_of(w[3], w[3]),
        _with_sign_of(w[4], w[4]),
        _with_sign_of(w[5], w[5]),
        _with_sign_of(w[6], w[6]),
        _with_sign_of(w[7], w[7]),
    )


@force_inline
def _dot_4_columns(x, w, magnitude):
    return _add_pairs(_multiply_pairs(magnitude, _with_sign_of(broadcast_4_bytes(x), w)))


@force_inline
def dot_8bit(x, w, m):
    """As dot_4bit, for weights within ±127: |w| * (x with w's sign) stays below 2**15 in pairs."""
    s = add_int(_dot_4_columns(x, w[0], m[0]), _dot_4_columns(x + 4, w[1], m[1]))
    u = add_int(_dot_4_columns(x + 8, w[2], m[2]), _dot_4_columns(x + 12, w[3], m[3]))
    s = add_int(s, add_int(_dot_4_columns(x + 16, w[4], m[4]), _dot_4_columns(x + 20, w[5], m[5])))
    u = add_int(u, add_int(_dot_4_columns(x + 24, w[6], m[6]), _dot_4_columns(x + 28, w[7], m[7])))
    return add_int(s, u)


@op(f32x8, types.intp)
def load_f16(b, address):
    """8 float16 as float32."""
    halves = b.bitcast(b.load(pointer(b, address, i16x8.llvm), align=1), ir.VectorType(ir.HalfType(), 8))
    return b.fpext(halves, f32x8.llvm)


@op(types.void, types.intp, f32x8)
def store_f16(b, address, value):
    """8 float32 as float16, rounded to nearest even."""
    halves = call(b, "llvm.x86.vcvtps2ph.256", i16x8.llvm, value, I32(0))
    b.store(halves, pointer(b, address, i16x8.llvm), align=1)


load_f16w = load_f16
