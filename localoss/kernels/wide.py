"""Vectors of float32 as long as this CPU's registers, and tiles of them: attention's products.

A tile is ROWS rows of TILE_COLUMNS sums, two vectors a row. Each sum is added up by itself, in order, so
that the length of vectors doesn't change a bit of it.
"""

from llvmlite import ir
from numba import types

from localoss.kernels import isa
from localoss.kernels.simd import I32, Vector, call_f32, f32x8, op, pointer, splat

LANES, ROWS = isa.F32_LANES, isa.TILE_ROWS
TILE_COLUMNS = 2 * LANES
f32w = Vector("f32", LANES)
SCALE_ORIGIN = (127 - 23) << 3  # a scale's code 0 is 2**-23: what the upper bits of its float32 are then
_TILE, _PAIR, _PLACES = types.UniTuple(f32w, 2 * ROWS), types.UniTuple(f32w, 2), types.UniTuple(types.intp, 2)


@op(f32w, types.intp)
def load_f32w(b, address):
    return b.load(pointer(b, address, f32w.llvm), align=1)


@op(types.void, types.intp, f32w)
def store_f32w(b, address, value):
    b.store(value, pointer(b, address, f32w.llvm), align=1)


@op(f32w, types.float32)
def splat_f32w(b, value):
    return splat(b, value, LANES)


@op(f32w, types.intp, types.intp, types.int32)
def load_key_codes(b, high, low, shift):
    """Codes of 10 bits as float32: signed bytes at `high`, and below them two bits of each byte at `low`,
    those from bit `shift` on.
    """
    ints, octets = ir.VectorType(I32, LANES), ir.VectorType(ir.IntType(8), LANES)
    above = b.sext(b.load(pointer(b, high, octets), align=1), ints)
    below = b.lshr(b.zext(b.load(pointer(b, low, octets), align=1), ints), splat(b, shift, LANES))
    code = b.or_(b.shl(above, _ints(2)), b.and_(below, _ints(3)))
    return b.sitofp(code, f32w.llvm)


@op(f32w, types.intp)
def load_key_scales(b, address):
    """Scales of an int8 cache as float32: a byte has 5 bits of an exponent and 3 of a mantissa."""
    octets = b.load(pointer(b, address, ir.VectorType(ir.IntType(8), LANES)), align=1)
    bits = b.add(b.zext(octets, ir.VectorType(I32, LANES)), _ints(SCALE_ORIGIN))
    return b.bitcast(b.shl(bits, _ints(20)), f32w.llvm)


def _ints(value):
    return ir.Constant(ir.VectorType(I32, LANES), [value] * LANES)


def _row(b, places, row):
    """The address of a row at `places`: an address, and the bytes from row to row."""
    return b.add(b.extract_value(places, 0), b.mul(b.extract_value(places, 1), ir.IntType(64)(row)))


def _place(b, places, i):
    """Where vector i of a tile lies."""
    return pointer(b, b.add(_row(b, places, i // 2), ir.IntType(64)(4 * LANES * (i % 2))), f32w.llvm)


@op(_TILE, _PLACES)
def load_tile(b, places):
    """The tile at `places`: an address, and the bytes from row to row."""
    tile = ir.Constant(ir.ArrayType(f32w.llvm, 2 * ROWS), ir.Undefined)
    for i in range(2 * ROWS):
        tile = b.insert_value(tile, b.load(_place(b, places, i), align=1), i)
    return tile


@op(types.void, _PLACES, _TILE)
def store_tile(b, places, tile):
    for i in range(2 * ROWS):
        b.store(b.extract_value(tile, i), _place(b, places, i), align=1)


@op(_TILE, _TILE, _PLACES, _PAIR)
def add_products(b, tile, places, pair):
    """tile + a float of each row, at `places`, times two vectors."""
    for i in range(2 * ROWS):
        number = pointer(b, _row(b, places, i // 2), ir.FloatType())
        factor = splat(b, b.load(number, align=1), LANES)
        total = call_f32(b, "fmuladd", b.extract_value(pair, i % 2), factor, b.extract_value(tile, i))
        tile = b.insert_value(tile, total, i)
    return tile


def _eights(b, x):
    """The parts of 8 lanes that x has."""
    for first in range(0, LANES, 8):
        lanes = ir.Constant(ir.VectorType(I32, 8), list(range(first, first + 8)))
        yield b.shuffle_vector(x, x, lanes)


@op(f32x8, f32x8, f32w)
def maximum_of_eights(b, x, wide):
    for part in _eights(b, wide):
        x = b.select(b.fcmp_ordered(">", x, part), x, part)
    return x


@op(f32x8, f32x8, f32w)
def add_eights(b, sums, wide):
    """sums plus the first 8 lanes, plus the second ones: in the order of a CPU with vectors of 8."""
    for part in _eights(b, wide):
        sums = b.fadd(sums, part)
    return sums
