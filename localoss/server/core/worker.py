"""The engine's thread, and the queue before it.

The engine serves one caller at a time, and all of its kernels must run on one thread. Jobs wait in a bounded
queue, a line for each client; the lines take turns, so that who asks much doesn't hold up who asks little.
Running several sequences in one forward pass would replace `_run` here, and nothing else.
"""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from localoss.errors import Cancelled
from localoss.server.core.errors import ApiError

Work = Callable[[Callable[[], bool]], Iterator[Any]]  # told how to know that it is cancelled
_END = object()
_USUAL_JOB_S = 5.0  # how long a job takes until one has been seen


@dataclass(eq=False)
class Job:
    """Work for the engine's thread; iterate it on the event loop for what the work gives."""

    work: Work
    client: str
    follows: bool = False  # part of a request that was let in already: never refused
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _items: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Nobody waits for this any more: it ends between two layers, or isn't begun."""
        self._cancelled.set()

    async def items(self, idle_s: float | None = None) -> AsyncIterator[Any]:
        """What the work gives, and None after every `idle_s` without anything. Raises: what the work raised.

        Leaving this early cancels the job.
        """
        try:
            while True:
                try:
                    async with asyncio.timeout(idle_s):
                        item = await self._items.get()
                except TimeoutError:
                    yield None
                    continue
                if item is _END:
                    return
                if isinstance(item, Exception):
                    raise item
                yield item
                await asyncio.sleep(0)  # else many that wait are sent in one go, to a client that left, too
        finally:
            self.cancel()

    def run(self) -> None:
        """Do the work, on the engine's thread."""
        try:
            if not self.is_cancelled:
                for item in self.work(self._cancelled.is_set):
                    self.give(item)
        except Cancelled:
            pass
        except Exception as error:
            self.give(error)
        except BaseException as error:  # a panic of a Rust library is no Exception
            self.give(RuntimeError(f"{type(error).__name__}: {error}"))
        self.give(_END)

    def give(self, item: Any) -> None:
        with suppress(RuntimeError):  # the server is down, and its loop closed
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)


class Worker:
    """Runs jobs one after the other on a thread of its own."""

    def __init__(self, capacity: int) -> None:
        """capacity: how many jobs may wait; the one that runs doesn't count."""
        self._capacity = capacity
        self._lines: OrderedDict[str, deque[Job]] = OrderedDict()  # the first line's turn is next
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._closed = self._stopped = False
        self._job_s = _USUAL_JOB_S
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return sum(not job.is_cancelled for line in list(self._lines.values()) for job in list(line))

    @property
    def running(self) -> int:
        return int(self._running is not None)

    def submit(self, job: Job) -> Job:
        """Put `job` at the end of its client's line.

        Raises: ApiError 429 if too many wait, 503 once the server is going down.
        """
        with self._changed:
            self._drop_cancelled()
            if self._stopped or (self._closed and not job.follows):
                raise _going_down()
            if self.waiting >= self._capacity and not job.follows:
                wait_s = max(1, round(self._job_s * self.waiting))
                raise ApiError(
                    f"{self.waiting} requests are waiting already; try again in {wait_s} s",
                    status=429,
                    kind="rate_limit_error",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": str(wait_s)},
                )
            self._lines.setdefault(job.client, deque()).append(job)
            self._changed.notify()
        return job

    def _drop_cancelled(self) -> None:
        """Forget what nobody waits for any more: its prompts would pile up behind a long answer."""
        for client, line in list(self._lines.items()):
            left = deque(job for job in line if not job.is_cancelled)
            if left:
                self._lines[client] = left
            else:
                del self._lines[client]

    def refuse_waiting(self) -> None:
        """Begin to go down: what runs goes on, what waits is told that it won't be done."""
        with self._changed:
            self._closed = True
            waiting = [job for line in self._lines.values() for job in line if not job.follows]
        _refuse(waiting)

    def cut_short(self) -> None:
        """Go down at once: what runs is told so, too."""
        with self._changed:
            self._closed = self._stopped = True
            running = [self._running] if self._running else []
            everything = [*running, *(job for line in self._lines.values() for job in line)]
            self._changed.notify()
        _refuse(everything)

    def stop(self) -> None:
        """Cancel what runs and end the thread."""
        self.cut_short()
        self._thread.join(timeout=10)

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._stopped:
                    self._changed.wait()
                if not self._lines:
                    return
                job = self._running = self._next()
            started = time.monotonic()
            job.run()
            self._job_s += 0.2 * (time.monotonic() - started - self._job_s)
            with self._changed:
                self._running = None

    def _next(self) -> Job:
        client, line = self._lines.popitem(last=False)
        job = line.popleft()
        if line:
            self._lines[client] = line  # to the end: the others' turn comes first
        return job


def _going_down() -> ApiError:
    return ApiError("the server is shutting down", status=503, kind="server_error")


def _refuse(jobs: list[Job]) -> None:
    for job in jobs:
        job.give(_going_down())
        job.cancel()
