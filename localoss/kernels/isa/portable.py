"""Plain LLVM IR for any CPU: right everywhere, fast nowhere."""

from llvmlite import ir

from localoss.kernels.isa.common import (  # noqa: F401
    dot_fp4_tile,
    dot_int4_tile,
    dot_int8_tile,
    force_inline,
)
from localoss.kernels.simd import (
    add_int,
    broadcast_4_bytes,
    constant,
    f32x8,
    i8x32,
    i16x8,
    i32x8,
    op,
    pointer,
    types,
)

OFFSET_4BIT = OFFSET_8BIT = 0  # signed by signed: nothing to correct
F32_LANES, TILE_ROWS = 8, 4


def _excess(b, x, limit):
    """max(x - limit, 0)."""
    over = b.sub(x, constant(i8x32, [limit] * 32))
    zeros = constant(i8x32, [0] * 32)
    return b.select(b.icmp_signed(">", over, zeros), over, zeros)


@op(i8x32, i8x32)
def decode_fp4(b, nibbles):
    """E2M1 codes to twice their value: 0 1 2 3 4 6 8 12, negative where bit 3 is set."""
    m = b.and_(nibbles, constant(i8x32, [7] * 32))
    six = _excess(b, m, 6)
    magnitude = b.add(b.add(m, _excess(b, m, 4)), b.add(six, six))
    negative = b.icmp_signed(">", nibbles, constant(i8x32, [7] * 32))
    return b.select(negative, b.neg(magnitude), magnitude)


@op(i8x32, i8x32)
def decode_int4(b, nibbles):
    eight = constant(i8x32, [8] * 32)
    return b.sub(b.xor(nibbles, eight), eight)


@op(i32x8, i8x32, i8x32)
def _multiply_quads(b, x, w):
    """Sums of 4 neighbouring products in each 32-bit lane."""
    wide = ir.VectorType(ir.IntType(32), 32)
    products = b.mul(b.sext(x, wide), b.sext(w, wide))
    total = None
    for i in range(4):
        part = b.shuffle_vector(products, products, constant(i32x8, range(i, 32, 4)))
        total = part if total is None else b.add(total, part)
    return total


@force_inline
def correction_4bit(w):
    return 0


@force_inline
def dot_4bit(x, w, correction):
    """Integer dot products of the 32 activations at address `x` with the 8 rows of tile `w`."""
    s = _multiply_quads(broadcast_4_bytes(x), w[0])
    s = add_int(s, _multiply_quads(broadcast_4_bytes(x + 4), w[1]))
    s = add_int(s, _multiply_quads(broadcast_4_bytes(x + 8), w[2]))
    s = add_int(s, _multiply_quads(broadcast_4_bytes(x + 12), w[3]))
    s = add_int(s, _multiply_quads(broadcast_4_bytes(x + 16), w[4]))
    s = add_int(s, _multiply_quads(broadcast_4_bytes(x + 20), w[5]))
    s = add_int(s, _multiply_quads(broadcast_4_bytes(x + 24), w[6]))
    return add_int(s, _multiply_quads(broadcast_4_bytes(x + 28), w[7]))


correction_8bit, dot_8bit = correction_4bit, dot_4bit


@op(f32x8, types.intp)
def load_f16(b, address):
    """8 float16 as float32, subnormals included; not for infinities and NaN, which a cache never holds."""
    halves = b.zext(b.load(pointer(b, address, i16x8.llvm), align=1), i32x8.llvm)
    sign = b.shl(b.and_(halves, constant(i32x8, [0x8000] * 8)), constant(i32x8, [16] * 8))
    rest = b.shl(b.and_(halves, constant(i32x8, [0x7FFF] * 8)), constant(i32x8, [13] * 8))
    magnitude = b.fmul(b.bitcast(rest, f32x8.llvm), constant(f32x8, [2.0**112] * 8))
    return b.bitcast(b.or_(b.bitcast(magnitude, i32x8.llvm), sign), f32x8.llvm)


@op(types.void, types.intp, f32x8)
def store_f16(b, address, value):
    """8 float32 as float16, rounded to nearest even; beyond ±65,504 it stores infinity."""
    bits = b.bitcast(value, i32x8.llvm)
    sign = b.lshr(b.and_(bits, constant(i32x8, [-(2**31)] * 8)), constant(i32x8, [16] * 8))
    magnitude = b.and_(bits, constant(i32x8, [0x7FFFFFFF] * 8))
    # Normal results: drop 13 bits of the mantissa, to even, and lower the exponent's bias by 112.
    odd = b.and_(b.lshr(magnitude, constant(i32x8, [13] * 8)), constant(i32x8, [1] * 8))
    rounded = b.add(b.add(magnitude, odd), constant(i32x8, [0xFFF - (112 << 23)] * 8))
    normal = b.lshr(rounded, constant(i32x8, [13] * 8))
    # Subnormal results: adding 1/2 leaves a multiple of 2**-24 in the mantissa, rounded by the addition.
    half = b.fadd(b.bitcast(magnitude, f32x8.llvm), constant(f32x8, [0.5] * 8))
    subnormal = b.sub(b.bitcast(half, i32x8.llvm), constant(i32x8, [0x3F000000] * 8))
    small = b.icmp_signed("<", magnitude, constant(i32x8, [0x38800000] * 8))  # 2**-14
    large = b.icmp_signed(">=", magnitude, constant(i32x8, [0x477FF000] * 8))  # 65,520 rounds to infinity
    result = b.select(large, constant(i32x8, [0x7C00] * 8), b.select(small, subnormal, normal))
    b.store(b.trunc(b.or_(result, sign), i16x8.llvm), pointer(b, address, i16x8.llvm), align=1)


load_f16w = load_f16
