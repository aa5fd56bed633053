"""Threads and programs that work for a tool: Ctrl-C ends what it should end, and nothing else."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from localoss.chat.agent import Stop
from localoss.errors import LocalossError

T = TypeVar("T")
_LOOK_S = 0.02


def unless_stopped(work: Callable[[], T], stop: Stop, within_s: float = float("inf")) -> T:
    """What `work` gives, on a thread that is left behind if it is stopped before, or isn't done in time: what
    waits for the network can't be ended. Raises: what `work` raises, LocalossError if it was left behind.
    """
    given: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            given.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="tool's work", daemon=True)
    thread.start()
    ends = time.monotonic() + within_s
    while thread.is_alive() and not stop.is_set and time.monotonic() < ends:
        thread.join(_LOOK_S)
    if raised:
        raise raised[0]
    if not given:
        raise LocalossError("stopped" if stop.is_set else "no answer in time")
    return given[0]


@contextmanager
def unheard_ctrl_c() -> Iterator[None]:
    """Programs that are started inside don't hear the terminal's Ctrl-C, which it sends to all of its
    programs: it is for what localoss does just then, and their variables are to stay.
    """
    if sys.platform == "win32":
        import ctypes

        kernel: Any = ctypes.windll.kernel32
        kernel.SetConsoleCtrlHandler(None, True)  # which programs inherit
        try:
            yield
        finally:
            kernel.SetConsoleCtrlHandler(None, False)
    else:
        before = signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT}
        )  # this thread's, which they inherit
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
