"""A part of each norm's gain stands in the columns of the matrix after it: both then round better.

A column whose gain is large is large after the norm, and its block of 32 is rounded to int8 as coarsely as it
asks; the weights there are small. A power of two near the gain's square root goes from the gain into the
column: an exact change of floats, and nothing at run time. Only how far columns differ counts, so the usual
column stays as it is, and so does a norm whose gains are alike.
"""

import numpy as np
from numpy.typing import NDArray

from quant.format.numbers import F32

Shift = NDArray[np.int8]
MOST = 16  # binary places that a column moves by


def shift_of(gain: F32) -> Shift:
    """(D,) i8: by how many binary places each column of the matrix after the norm is moved."""
    exponents = np.frexp(gain)[1] >> 1  # of the gain's square root, by integers alone: the same everywhere
    used = exponents[gain != 0]
    if not len(used):
        return np.zeros(len(gain), np.int8)
    moved = exponents - int(np.sort(used)[len(used) // 2])
    shift: Shift = np.where(gain != 0, np.clip(moved, -MOST, MOST), 0).astype(np.int8)
    return shift


def factor_of(shift: Shift) -> F32 | None:
    """(D,) f32: what the columns are multiplied with, and the gains divided by; None where all stay."""
    return np.ldexp(np.float32(1), shift.astype(np.int32)).astype(np.float32) if shift.any() else None
