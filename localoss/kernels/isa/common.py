"""What the instruction sets share.

These functions call those of the set that was chosen, by way of `isa`, which is still being imported here:
Numba looks for them when it compiles.
"""

from numba import njit

from localoss.kernels import isa
from localoss.kernels.simd import FASTMATH, high_nibbles, load_i8x32, low_nibbles

FP4_TWICE = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
INT4 = [0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1]

# Vectors must stay in registers: LLVM inlines these at every call. Kernels alone may call them: the forms for
# callers in Python and C would take half of their time to compile, and are left out.
force_inline = njit(fastmath=FASTMATH, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@force_inline
def load_8bit(codes):
    """The 8 vectors of the tile at address `codes`: 4 columns of 8 rows each."""
    return (
        load_i8x32(codes),
        load_i8x32(codes + 32),
        load_i8x32(codes + 64),
        load_i8x32(codes + 96),
        load_i8x32(codes + 128),
        load_i8x32(codes + 160),
        load_i8x32(codes + 192),
        load_i8x32(codes + 224),
    )


@force_inline
def load_fp4(codes):
    a, b = load_i8x32(codes), load_i8x32(codes + 32)
    c, d = load_i8x32(codes + 64), load_i8x32(codes + 96)
    return (
        isa.decode_fp4(low_nibbles(a)),
        isa.decode_fp4(high_nibbles(a)),
        isa.decode_fp4(low_nibbles(b)),
        isa.decode_fp4(high_nibbles(b)),
        isa.decode_fp4(low_nibbles(c)),
        isa.decode_fp4(high_nibbles(c)),
        isa.decode_fp4(low_nibbles(d)),
        isa.decode_fp4(high_nibbles(d)),
    )


@force_inline
def load_int4(codes):
    a, b = load_i8x32(codes), load_i8x32(codes + 32)
    c, d = load_i8x32(codes + 64), load_i8x32(codes + 96)
    return (
        isa.decode_int4(low_nibbles(a)),
        isa.decode_int4(high_nibbles(a)),
        isa.decode_int4(low_nibbles(b)),
        isa.decode_int4(high_nibbles(b)),
        isa.decode_int4(low_nibbles(c)),
        isa.decode_int4(high_nibbles(c)),
        isa.decode_int4(low_nibbles(d)),
        isa.decode_int4(high_nibbles(d)),
    )


# One tile times one token, for sets that have nothing better (avx512 has).


@force_inline
def dot_fp4_tile(x, codes):
    """Integer dot products of the 32 activations at address `x` with the 8 rows of the tile at `codes`."""
    w = load_fp4(codes)
    return isa.dot_4bit(x, w, isa.correction_4bit(w))


@force_inline
def dot_int4_tile(x, codes):
    w = load_int4(codes)
    return isa.dot_4bit(x, w, isa.correction_4bit(w))


@force_inline
def dot_int8_tile(x, codes):
    w = load_8bit(codes)
    return isa.dot_8bit(x, w, isa.correction_8bit(w))
