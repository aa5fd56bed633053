"""What the instruction sets share."""

from numba import njit

from localoss.kernels.simd import FASTMATH

FP4_TWICE = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
INT4 = [0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1]

# Vectors must stay in registers: LLVM inlines these at every call.
force_inline = njit(fastmath=FASTMATH, forceinline=True)
