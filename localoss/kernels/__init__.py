"""Compiled loops over arrays and addresses. They know no model, no file and no configuration."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba.core import event

from localoss.kernels import isa  # noqa: F401 - first: it may tell Numba more about this CPU
from localoss.plan import sizes


def keep_compiled_in(parent: Path, simd: str) -> Path:
    """Have Numba keep what it compiles in a folder of `parent` named by a hash of the sources; give that
    folder.

    Numba by itself sees an edit in a function's own file only, and would go on using old callers of what was
    edited. To be called before any kernel module is imported.
    """
    digest = hashlib.sha256(simd.encode())
    for source in [*sorted(Path(__file__).parent.rglob("*.py")), Path(sizes.__file__)]:
        digest.update(source.read_bytes())
    folder = parent / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except OSError:  # compiled anew in each process, but running
        folder = Path(tempfile.mkdtemp(prefix="localoss-kernels-"))
    numba.config.CACHE_DIR = str(folder)
    return folder


@contextmanager
def telling_compiled(tell: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile, call `tell` with the name of each function that is compiled and not found in the cache."""

    class Listener(event.Listener):  # type: ignore[misc]
        def on_start(self, event: Any) -> None:
            tell(event.data["dispatcher"].py_func.__name__.strip("_"))

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
