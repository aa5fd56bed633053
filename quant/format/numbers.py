"""The number formats of weights, in plain NumPy: the definition that every fast path must equal bit for bit.

A group is 32 consecutive weights of a row; `encode_*` takes (R, C) float32 and gives codes (R, C) and one
scale per group (R, C/32); `decode_*` takes these back to float32.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.errors import QuantError

GROUP = 32
FP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
FP4_LARGEST_EXPONENT = 2  # of 6 = 1.5 * 2**2
E8M0_BIAS = 127
E8M0_NAN = 255
MXFP4_STEPS = (1, -1)  # scales that are tried, as steps from the rule's
SURELY_LESS = np.float32(1 - 2**-16)  # more than float32 loses in an error: no search makes one worse
SEARCHED_F16 = (0x0600, 0x7A00)  # bits of float16 scales from which every step leads to a normal number

F32 = NDArray[np.float32]
F16 = NDArray[np.float16]
U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
U16 = NDArray[np.uint16]
Weights = NDArray[Any]  # bfloat16 bits as uint16, or float32


class IntFormat(NamedTuple):
    """Range of an integer format's codes, and the scales that are tried, as float16 steps from the rule's."""

    lowest: int
    highest: int
    steps: tuple[int, ...]


INT8 = IntFormat(-127, 127, (-12, -6, 6, 12))
INT4 = IntFormat(-8, 7, (-150, -75, 75, 150))
# Weighed errors move the best scale further. INT4's steps are among these: a text makes nothing worse.
INT4_CALIBRATED = IntFormat(-8, 7, (-300, -225, -150, -75, 75, 150, 225, 300))


def bf16_to_f32(bits: U16) -> F32:
    """bfloat16 bits (any shape) as float32: exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: F32) -> U16:
    """Round float32 (any shape) to bfloat16 bits, to nearest, ties to even. NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40  # rounding could carry a NaN's mantissa into infinity
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def encode_mxfp4(weights: F32) -> tuple[U8, U8]:
    """MXFP4 codes (R, C) u8 in 0..15 and E8M0 scales (R, C/32) u8 of `weights` (R, C) f32.

    A block's scale is that of the rule (mxfp4_scales) or a neighbour, whichever gives the least squared
    error. Ties go to the even code, magnitudes beyond 6 become 6. An all-zero block has scale byte 0.
    Raises: QuantError for NaN, infinity, or columns that don't fill blocks of 32.
    Source: OCP Microscaling Formats (MX) v1.0, sections 5.3.3 and 6.3.
    """
    blocks = in_groups(weights)
    scales = search_mxfp4_scales(blocks, mxfp4_scales(group_extremes(weights)))
    magnitudes = np.ldexp(np.abs(blocks), E8M0_BIAS - scales[:, :, None].astype(np.int32))
    codes = _round_to_fp4(magnitudes) | (np.signbit(blocks).astype(np.uint8) << 3)
    return codes.reshape(weights.shape), scales


def mxfp4_scales(extremes: F32) -> U8:
    """E8M0 scales by OCP's rule, of the same shape as `extremes`. Raises: QuantError for NaN, infinity."""
    _check_finite(extremes)
    exponents = np.frexp(extremes)[1] - 1 - FP4_LARGEST_EXPONENT  # frexp's mantissa is in [0.5, 1)
    scales = np.clip(exponents + E8M0_BIAS, 0, E8M0_NAN - 1)
    return np.where(extremes == 0, 0, scales).astype(np.uint8)


def search_mxfp4_scales(blocks: F32, scales: U8) -> U8:
    """The best of each of `scales` (R, B), the next and the one before for `blocks` (R, B, 32) f32."""
    magnitudes: F32 = np.ldexp(np.abs(blocks), E8M0_BIAS - scales[:, :, None].astype(np.int32))
    best, least = scales.copy(), _sums(np.square(magnitudes - FP4_VALUES[_round_to_fp4(magnitudes)]))
    for step in MXFP4_STEPS:
        scaled: F32 = np.ldexp(magnitudes, -step)
        error = _sums(np.square(magnitudes - np.ldexp(FP4_VALUES[_round_to_fp4(scaled)], step)))
        better = (error < least * SURELY_LESS) & (scales >= -step)
        best[better] = scales[better] + np.uint8(step % 256)
        least[better] = error[better]
    return best


def _sums(squares: F32) -> F32:
    """Sums over the last axis, 32 long: halves upon halves, an order that a vector unit can keep."""
    while squares.shape[-1] > 1:
        half = squares.shape[-1] // 2
        squares = squares[..., :half] + squares[..., half:]
    return squares[..., 0]


def decode_mxfp4(codes: U8, scales: U8) -> F32:
    """`codes` (R, C) u8 in 0..15 times 2**(scale - 127), `scales` (R, C/32) u8, as (R, C) f32."""
    _check_scales(scales)
    exponents = np.repeat(scales.astype(np.int32) - E8M0_BIAS, GROUP, axis=1)
    return np.ldexp(FP4_VALUES[codes], exponents)


def _check_scales(scales: U8) -> None:
    if (scales == E8M0_NAN).any():
        raise QuantError("an MXFP4 scale is 255, which means NaN; the weights are damaged, get them again")


def _round_to_fp4(magnitudes: F32) -> U8:
    """The nearest of FP4's magnitudes; halfway between two, the one whose code is even."""
    middles = (FP4_VALUES[:7] + FP4_VALUES[1:8]) / 2
    below = np.searchsorted(middles, magnitudes, side="left")  # a tie takes the smaller code
    above = np.searchsorted(middles, magnitudes, side="right")
    return np.where(below % 2 == 0, below, above).astype(np.uint8)


def unpack_blocks(blocks: U8) -> U8:
    """Codes (R, C) of published `blocks` (R, C/32, 16) u8: byte i holds columns 2i (low) and 2i+1 (high)."""
    codes: U8 = np.stack([blocks & 15, blocks >> 4], axis=-1)
    return codes.reshape(blocks.shape[0], -1)


def pack_blocks(codes: U8) -> U8:
    """Published blocks (R, C/32, 16) u8 of `codes` (R, C) u8 in 0..15: the inverse of unpack_blocks."""
    pairs = codes.reshape(codes.shape[0], -1, GROUP // 2, 2)
    return np.asarray(pairs[..., 0] | (pairs[..., 1] << 4), np.uint8)


def group_extremes(weights: F32) -> F32:
    """The weight of largest magnitude in each group, (R, C/32) f32; the negative one where both signs tie."""
    groups = in_groups(weights)
    lowest, highest = groups.min(axis=2), groups.max(axis=2)
    return np.where(-lowest >= highest, lowest, highest)


def int8_scales(extremes: F32) -> F16:
    """float16 scales that take `extremes` to ±127. Raises: QuantError for NaN, infinity, beyond float16."""
    return _f16_scales(np.abs(extremes), np.float32(127), "int8")


def int4_scales(extremes: F32) -> F16:
    """Signed float16 scales that take `extremes` to -8. Raises: as int8_scales."""
    return _f16_scales(extremes, np.float32(-8), "int4")


def _f16_scales(extremes: F32, target: np.float32, dtype: str) -> F16:
    _check_finite(extremes)
    with np.errstate(over="ignore"):
        scales = (extremes / target).astype(np.float16)
    if np.isinf(scales).any():
        largest = np.abs(extremes).max()
        raise QuantError(f"weights up to {largest:.3g} are beyond {dtype}'s float16 scale; keep them as bf16")
    # float16's subnormals are so coarse that rounding down would cut large weights off: take the next one up.
    cut = np.abs(extremes) > (abs(target) + np.float32(0.5)) * np.abs(scales.astype(np.float32))
    away = np.copysign(np.float16(np.inf), extremes[cut] / target).astype(np.float16)
    scales[cut] = np.nextafter(scales[cut], away)
    scales[extremes == 0] = 0  # never -0
    return scales


def encode_int8(weights: F32) -> tuple[I8, F16]:
    """int8 codes (R, C) in -127..127 and float16 scales (R, C/32) of `weights` (R, C) f32.

    scale = max|w| / 127 rounded to float16, or a neighbour with less squared error; code = w / scale, to
    nearest, ties to even. An all-zero group has scale 0.
    Raises: QuantError for NaN, infinity, beyond float16, columns that don't fill groups of 32.
    """
    return _encode_int(weights, int8_scales(group_extremes(weights)), INT8)


def encode_int4(weights: F32, moments: F32 | None = None) -> tuple[I8, F16]:
    """int4 codes (R, C) i8 in -8..7 and signed float16 scales (R, C/32) of `weights` (R, C) f32.

    scale = the weight of largest magnitude / -8, so that the full range serves its sign; otherwise as int8.
    `moments` (C,) f32 weigh the squared errors of the columns.
    """
    form = INT4 if moments is None else INT4_CALIBRATED
    return _encode_int(weights, int4_scales(group_extremes(weights)), form, moments)


def _encode_int(weights: F32, scales: F16, form: IntFormat, moments: F32 | None = None) -> tuple[I8, F16]:
    groups = in_groups(weights)
    scales = search_int_scales(groups, scales, form, moments)
    return _quantize(groups, scales, form).astype(np.int8).reshape(weights.shape), scales


def search_int_scales(groups: F32, scales: F16, form: IntFormat, moments: F32 | None = None) -> F16:
    """The best of each of `scales` (R, G) and those `form.steps` float16 steps away, for `groups` (R, G, 32).

    `moments` (32 * G,) f32 weigh the columns' squared errors. Scales at the ends of float16's range stay as
    they are.
    """
    bits = scales.view(np.uint16)
    magnitudes = bits & 0x7FFF
    searched = (magnitudes >= SEARCHED_F16[0]) & (magnitudes <= SEARCHED_F16[1])
    columns = np.ones(groups.shape[1:], np.float32) if moments is None else moments.reshape(-1, GROUP)
    best, least = scales.copy(), _int_errors(groups, scales, form, columns)
    for step in form.steps:
        tried = np.where(searched, bits + np.uint16(step % 65536), bits).view(np.float16)
        error = _int_errors(groups, tried, form, columns)
        better = error < least * SURELY_LESS
        best[better], least[better] = tried[better], error[better]
    return best


def _int_errors(groups: F32, scales: F16, form: IntFormat, columns: F32) -> F32:
    errors = groups - _quantize(groups, scales, form) * scales.astype(np.float32)[:, :, None]
    return _sums(columns * np.square(errors))


def _quantize(groups: F32, scales: F16, form: IntFormat) -> F32:
    """Codes (R, G, 32), as float32, of `groups` (R, G, 32) with `scales` (R, G)."""
    divisors = scales.astype(np.float32)
    divisors[divisors == 0] = 1  # the group is all zero
    return np.clip(np.rint(groups / divisors[:, :, None]), form.lowest, form.highest)


def decode_int(codes: I8, scales: F16) -> F32:
    """int8 or int4 `codes` (R, C) i8 times `scales` (R, C/32) f16, as (R, C) f32."""
    return codes.astype(np.float32) * np.repeat(scales.astype(np.float32), GROUP, axis=1)


def in_groups(weights: NDArray[Any]) -> NDArray[Any]:
    """`weights` (R, C) of any dtype as (R, C/32, 32). Raises: QuantError if columns don't fill groups."""
    rows, columns = weights.shape
    if columns % GROUP:
        raise QuantError(f"{columns} columns; the number formats need a multiple of {GROUP}")
    return weights.reshape(rows, columns // GROUP, GROUP)


def _check_finite(largest: F32) -> None:
    if not np.isfinite(largest).all():
        raise QuantError("the weights hold NaN or infinity; they are damaged, get them again")
