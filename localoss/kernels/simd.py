"""Vectors as Numba types, most of 256 bits, and the operations on them, in LLVM IR that any target compiles.

What only one instruction set can do well (table look-up, integer dot products, float16) is in isa.py.
Addresses are integers; loads and stores need no alignment.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

from localoss.kernels.compiled import FASTMATH, inner, inner_in_order, jit, jit_in_order, parallel  # noqa: F401

_ELEMENTS = {
    "i8": ir.IntType(8),
    "i16": ir.IntType(16),
    "i32": ir.IntType(32),
    "f32": ir.FloatType(),
}
I32 = ir.IntType(32)


class Vector(types.Type):
    """`lanes` elements of one type, held in a register."""

    def __init__(self, element: str, lanes: int):
        self.llvm = ir.VectorType(_ELEMENTS[element], lanes)
        super().__init__(name=f"Vector({element}x{lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector):
        super().__init__(manager, vector, vector.llvm)


i8x8, i8x32, i16x8 = Vector("i8", 8), Vector("i8", 32), Vector("i16", 8)
i16x16, i32x8, f32x8 = Vector("i16", 16), Vector("i32", 8), Vector("f32", 8)


def _made(arity: int, typed: Callable[..., Any]) -> Any:
    """An intrinsic whose types and code `typed` gives for the types of its arguments."""
    match arity:  # it is read from the signature
        case 0:

            @intrinsic
            def made(typingctx):
                return typed()
        case 1:

            @intrinsic
            def made(typingctx, a):
                return typed(a)
        case 2:

            @intrinsic
            def made(typingctx, a, b):
                return typed(a, b)
        case _:

            @intrinsic
            def made(typingctx, a, b, c):
                return typed(a, b, c)

    return made


def op(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of a function (builder, *values) -> value that emits LLVM IR; None means void."""
    signature = result(*arguments)

    def decorate(emit: Callable[..., Any]) -> Any:
        def codegen(context: Any, builder: Any, _: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if value is None else value

        return _made(len(arguments), lambda *_: (signature, codegen))

    return decorate


def op_like(arity: int) -> Callable[[Callable[..., Any]], Any]:
    """As op, for arguments that are all vectors of one type, whichever it is, as the result."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def codegen(context: Any, builder: Any, _: Any, values: Any) -> Any:
            return emit(builder, *values)

        return _made(arity, lambda first, *rest: (first(first, *rest), codegen))

    return decorate


def call(builder: Any, name: str, result: ir.Type, *values: Any) -> Any:
    """Call the LLVM intrinsic `name`."""
    kind = ir.FunctionType(result, [value.type for value in values])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, values)


def pointer(builder: Any, address: Any, pointee: ir.Type) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def constant(vector: Vector, values: Any) -> ir.Constant:
    return ir.Constant(vector.llvm, list(values))


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """A vector with `value` in every lane."""
    kind = ir.VectorType(value.type, lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


# Memory


def _load_op(vector: Vector) -> Any:
    @op(vector, types.intp)
    def load(b, address):
        return b.load(pointer(b, address, vector.llvm), align=1)

    return load


def _store_op(vector: Vector) -> Any:
    @op(types.void, types.intp, vector)
    def store(b, address, value):
        b.store(value, pointer(b, address, vector.llvm), align=1)

    return store


load_i8x32, load_i32x8, load_f32x8 = _load_op(i8x32), _load_op(i32x8), _load_op(f32x8)
store_f32x8, store_i8x8, store_i8x32 = _store_op(f32x8), _store_op(i8x8), _store_op(i8x32)


@op(f32x8, types.intp)
def load_i8x8(b, address):
    """8 signed bytes as float32."""
    whole = b.sext(b.load(pointer(b, address, i8x8.llvm), align=1), i32x8.llvm)
    return b.sitofp(whole, f32x8.llvm)


@op(f32x8, types.intp, types.intp)
def broadcast_i8(b, address, offset):
    """The byte at `address` less `offset` (modulo 256), as a signed number, in every lane: see to_bytes."""
    byte = b.sub(b.load(pointer(b, address, ir.IntType(8)), align=1), b.trunc(offset, ir.IntType(8)))
    return splat(b, b.sitofp(byte, ir.FloatType()), 8)


@op(i8x32, types.intp)
def broadcast_4_bytes(b, address):
    """The 4 bytes at `address` in each of the 8 lanes of 32 bits."""
    value = b.load(pointer(b, address, I32), align=1)
    return b.bitcast(splat(b, value, 8), i8x32.llvm)


@op(f32x8, types.intp)
def broadcast_f32(b, address):
    """The float32 at `address` in every lane."""
    return splat(b, b.load(pointer(b, address, ir.FloatType()), align=1), 8)


@op(f32x8, types.float32)
def splat_f32(b, value):
    return splat(b, value, 8)


@op(i8x32, types.int8)
def splat_i8(b, value):
    return splat(b, value, 32)


@op(types.void, types.intp)
def prefetch(b, address):
    """Ask for the cache line at `address`, into all levels."""
    byte_pointer = pointer(b, address, ir.IntType(8))
    call(b, "llvm.prefetch.p0", ir.VoidType(), byte_pointer, I32(0), I32(3), I32(1))


@op(types.void, types.intp)
def prefetch_once(b, address):
    """As prefetch, for what is read once: it should not push other things out of the caches."""
    byte_pointer = pointer(b, address, ir.IntType(8))
    call(b, "llvm.prefetch.p0", ir.VoidType(), byte_pointer, I32(0), I32(0), I32(1))


@op(types.voidptr, types.intp)
def to_pointer(b, address):
    """For numba.carray: an array unboxed from Python costs a call some 0.2 µs, an address next to nothing."""
    return pointer(b, address, ir.IntType(8))


@op(types.float32, types.intp)
def load_f32(b, address):
    return b.load(pointer(b, address, ir.FloatType()), align=1)


@op(types.void, types.intp, types.float32)
def store_f32(b, address, value):
    b.store(value, pointer(b, address, ir.FloatType()), align=1)


@op(types.void, types.intp, types.intp)
def store_i64(b, address, value):
    b.store(value, pointer(b, address, ir.IntType(64)), align=8)


@op(types.intp, types.intp, types.intp)
def fetch_add(b, address, amount):
    """Add to the shared integer at `address`; gives its value before: how threads take work."""
    return b.atomic_rmw("add", pointer(b, address, ir.IntType(64)), amount, "monotonic")


# Arithmetic


def _binary(method: str) -> Any:
    @op_like(2)
    def binary(b, x, y):
        return getattr(b, method)(x, y)

    return binary


add_int, sub_int = _binary("add"), _binary("sub")  # of integers
add, sub, mul, div = (_binary(name) for name in ("fadd", "fsub", "fmul", "fdiv"))


@intrinsic
def splat_like(typingctx, vector, value):
    """`value`, a float32, in every lane of a vector like `vector`."""

    def codegen(context, builder, _, values):
        return splat(builder, values[1], vector.llvm.count)

    return vector(vector, types.float32), codegen


@op(f32x8)
def zero(b):
    return constant(f32x8, [0.0] * 8)


@op(i32x8)
def zero_i32(b):
    return constant(i32x8, [0] * 8)


def call_f32(builder: Any, name: str, *values: Any) -> Any:
    """Call the LLVM intrinsic `name` for vectors of float32."""
    return call(builder, f"llvm.{name}.v{values[0].type.count}f32", values[0].type, *values)


@op_like(3)
def fma(b, x, y, z):
    """x * y + z, fused where the machine can."""
    return call_f32(b, "fmuladd", x, y, z)


@op_like(2)
def maximum(b, x, y):
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@op_like(2)
def minimum(b, x, y):
    return b.select(b.fcmp_ordered("<", x, y), x, y)


@op_like(1)
def absolute(b, x):
    return call_f32(b, "fabs", x)


@op_like(1)
def round_even(b, x):
    """To the nearest integer, ties to even."""
    return call_f32(b, "rint", x)


@op(f32x8, i32x8)
def to_f32(b, x):
    return b.sitofp(x, f32x8.llvm)


@op(i8x8, f32x8, types.int32)
def to_bytes(b, x, offset):
    """Integral floats plus `offset`, as 8 bytes (modulo 256)."""
    whole = b.add(b.fptosi(x, i32x8.llvm), splat(b, offset, 8))
    return b.trunc(whole, i8x8.llvm)


@op_like(2)
def times_power_of_2(b, x, exponent):
    """x * 2**exponent for integral exponents and results in float32's normal range."""
    whole = ir.VectorType(I32, x.type.count)
    shift = b.shl(b.fptosi(exponent, whole), ir.Constant(whole, [23] * whole.count))
    return b.bitcast(b.add(b.bitcast(x, whole), shift), x.type)


@op(i8x32, i8x32)
def low_nibbles(b, x):
    return b.and_(x, constant(i8x32, [15] * 32))


@op(i8x32, i8x32)
def high_nibbles(b, x):
    return b.lshr(x, constant(i8x32, [4] * 32))


@op(f32x8, f32x8, f32x8)
def even_lanes(b, x, y):
    """x[0], x[2], x[4], x[6], y[0], y[2], …"""
    return b.shuffle_vector(x, y, constant(i32x8, range(0, 16, 2)))


@op(f32x8, f32x8, f32x8)
def odd_lanes(b, x, y):
    return b.shuffle_vector(x, y, constant(i32x8, range(1, 16, 2)))


def _reduce(pairwise: Callable[[Any, Any, Any], Any]) -> Any:
    @op(types.float32, f32x8)
    def reduce(b, x):
        for step in (4, 2, 1):
            lanes = [(i + step) % 8 for i in range(8)]
            x = pairwise(b, x, b.shuffle_vector(x, x, constant(i32x8, lanes)))
        return b.extract_element(x, I32(0))

    return reduce


sum_lanes = _reduce(lambda b, x, y: b.fadd(x, y))
max_lanes = _reduce(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))


# Weights to numbers


@op(f32x8, types.intp)
def load_e8m0(b, address):
    """8 E8M0 scales: bytes e to 2**(e - 127). e = 0 gives 0 for 2**-127, which no float32 result can show."""
    exponents = b.load(pointer(b, address, i8x8.llvm), align=1)
    bits = b.shl(b.zext(exponents, i32x8.llvm), constant(i32x8, [23] * 8))
    return b.bitcast(bits, f32x8.llvm)


def _byte_op(index: int) -> Any:
    @op(f32x8, i8x32)
    def byte_to_f32(b, x):
        lanes = b.bitcast(x, i32x8.llvm)
        high = b.shl(lanes, constant(i32x8, [24 - 8 * index] * 8))
        return b.sitofp(b.ashr(high, constant(i32x8, [24] * 8)), f32x8.llvm)

    return byte_to_f32


byte_0, byte_1, byte_2, byte_3 = (_byte_op(i) for i in range(4))  # signed byte i of each 32-bit lane


@op(f32x8, types.intp)
def load_bf16_even(b, address):
    """The lower of each pair of bfloat16 in 32 bytes, as float32."""
    lanes = b.load(pointer(b, address, i32x8.llvm), align=1)
    return b.bitcast(b.shl(lanes, constant(i32x8, [16] * 8)), f32x8.llvm)


@op(f32x8, types.intp)
def load_bf16_odd(b, address):
    lanes = b.load(pointer(b, address, i32x8.llvm), align=1)
    return b.bitcast(b.and_(lanes, constant(i32x8, [-65536] * 8)), f32x8.llvm)


# Functions


@njit(fastmath=FASTMATH)
def exp(x):
    """e**x in every lane, to 2 units in the last place; below -87 it gives e**-87, near enough to 0.

    Source: the range reduction and polynomial of Cephes' expf.
    """
    x = minimum(splat_like(x, 88.0), maximum(splat_like(x, -87.0), x))  # in this order a NaN stays one
    n = round_even(mul(x, splat_like(x, 1.44269504088896341)))
    r = fma(n, splat_like(x, -0.693359375), x)
    r = fma(n, splat_like(x, 2.12194440e-4), r)
    p = fma(splat_like(x, 1.9875691500e-4), r, splat_like(x, 1.3981999507e-3))
    p = fma(p, r, splat_like(x, 8.3334519073e-3))
    p = fma(p, r, splat_like(x, 4.1665795894e-2))
    p = fma(p, r, splat_like(x, 1.6666665459e-1))
    p = fma(p, r, splat_like(x, 5.0000001201e-1))
    return times_power_of_2(add(fma(p, mul(r, r), r), splat_like(x, 1.0)), n)
