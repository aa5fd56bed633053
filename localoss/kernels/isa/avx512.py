"""x86-64 with AVX-512, its VNNI and its VBMI (Intel since 2019, AMD since 2022): as vnni, with registers of
512 bits, and 32 of them, for a lone token's products and for attention.

Products of several tokens take two row groups at once; those of a row group that is left over are vnni's.
"""

from llvmlite import ir

from localoss.kernels.isa.common import FP4_TWICE, INT4
from localoss.kernels.isa.vnni import (  # noqa: F401
    OFFSET_4BIT,
    OFFSET_8BIT,
    correction_4bit,
    correction_8bit,
    decode_fp4,
    decode_int4,
    dot_4bit,
    dot_8bit,
    load_f16,
    store_f16,
)
from localoss.kernels.simd import (
    I32,
    Vector,
    call,
    call_f32,
    constant,
    i8x32,
    i32x8,
    op,
    pointer,
    splat,
    types,
)

F32_LANES, TILE_ROWS = 16, 8


@op(Vector("f32", 16), types.intp)
def load_f16w(b, address):
    """16 float16 as float32."""
    halves = b.load(pointer(b, address, ir.VectorType(ir.HalfType(), 16)), align=1)
    return b.fpext(halves, ir.VectorType(ir.FloatType(), 16))


# A lone token's products: a vector of 512 bits has columns 4i to 4i + 3 of the 8 rows in its lower half, and
# those of 4j to 4j + 3 in its upper one.

_BYTES, _HALVES = ir.VectorType(ir.IntType(8), 64), ir.VectorType(ir.IntType(16), 32)
_SUMS = ir.VectorType(I32, 16)


def _whole(b, address):
    return b.load(pointer(b, address, _BYTES), align=1)


def _spread(b, x, i, j):
    """Columns 4i to 4i + 3 of the activations x for 8 rows, then columns 4j to 4j + 3."""
    lanes = ir.Constant(_SUMS, [i] * 8 + [j] * 8)
    return b.bitcast(b.shuffle_vector(x, x, lanes), _BYTES)


def _multiply_add(b, total, unsigned, signed):
    unsigned, signed = b.bitcast(unsigned, _SUMS), b.bitcast(signed, _SUMS)
    return call(b, "llvm.x86.avx512.vpdpbusd.512", _SUMS, total, unsigned, signed)


def _dot(b, x, parts, correction):
    """Dot products of 32 activations, with their offset, with `parts`: (weights, i, j) each, see above.

    correction: sums to subtract for the offset."""
    x = b.bitcast(b.load(pointer(b, x, i8x32.llvm), align=1), i32x8.llvm)
    totals = [ir.Constant(_SUMS, [0] * 16), ir.Constant(_SUMS, [0] * 16)]
    for n, (w, i, j) in enumerate(parts):
        totals[n % 2] = _multiply_add(b, totals[n % 2], _spread(b, x, i, j), w)
    total = b.sub(b.add(*totals), correction)
    low, high = (b.shuffle_vector(total, total, constant(i32x8, range(at, at + 8))) for at in (0, 8))
    return b.add(low, high)


def _corrections(b, weights):
    """128 * (sum of weights), for the activations' offset."""
    total = ir.Constant(_SUMS, [0] * 16)
    for w in weights:
        total = _multiply_add(b, total, ir.Constant(_BYTES, [-128] * 64), w)  # -128: unsigned 128
    return total


def _dot_4bit(b, x, codes, table):
    table, parts = ir.Constant(_BYTES, table * 4), []
    for n in range(2):
        both = _whole(b, b.add(codes, ir.IntType(64)(64 * n)))
        high = b.bitcast(b.lshr(b.bitcast(both, _HALVES), ir.Constant(_HALVES, [4] * 32)), _BYTES)
        for places, at in ((both, 4 * n), (high, 4 * n + 1)):  # vpermb looks at 6 bits: a table of 4 times 16
            parts.append((call(b, "llvm.x86.avx512.permvar.qi.512", _BYTES, table, places), at, at + 2))
    u, v, w, z = (w for w, _, _ in parts)
    return _dot(b, x, parts, _corrections(b, [b.add(b.add(u, v), b.add(w, z))]))


@op(i32x8, types.intp, types.intp)
def dot_fp4_tile(b, x, codes):
    """As dot_4bit, of the tile of E2M1 codes at address `codes`."""
    return _dot_4bit(b, x, codes, FP4_TWICE)


@op(i32x8, types.intp, types.intp)
def dot_int4_tile(b, x, codes):
    return _dot_4bit(b, x, codes, INT4)


@op(i32x8, types.intp, types.intp)
def dot_int8_tile(b, x, codes):
    weights = [_whole(b, b.add(codes, ir.IntType(64)(64 * n))) for n in range(4)]
    parts = [(w, 2 * n, 2 * n + 1) for n, w in enumerate(weights)]
    return _dot(b, x, parts, _corrections(b, weights))


# Two row groups: a vector has 4 columns of the first one's 8 rows in its lower half, then of the second's.

_FLOATS = ir.VectorType(ir.FloatType(), 16)
_PAIR_OF_TILES = types.UniTuple(Vector("i8", 64), 8)
_SUMS_OF_PAIR, _SCALES_OF_PAIR = Vector("i32", 16), Vector("f32", 16)


def _joined(b, kind, first, second):
    """What lies at two addresses, one after the other."""
    low, high = (b.load(pointer(b, place, kind), align=1) for place in (first, second))
    lanes = ir.Constant(ir.VectorType(I32, 2 * kind.count), list(range(2 * kind.count)))
    return b.shuffle_vector(low, high, lanes)


def _lines(b, first, second, count):
    """Vectors of the two tiles at these addresses."""
    step = ir.IntType(64)
    return [
        _joined(b, i8x32.llvm, b.add(first, step(32 * n)), b.add(second, step(32 * n))) for n in range(count)
    ]


def _tuple_of(b, vectors):
    made = ir.Constant(ir.ArrayType(_BYTES, len(vectors)), ir.Undefined)
    for n, vector in enumerate(vectors):
        made = b.insert_value(made, vector, n)
    return made


def _decoded_pair(b, first, second, table):
    table, vectors = ir.Constant(_BYTES, table * 4), []
    for both in _lines(b, first, second, 4):
        high = b.bitcast(b.lshr(b.bitcast(both, _HALVES), ir.Constant(_HALVES, [4] * 32)), _BYTES)
        for places in (both, high):
            vectors.append(call(b, "llvm.x86.avx512.permvar.qi.512", _BYTES, table, places))
    return _tuple_of(b, vectors)


@op(_PAIR_OF_TILES, types.intp, types.intp)
def load_fp4_pair(b, first, second):
    """The tiles of E2M1 codes at two addresses."""
    return _decoded_pair(b, first, second, FP4_TWICE)


@op(_PAIR_OF_TILES, types.intp, types.intp)
def load_int4_pair(b, first, second):
    return _decoded_pair(b, first, second, INT4)


@op(_PAIR_OF_TILES, types.intp, types.intp)
def load_8bit_pair(b, first, second):
    return _tuple_of(b, _lines(b, first, second, 8))


@op(_SCALES_OF_PAIR, types.intp, types.intp)
def load_fp4_scales_pair(b, first, second):
    """The scales of two tiles, halved: their codes are decoded to twice their value."""
    exponents = b.zext(_joined(b, ir.VectorType(ir.IntType(8), 8), first, second), _SUMS)
    scales = b.bitcast(b.shl(exponents, ir.Constant(_SUMS, [23] * 16)), _FLOATS)
    return b.fmul(scales, ir.Constant(_FLOATS, [0.5] * 16))


@op(_SCALES_OF_PAIR, types.intp, types.intp)
def load_f16_pair(b, first, second):
    return b.fpext(_joined(b, ir.VectorType(ir.HalfType(), 8), first, second), _FLOATS)


@op(_SUMS_OF_PAIR, _PAIR_OF_TILES)
def correction_pair(b, tiles):
    """What a dot product starts from: see vnni.correction_4bit."""
    return b.neg(_corrections(b, [b.extract_value(tiles, n) for n in range(8)]))


@op(types.void, types.UniTuple(types.intp, 3), _PAIR_OF_TILES, types.Tuple((_SUMS_OF_PAIR, _SCALES_OF_PAIR)))
def add_to_pair(b, places, tiles, others):
    """Add the products of 32 activations with two tiles to 16 sums.

    places: addresses of the sums, the activations and their scale. others: the correction, the tiles' scales.
    """
    sums, x, x_scale = (b.extract_value(places, n) for n in range(3))
    dots, scales = b.extract_value(others, 0), b.extract_value(others, 1)
    for n in range(8):
        four = b.load(pointer(b, b.add(x, ir.IntType(64)(4 * n)), I32), align=1)
        dots = _multiply_add(b, dots, splat(b, four, 16), b.extract_value(tiles, n))
    scale = splat(b, b.load(pointer(b, x_scale, ir.FloatType()), align=1), 16)
    place = pointer(b, sums, _FLOATS)
    factor = b.fmul(scales, scale)
    total = call_f32(b, "fmuladd", b.sitofp(dots, _FLOATS), factor, b.load(place, align=1))
    b.store(total, place, align=1)
