"""E8M0 exponents of a row group in a register, and what can be asked of them."""

from llvmlite import ir
from numba import types

from localoss.kernels.simd import constant, f32x8, i8x8, i32x8, op, pointer, splat


@op(i32x8, types.intp)
def load_u8x8(b, address):
    """8 unsigned bytes as integers."""
    return b.zext(b.load(pointer(b, address, i8x8.llvm), align=1), i32x8.llvm)


@op(i32x8, i32x8, i32x8)
def larger_int(b, x, y):
    return b.select(b.icmp_signed(">", x, y), x, y)


@op(i32x8, i32x8, i32x8)
def smaller_int(b, x, y):
    return b.select(b.icmp_signed("<", x, y), x, y)


@op(i32x8, types.int32)
def splat_i32(b, value):
    return splat(b, value, 8)


@op(types.boolean, i32x8, i32x8)
def all_at_most(b, x, y):
    """Whether no element of x is larger than that of y."""
    lanes = b.icmp_signed("<=", x, y)
    return b.icmp_unsigned("==", b.bitcast(lanes, ir.IntType(8)), ir.IntType(8)(255))


@op(f32x8, i32x8)
def e8m0_to_f32(b, exponents):
    """E8M0 scales in registers: e to 2**(e - 127), for e from 1 to 254."""
    return b.bitcast(b.shl(exponents, constant(i32x8, [23] * 8)), f32x8.llvm)
