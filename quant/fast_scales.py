"""The scales of quantized groups, searched by jitted loops; equal to formats.py bit for bit.

The scale rules stay in formats.py: a loop finds each group's extreme, NumPy makes the rule's scale of it,
and another loop tries that scale's neighbours. `words` are bfloat16 bits or float32's, see jit.words_of.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from quant.formats import (
    F16,
    F32,
    MXFP4_STEPS,
    SEARCHED_F16,
    SURELY_LESS,
    U8,
    IntFormat,
    in_groups,
    mxfp4_scales,
)
from quant.jit import bits_of, jit

_FIRST_F16, _LAST_F16 = SEARCHED_F16
_WHOLE = np.float32(1.5 * 2**23)  # added and taken away, it rounds as np.rint does, and in vectors


def best_int_scales(words: NDArray[Any], shift: int, rule: Callable[[F32], F16], form: IntFormat) -> F16:
    """formats.search_int_scales from the scales that `rule` gives `words` (R, C): (R, C/32)."""
    groups = in_groups(words)
    scales = rule(_group_extremes(words, shift))
    steps = np.array(form.steps, np.int32)
    _search_int(
        groups, shift, steps, np.float32(form.lowest), np.float32(form.highest), scales.view(np.uint16)
    )
    return scales


def best_mxfp4_scales(words: NDArray[Any], shift: int) -> U8:
    """formats.search_mxfp4_scales from mxfp4_scales of `words` (R, C): (R, C/32) u8."""
    scales = mxfp4_scales(_group_extremes(words, shift))
    _search_mxfp4(in_groups(words), shift, np.array(MXFP4_STEPS, np.int32), scales)
    return scales


def _group_extremes(words: NDArray[Any], shift: int) -> NDArray[np.float32]:
    """formats.group_extremes of `words` (R, C): NaN counts as the largest."""
    groups = in_groups(words)
    extremes = np.empty(groups.shape[:2], np.uint32)
    _extreme_bits(groups, shift, extremes)
    return extremes.view(np.float32)


@jit
def _extreme_bits(words: Any, shift: int, out: Any) -> None:
    """out (R, B) u32: the float32 of largest magnitude among `words` (R, B, 32); ties go to the negative."""
    for row in range(words.shape[0]):
        for block in range(words.shape[1]):
            largest = np.uint32(0)
            for column in range(32):
                bits = bits_of(words[row, block, column], shift)
                # Magnitude first, sign last: one integer maximum finds both.
                largest = max(largest, np.uint32((bits << np.uint32(1)) | (bits >> np.uint32(31))))
            out[row, block] = (largest >> np.uint32(1)) | (largest << np.uint32(31))


@jit
def _search_int(words: Any, shift: int, steps: Any, lowest: Any, highest: Any, scales: Any) -> None:
    """Put the best of the scales tried into `scales` (R, B) u16, float16 bits, of `words` (R, B, 32)."""
    values, squares = np.empty(32, np.float32), np.empty(32, np.float32)
    for row in range(words.shape[0]):
        for block in range(words.shape[1]):
            first = np.int32(scales[row, block])
            if _FIRST_F16 <= (first & 0x7FFF) <= _LAST_F16:
                for column in range(32):
                    values[column] = bits_of(words[row, block, column], shift).view(np.float32)
                least = _int_error(values, squares, first, lowest, highest)
                for step in steps:
                    error = _int_error(values, squares, first + step, lowest, highest)
                    if error < least * SURELY_LESS:
                        least = error
                        scales[row, block] = first + step


@numba.njit(inline="always")
def _int_error(values: Any, squares: Any, scale_bits: Any, lowest: Any, highest: Any) -> Any:
    """The squared error, f32, of `values` (32,) f32 at a float16 scale that is a normal number."""
    scale = np.uint32(((scale_bits & 0x8000) << 16) | (((scale_bits & 0x7FFF) << 13) + 0x38000000))
    scale = scale.view(np.float32)
    for column in range(32):
        code = (values[column] / scale + _WHOLE) - _WHOLE
        code = min(max(code, lowest), highest)
        error = values[column] - code * scale
        squares[column] = error * error
    return _sum(squares)


@jit
def _search_mxfp4(words: Any, shift: int, steps: Any, scales: Any) -> None:
    """Put the best of the scales tried into `scales` (R, B) u8 of `words` (R, B, 32)."""
    magnitudes, squares = np.empty(32, np.float32), np.empty(32, np.float32)
    for row in range(words.shape[0]):
        for block in range(words.shape[1]):
            first = np.int32(scales[row, block])
            unit = np.float32(2.0) ** np.float32(127 - first)
            for column in range(32):
                bits = np.uint32(bits_of(words[row, block, column], shift) & np.uint32(0x7FFFFFFF))
                magnitudes[column] = bits.view(np.float32) * unit
            least = _fp4_error(magnitudes, squares, np.float32(1))
            for step in steps:
                if first + step >= 0:
                    error = _fp4_error(magnitudes, squares, np.float32(2.0) ** np.float32(step))
                    if error < least * SURELY_LESS:
                        least = error
                        scales[row, block] = first + step


@numba.njit(inline="always")
def _fp4_error(magnitudes: Any, squares: Any, factor: Any) -> Any:
    """The squared error, f32, of `magnitudes` (32,) f32 rounded to FP4's values times `factor`."""
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    for column in range(32):
        x = magnitudes[column] / factor
        value = half * np.float32(x > np.float32(0.25)) + half * np.float32(x >= np.float32(0.75))
        value += half * np.float32(x > np.float32(1.25)) + half * np.float32(x >= np.float32(1.75))
        value += one * np.float32(x > np.float32(2.5)) + one * np.float32(x >= np.float32(3.5))
        value += two * np.float32(x > np.float32(5))
        error = magnitudes[column] - value * factor
        squares[column] = error * error
    return _sum(squares)


@numba.njit(inline="always")
def _sum(squares: Any) -> Any:
    """formats._sums of 32 numbers, in place; written out, as LLVM makes vectors of it then."""
    for i in range(16):
        squares[i] += squares[16 + i]
    for i in range(8):
        squares[i] += squares[8 + i]
    for i in range(4):
        squares[i] += squares[4 + i]
    return (squares[0] + squares[2]) + (squares[1] + squares[3])
