"""The scales of quantized groups, searched by jitted loops; equal to numbers.py bit for bit.

The scale rules stay in numbers.py: a loop finds each group's extreme, NumPy makes the rule's scale of it,
and another loop tries that scale's neighbours. `words` are bfloat16 bits or float32's, see jit.words_of.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from quant.format.jit import bits_of, jit
from quant.format.numbers import (
    F16,
    F32,
    GROUP,
    MXFP4_STEPS,
    SEARCHED_F16,
    SURELY_LESS,
    U8,
    IntFormat,
    in_groups,
    mxfp4_scales,
)

_FIRST_F16, _LAST_F16 = SEARCHED_F16
# Groups that lie beside each other in vectors, at the least. With a narrow matrix's one group a row, calls
# and slices took forty times as long as the numbers.
_BESIDE = 64
_WHOLE = np.float32(1.5 * 2**23)  # added and taken away, it rounds as np.rint does, and in vectors


def best_int_scales(
    words: NDArray[Any],
    shift: int,
    rule: Callable[[F32], F16],
    form: IntFormat,
    moments: F32 | None = None,
) -> F16:
    """formats.search_int_scales from the scales that `rule` gives `words` (R, C): (R, C/32)."""
    scales = rule(_group_extremes(words, shift))
    steps, lowest, highest = np.array(form.steps, np.int32), np.float32(form.lowest), np.float32(form.highest)
    weights = np.ones(words.shape[1], np.float32) if moments is None else moments
    by_column = np.ascontiguousarray(weights.reshape(-1, GROUP).T)
    for groups, some, count in _wide_rows(words, scales.view(np.uint16)):
        _search_int(groups, np.tile(by_column, count), shift, steps, lowest, highest, some)
    return scales


def best_mxfp4_scales(words: NDArray[Any], shift: int) -> U8:
    """formats.search_mxfp4_scales from mxfp4_scales of `words` (R, C): (R, C/32) u8."""
    scales = mxfp4_scales(_group_extremes(words, shift))
    for groups, some, _ in _wide_rows(words, scales):
        _search_mxfp4(groups, shift, np.array(MXFP4_STEPS, np.int32), some)
    return scales


def _wide_rows(words: NDArray[Any], scales: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any], int]]:
    """`words` (R, C) as groups (r, B, 32), their `scales` as (r, B), a view, and the rows that r has in one.

    A group's scale depends on no other group, so narrow rows can lie one after the other in a wide one.
    """
    rows, columns = words.shape
    together = max(1, _BESIDE * GROUP // columns)
    whole = rows // together * together
    for some, count in ((slice(whole), together), (slice(whole, rows), rows - whole)):
        if len(scales[some]):
            wide = words[some].reshape(-1, count * columns)
            yield in_groups(wide), scales[some].reshape(len(wide), -1), count


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
def _search_int(
    words: Any, moments: Any, shift: int, steps: Any, lowest: Any, highest: Any, scales: Any
) -> None:
    """Put the best of the scales tried into `scales` (R, B) u16, float16 bits, of `words` (R, B, 32).

    moments (32, B) f32 weigh the squared errors. A row's groups lie beside each other in vectors: loops over
    one group's 32 numbers end in scalars, and took twice as long.
    """
    count = words.shape[1]
    values, eighths = np.empty((32, count), np.float32), np.empty((8, count), np.float32)
    quarters, error = np.empty((4, count), np.float32), np.empty(count, np.float32)
    least, tried, first = np.empty_like(error), np.empty_like(error), np.empty(count, np.uint16)
    for row in range(words.shape[0]):
        for block in range(count):
            first[block] = scales[row, block]
            for column in range(32):
                values[column, block] = bits_of(words[row, block, column], shift).view(np.float32)
        _int_scales(first, np.int32(0), tried)
        _int_errors(values, moments, tried, lowest, highest, eighths, quarters, least)
        for step in steps:
            _int_scales(first, step, tried)
            _int_errors(values, moments, tried, lowest, highest, eighths, quarters, error)
            _take_better(first, step, error, least, scales[row])


@jit
def _int_scales(bits: Any, step: Any, out: Any) -> None:
    """out (B,) f32: the float16 scales `bits` (B,) u16, `step` steps away; they are normal numbers."""
    for block in range(len(out)):
        stepped = np.int32(bits[block]) + step
        scale = np.uint32(((stepped & 0x8000) << 16) | (((stepped & 0x7FFF) << 13) + 0x38000000))
        out[block] = scale.view(np.float32)


@jit
def _int_errors(
    values: Any, moments: Any, scales: Any, lowest: Any, highest: Any, eighths: Any, quarters: Any, out: Any
) -> None:
    """out (B,) f32: weighed squared errors of `values` (32, B) at `scales` (B,), in formats._sums's order."""
    for i in range(8):
        _add_four(
            (values[i], values[16 + i], values[8 + i], values[24 + i]),
            (moments[i], moments[16 + i], moments[8 + i], moments[24 + i]),
            scales,
            lowest,
            highest,
            eighths[i],
        )
    _add_eighths(eighths, quarters, out)


@jit
def _add_eighths(eighths: Any, quarters: Any, out: Any) -> None:
    """out (B,) f32: the sum of `eighths` (8, B), halves upon halves; `quarters` (4, B) is scratch."""
    for i in range(4):
        for block in range(len(out)):
            quarters[i, block] = eighths[i, block] + eighths[4 + i, block]
    for block in range(len(out)):
        out[block] = (quarters[0, block] + quarters[2, block]) + (quarters[1, block] + quarters[3, block])


@jit
def _add_four(values: Any, moments: Any, scales: Any, lowest: Any, highest: Any, out: Any) -> None:
    """out (B,) f32: the errors of four columns, each (B,), added up in pairs."""
    (a, b, c, d), (ma, mb, mc, md) = values, moments
    for block in range(len(out)):
        scale = scales[block]
        first = _int_error(a[block], ma[block], scale, lowest, highest)
        first += _int_error(b[block], mb[block], scale, lowest, highest)
        second = _int_error(c[block], mc[block], scale, lowest, highest)
        second += _int_error(d[block], md[block], scale, lowest, highest)
        out[block] = first + second


@numba.njit(inline="always", error_model="numpy")
def _int_error(value: Any, moment: Any, scale: Any, lowest: Any, highest: Any) -> Any:
    """moment * (value - its rounding)**2, all f32."""
    code = (value / scale + _WHOLE) - _WHOLE
    error = value - min(max(code, lowest), highest) * scale
    return moment * (error * error)


@jit
def _take_better(first: Any, step: Any, error: Any, least: Any, scales: Any) -> None:
    """Where `error` (B,) is surely less than `least` (B,): note it, and the scale in `scales` (B,) u16."""
    for block in range(len(least)):
        bits = np.int32(first[block])
        if _FIRST_F16 <= (bits & 0x7FFF) <= _LAST_F16 and error[block] < least[block] * SURELY_LESS:
            least[block] = error[block]
            scales[block] = bits + step


@jit
def _search_mxfp4(words: Any, shift: int, steps: Any, scales: Any) -> None:
    """Put the best of the scales tried into `scales` (R, B) u8 of `words` (R, B, 32); see _search_int."""
    count = words.shape[1]
    magnitudes, eighths = np.empty((32, count), np.float32), np.empty((8, count), np.float32)
    quarters, error = np.empty((4, count), np.float32), np.empty(count, np.float32)
    least, first = np.empty_like(error), np.empty(count, np.int32)
    for row in range(words.shape[0]):
        for block in range(count):
            first[block] = scales[row, block]
            unit = np.float32(2.0) ** np.float32(127 - first[block])
            for column in range(32):
                bits = np.uint32(bits_of(words[row, block, column], shift) & np.uint32(0x7FFFFFFF))
                magnitudes[column, block] = bits.view(np.float32) * unit
        _fp4_errors(magnitudes, np.float32(1), eighths, quarters, least)
        for step in steps:
            _fp4_errors(magnitudes, np.float32(2.0) ** np.float32(step), eighths, quarters, error)
            for block in range(count):
                if first[block] + step >= 0 and error[block] < least[block] * SURELY_LESS:
                    least[block] = error[block]
                    scales[row, block] = first[block] + step


@jit
def _fp4_errors(magnitudes: Any, factor: Any, eighths: Any, quarters: Any, out: Any) -> None:
    """out (B,) f32: the squared errors of `magnitudes` (32, B) rounded to FP4's values times `factor`."""
    for i in range(8):
        a, b, c, d = magnitudes[i], magnitudes[16 + i], magnitudes[8 + i], magnitudes[24 + i]
        eighth = eighths[i]
        for block in range(len(out)):
            first = _fp4_error(a[block], factor) + _fp4_error(b[block], factor)
            eighth[block] = first + (_fp4_error(c[block], factor) + _fp4_error(d[block], factor))
    _add_eighths(eighths, quarters, out)


@numba.njit(inline="always", error_model="numpy")
def _fp4_error(magnitude: Any, factor: Any) -> Any:
    """(magnitude - the nearest of FP4's values times `factor`)**2, all f32; `factor` is a power of two."""
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    x = magnitude / factor
    value = half * np.float32(x > np.float32(0.25)) + half * np.float32(x >= np.float32(0.75))
    value += half * np.float32(x > np.float32(1.25)) + half * np.float32(x >= np.float32(1.75))
    value += one * np.float32(x > np.float32(2.5)) + one * np.float32(x >= np.float32(3.5))
    value += two * np.float32(x > np.float32(5))
    error = magnitude - value * factor
    return error * error
