"""From a text's tokens to second moments: the kernels are found or compiled first."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from localoss import kernels, settings
from localoss.engine.loader import usable_threads

if TYPE_CHECKING:
    from quant.calibration import Calibration


def start_calibration(
    tokens: Sequence[int], sha256: str, threads: int | None, compiling: Callable[[str], None]
) -> "Calibration":
    """calibration.calibration_of, once the kernels are there. Raises: UsageError for `threads`."""
    settings.let_threads_sleep()
    from localoss.engine.warmup import warm_up
    from localoss.measure.calibration import calibration_of

    usable = usable_threads(threads)
    with kernels.reporting_compiled(compiling):
        warm_up("f32", True, usable)
    return calibration_of(tokens, sha256, usable)
