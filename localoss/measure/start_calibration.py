"""From a text's tokens to second moments: the kernels are found or compiled first."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from localoss import settings
from localoss.engine.loader import usable_threads

if TYPE_CHECKING:
    from quant.calibration import Calibration


def start_calibration(
    tokens: Sequence[int], sha256: str, threads: int | None, compiling: Callable[[str], None]
) -> "Calibration":
    """calibration.calibration_of, once the kernels are there. Raises: UsageError for `threads`."""
    settings.let_threads_sleep()
    from localoss.engine.warmup import KernelForm, warm_up
    from localoss.measure.calibration import calibration_of

    usable = usable_threads(threads)
    warm_up(KernelForm("f32", is_exact=True), usable, compiling)
    return calibration_of(tokens, sha256, usable)
