"""x86-64 with AVX-512 and its VNNI: as vnni, with registers of 512 bits, and 32 of them."""

from llvmlite import ir

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
from localoss.kernels.simd import Vector, op, pointer, types

F32_LANES, TILE_ROWS = 16, 8


@op(Vector("f32", 16), types.intp)
def load_f16w(b, address):
    """16 float16 as float32."""
    halves = b.load(pointer(b, address, ir.VectorType(ir.HalfType(), 16)), align=1)
    return b.fpext(halves, ir.VectorType(ir.FloatType(), 16))
