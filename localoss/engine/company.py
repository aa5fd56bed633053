"""What else runs on the machine: `--gentle` lets it go first."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

_NICENESS = 10  # of 19: below all that people wait for, above what only fills idle time
_LOOK_AGAIN_S = 10.0  # whether the machine runs on battery
_LONGEST_REST_S = 1.0  # a cancelled answer isn't noticed meanwhile


def on_battery() -> bool:
    """Whether the machine runs on its battery; not if it has none, or nobody knows."""
    look: Callable[[], object] = getattr(psutil, "sensors_battery", lambda: None)
    with suppress(Exception):  # what reads a broken battery may raise anything
        return getattr(look(), "power_plugged", None) is False
    return False


def lower_priority() -> None:
    """Give this process, with all threads that it has, a low priority. Where that isn't allowed it keeps its
    own."""
    with suppress(OSError, psutil.Error):
        process = psutil.Process()
        if sys.platform == "win32":
            process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
            return
        process.nice(max(process.nice(), _NICENESS))
        if (
            sys.platform == "linux"
        ):  # where each thread has a priority of its own; new ones take their maker's
            for thread in process.threads():
                os.setpriority(os.PRIO_PROCESS, thread.id, _NICENESS)


class Company:
    """Of an engine that leaves the machine to others."""

    def __init__(self) -> None:
        lower_priority()
        self._looked_s, self._on_battery = float("-inf"), False

    def rest(self, worked_s: float) -> None:
        """On battery, do nothing for as long as was worked: half of the power, and a quiet fan."""
        now = time.monotonic()
        if now - self._looked_s > _LOOK_AGAIN_S:
            self._looked_s, self._on_battery = now, on_battery()
        if self._on_battery:
            time.sleep(min(worked_s, _LONGEST_REST_S))
