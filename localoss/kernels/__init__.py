"""Compiled loops over arrays and addresses. They know no model, no file and no configuration."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
from numba.core import event

from localoss.kernels import isa  # noqa: F401 - first: it may tell Numba more about this CPU

# Without a /dev/shm that can be written; it matters to who forks while kernels are compiled, and nobody does.
warnings.filterwarnings("ignore", "Could not obtain multiprocessing lock")


@contextmanager
def reporting_compiled(report: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile, call `report` with the name of each function that is compiled and not found in the cache."""

    class Listener(event.Listener):
        def on_start(self, event: Any) -> None:
            report(event.data["dispatcher"].py_func.__name__.strip("_"))

        def on_end(self, event: Any) -> None:
            pass

    with event.install_listener("numba:compile", Listener()):
        yield


def most_threads() -> int:
    """How many threads Numba can use in this process."""
    return int(numba.config.NUMBA_NUM_THREADS)


def use_threads(count: int) -> None:
    """Run the parallel kernels that this thread calls on `count` threads; each thread has its own number."""
    numba.set_num_threads(count)
