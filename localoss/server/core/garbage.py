"""Collecting garbage without holding up answers: a pass over all objects stops every thread."""

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_OLDEST = 2  # the generation that is looked at with all others
_LONG_S = 0.02  # some steps of a small model


def collect() -> None:
    """Free what has only cycles to hold it, and look at what is left no more.

    Each later pass stops all threads for as long as it takes: over what a loaded model and its libraries
    are made of, a tenth of a second, as often as a body with many lists is parsed.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@contextmanager
def passes_are_short(long_s: float = _LONG_S) -> Iterator[None]:
    """Meanwhile what a pass that took longer than `long_s` has left is looked at no more.

    What the first requests load (grammars, the OpenAPI document) stays for good. Of what is left after a pass
    only cycles that requests hold just then become garbage, which `collect` frees.
    """
    began_s = 0.0

    def watch(phase: str, info: Mapping[str, Any]) -> None:
        nonlocal began_s
        if info["generation"] != _OLDEST:
            return
        if phase == "start":
            began_s = time.monotonic()
        elif time.monotonic() - began_s > long_s:
            gc.freeze()

    gc.callbacks.append(watch)
    try:
        yield
    finally:
        gc.callbacks.remove(watch)
