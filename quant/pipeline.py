"""Work on threads while the caller reads on."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
THREADS = min(4, os.cpu_count() or 1)  # more would wait for the disk


def in_order(work: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What each piece of `work` gives, in the order of the pieces.

    The pieces are taken from `work` in the caller's thread, at most `THREADS` ahead of what it asks for: that
    bounds memory. An exception of a piece comes where its result would.
    """
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(THREADS, "convert") as pool:
        try:
            for piece in work:
                pending.append(pool.submit(piece))
                if len(pending) > THREADS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
