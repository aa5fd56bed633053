"""How the converter's loops are jitted, and how they read bfloat16 and float32 alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from quant.format.kernel_cache import KernelFolder
from quant.format.numbers import Weights

_FOLDER = KernelFolder(Path(__file__).parent.glob("*.py"))


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's jit, kept on disk.

    Division by zero gives infinity as NumPy's does: a check for it would keep loops out of vectors.
    """
    return _FOLDER.cached(numba.njit(nogil=True, error_model="numpy")(function))


def words_of(weights: Weights) -> tuple[NDArray[Any], int]:
    """`weights` as unsigned integers, and how far to the left these are shifted to be a float32's bits."""
    if weights.dtype == np.uint16:
        return weights, 16
    return np.ascontiguousarray(weights, np.float32).view(np.uint32), 0


@numba.njit(inline="always")
def bits_of(word: Any, shift: int) -> Any:
    """The float32 bits, u32, of a bfloat16's (shift 16) or a float32's own (shift 0)."""
    return np.uint32(np.uint32(word) << np.uint32(shift))
