"""How kernels are jitted: their floating-point rules, and where compiled code is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

from localoss import settings
from localoss.plan import sizes
from quant.format import weight_formats
from quant.format.kernel_cache import KernelFolder, keep_else_in

# No nnan and no ninf: with them isnan is compiled away, and the softmax relies on infinities.
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
_SOURCES = [*Path(__file__).parent.rglob("*.py"), Path(sizes.__file__), Path(weight_formats.__file__)]
keep_else_in(settings.given_home)
FOLDER = KernelFolder(_SOURCES, settings.simd() or "best")


def _kept(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Numba's jit with `options`, whose compiled code is kept on disk; without the form for callers in C."""
    compiled = njit(nogil=True, no_cfunc_wrapper=True, **options)
    return lambda function: FOLDER.cached(compiled(function))


jit = _kept(fastmath=FASTMATH)
parallel = _kept(fastmath=FASTMATH, parallel=True)
# Where how long a loop runs hangs on how a prompt was cut: the order of a sum must not hang on that.
_IN_ORDER = {"nsz", "contract"}
jit_in_order = _kept(fastmath=_IN_ORDER)
parallel_in_order = _kept(fastmath=_IN_ORDER, parallel=True)
