"""arm64 with the dot product instructions: all Apple silicon, and nearly every other arm64 since 2018.

sdot multiplies 4 signed by 4 signed bytes and adds them to a 32-bit lane, without saturating. Registers hold
128 bits: half of one of our vectors, 4 rows of a tile.
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
from localoss.kernels.simd import I32, call, f32x8, i8x32, i32x8, op, pointer, types

OFFSET_4BIT = OFFSET_8BIT = 0  # signed by signed: nothing to correct
F32_LANES, TILE_ROWS = 8, 4

_BYTES = ir.VectorType(ir.IntType(8), 16)
_SUMS = ir.VectorType(I32, 4)
_HALFS = ir.VectorType(ir.HalfType(), 8)


def _pick(b, x, y, lanes):
    """The lanes of x and y, counted through, that `lanes` names."""
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def _halves(b, x):
    return _pick(b, x, x, range(16)), _pick(b, x, x, range(16, 32))


def _look_up(b, table, places):
    values = ir.Constant(_BYTES, table)
    low, high = (call(b, "llvm.aarch64.neon.tbl1.v16i8", _BYTES, values, half) for half in _halves(b, places))
    return _pick(b, low, high, range(32))


@op(i8x32, i8x32)
def decode_fp4(b, nibbles):
    """E2M1 codes to twice their value, -12 to 12."""
    return _look_up(b, FP4_TWICE, nibbles)


@op(i8x32, i8x32)
def decode_int4(b, nibbles):
    return _look_up(b, INT4, nibbles)


def _multiply_add(b, total, w, x, lane):
    """Add to 4 sums the products of w with the 4 bytes in `lane` of x, the same for each sum."""
    x = b.bitcast(x, _SUMS)
    x = b.bitcast(_pick(b, x, x, [lane] * 4), _BYTES)
    return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", _SUMS, total, w, x)


@op(i32x8, types.intp, types.UniTuple(i8x32, 8))
def _dot(b, address, w):  # one operation, as sdot's lane must be a constant
    x = _halves(b, b.load(pointer(b, address, i8x32.llvm), align=1))
    low = high = ir.Constant(_SUMS, [0] * 4)
    for i in range(8):
        w_low, w_high = _halves(b, b.extract_value(w, i))
        low = _multiply_add(b, low, w_low, x[i // 4], i % 4)
        high = _multiply_add(b, high, w_high, x[i // 4], i % 4)
    return _pick(b, low, high, range(8))


@force_inline
def correction_4bit(w):
    return 0


@force_inline
def dot_4bit(x, w, correction):
    """Integer dot products of the 32 activations at address `x` with the 8 rows of tile `w`."""
    return _dot(x, w)


correction_8bit, dot_8bit = correction_4bit, dot_4bit


@op(f32x8, types.intp)
def load_f16(b, address):
    """8 float16 as float32."""
    return b.fpext(b.load(pointer(b, address, _HALFS), align=1), f32x8.llvm)


@op(types.void, types.intp, f32x8)
def store_f16(b, address, value):
    """8 float32 as float16, rounded to nearest even."""
    b.store(b.fptrunc(value, _HALFS), pointer(b, address, _HALFS), align=1)


load_f16w = load_f16
