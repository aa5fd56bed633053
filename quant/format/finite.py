"""Whether weights are finite: every tensor is checked while it passes, and one that isn't is an error.

A NaN that gets through hides: in a norm it makes a channel zero, in the router an expert that nobody chooses.
"""

from typing import Any

import numpy as np

from quant.errors import QuantError
from quant.format.jit import jit, words_of
from quant.format.numbers import E8M0_BIAS, E8M0_NAN, FP4_VALUES, U8, Weights

BF16_INFINITY = 0x7F80
F32_INFINITY = 0x7F7F8000  # bits from which a float32 rounds to bfloat16's infinity
FIRST_LARGE_SCALE = 253  # with the scale before it even 6, FP4's largest, is a float32
REMEDY = "download the checkpoint again, or take an earlier save if it was trained so"


def require_finite(name: str, weights: Weights, start: int = 0) -> None:
    """Raises: QuantError if `weights`, entries `start` and up of tensor `name`, have NaN or infinity.

    `weights` of any shape are bfloat16 bits (u16) or float32; a float32 that bfloat16 can't hold counts as
    infinite. The error tells the first one's index in the tensor.
    """
    words, shift = words_of(weights)
    flat = words.reshape(-1)
    sign, limit = (0x7FFF, BF16_INFINITY) if shift else (0x7FFFFFFF, F32_INFINITY)
    if _largest(flat, flat.dtype.type(sign)) < limit:
        return
    at = int(np.argmax((flat & flat.dtype.type(sign)) >= limit))
    value = (flat[at : at + 1].astype(np.uint32) << np.uint32(shift)).view(np.float32)[0]
    index = [int(i) for i in np.unravel_index(at, words.shape)]
    index[0] += start
    what = "NaN" if np.isnan(value) else "infinite" if np.isinf(value) else f"{value:.3g}, beyond bfloat16"
    raise QuantError(f"{name}{index} is {what}; {REMEDY}")


def require_finite_blocks(name: str, blocks: U8, scales: U8) -> None:
    """Raises: QuantError if a scale (R, B) is NaN, or makes a code of `blocks` (R, B, 16) infinite."""
    if not scales.size or scales.max() < FIRST_LARGE_SCALE:
        return
    large = np.argwhere(scales >= FIRST_LARGE_SCALE)
    for row, block in large.tolist():
        scale, packed = int(scales[row, block]), blocks[row, block]
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)
        if scale == E8M0_NAN:
            raise QuantError(f"{name}{[row, block]}: its scale is 255, NaN; {REMEDY}")
        with np.errstate(over="ignore"):
            infinite = np.isinf(np.ldexp(FP4_VALUES[codes], scale - E8M0_BIAS))
        if infinite.any():
            code = codes[infinite][0]
            raise QuantError(
                f"{name}{[row, block]}: with its scale {scale} code {code} is infinite; {REMEDY}"
            )


@jit
def _largest(words: Any, mask: Any) -> Any:
    """The largest of `words` & `mask`, (n,) unsigned: magnitudes of floats compare as their bits do."""
    largest = mask ^ mask
    for i in range(len(words)):
        largest = max(largest, words[i] & mask)
    return largest
