"""The engine's thread: which answers run side by side, and who is next.

All kernels must run on one thread. Up to `parallel` answers share its batch: each step gives every one of
them a token, and goes on with prompts, for about STEP_S; where several clients have some, each client's have
an equal share of the time. The others wait in a bounded queue, a line for each client; of two clients the one
comes first whose answers have cost less, prompts included, so that who asks much doesn't hold up who asks
little. Nor does it fill the queue, or all places beside each other, where others have asked lately.
"""

import asyncio
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from localoss.engine.accounts import Accounts
from localoss.engine.sequence import common_prefix
from localoss.engine.slot import Slot
from localoss.errors import Cancelled
from localoss.server.core.errors import ApiError
from localoss.server.core.keys import Client

if TYPE_CHECKING:
    from localoss.engine.batch import Batch
    from localoss.engine.engine import Engine
    from localoss.engine.sampler import Token

STEP_S = 0.25  # how long a step takes at most, about: so long who comes, or cancels, is kept waiting
_END = object()
_USUAL_JOB_S = 5.0  # how long a job takes until one has been seen
_SWITCH_S = 0.0005  # Python's 5 ms are as long as a step of a small model, which asks for its lock 30 times
_WORTH_WAITING_TOKENS = 64  # which another prompt is reading, and this one could copy


class Work(Protocol):
    """An answer in the making. All is called on the engine's thread."""

    @property
    def prompt(self) -> list[int]:
        """The tokens of the whole conversation so far."""

    def begin(self, cancelled: Callable[[], bool]) -> Slot | None:
        """What the batch is to run; None if there is nothing to."""

    @property
    def is_over(self) -> bool:
        """Whether no more tokens are wanted."""

    def push(self, token: "Token") -> Iterator[Any]:
        """What the next token brings about."""

    def finish(self, error: Exception | None) -> Iterator[Any]:
        """The last pieces, after the last token or what cut the answer. Raises: `error`, or Cancelled."""

    def close(self) -> None:
        """Give back what it holds; whatever happened, this is called at the end."""


@dataclass(eq=False)
class Job:
    """Work for the engine's thread; iterate it on the event loop for what the work gives."""

    work: Work
    client: Client
    follows: bool = False  # part of a request that was let in already: never refused
    adapter: str | None = None  # that its sequence runs with
    slot: Slot | None = None  # while it runs
    behind: Slot | None = None  # whose prompt is being read, and begins as this one's does
    submitted_s: float = field(default_factory=time.monotonic)
    started_s: float = 0.0
    token_s: float = 0.0  # when its last token came
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

    def give(self, item: Any) -> None:
        with suppress(RuntimeError):  # the server is down, and its loop closed
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    def give_all(self, pieces: Callable[[], Iterator[Any]]) -> bool:
        """Give what `pieces` gives, or what it raises instead; whether it came to its end."""
        try:
            for piece in pieces():
                self.give(piece)
            return True
        except Cancelled:
            pass
        except Exception as error:
            self.give(error)
        except BaseException as error:  # a panic of a Rust library is no Exception
            self.give(RuntimeError(f"{type(error).__name__}: {error}"))
        return False

    def end(self) -> None:
        with suppress(Exception):
            self.work.close()
        self.give(_END)


def _ignore(what: str, seconds: float) -> None:
    """Nobody measures."""


class Scheduler:
    """Runs up to `parallel` jobs side by side on a thread of its own."""

    def __init__(self, engine: "Engine", capacity: int, parallel: int = 1) -> None:
        """capacity: how many jobs may wait; those that run don't count."""
        self._engine, self._capacity, self.parallel = engine, capacity, parallel
        # Told seconds: queue, first_token, between_tokens, step.
        self.observe: Callable[[str, float], None] = _ignore
        self._lines: OrderedDict[Client, deque[Job]] = OrderedDict()  # of equals the first is next
        self._accounts = Accounts()  # of clients
        self._changed = threading.Condition()
        self._running: list[Job] = []
        self._closed = self._stopped = False
        self._job_s = _USUAL_JOB_S
        self._batch: Batch | None = None
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return sum(not job.is_cancelled for line in list(self._lines.values()) for job in list(line))

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, job: Job) -> Job:
        """Put `job` at the end of its client's line.

        Raises: ApiError 429 if too many wait, 503 once the server is going down.
        """
        with self._changed:
            self._drop_cancelled()
            if self._stopped or (self._closed and not job.follows):
                raise going_down()
            free = max(self.parallel - self.running, 0)  # for which the next in line are on their way
            is_full = self.waiting >= self._capacity + free and not job.follows
            if is_full and not self._make_way(job.client):
                raise self._too_many()
            self._accounts.join(job.client, {*self._lines, *(other.client for other in self._running)})
            self._lines.setdefault(job.client, deque()).append(job)
            self._changed.notify()
        return job

    def _too_many(self) -> ApiError:
        wait_s = max(1, round(self._job_s * self.waiting / self.parallel))
        return ApiError(
            f"{self.waiting} requests are waiting already; try again in {wait_s} s",
            status=429,
            kind="rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(wait_s)},
        )

    def _make_way(self, client: Client) -> bool:
        """Refuse the last job of the longest line if `client`'s is shorter; whether there is room now."""
        longest = max(self._lines.values(), key=len, default=deque[Job]())
        if len(longest) <= len(self._lines.get(client, ())) + 1 or longest[-1].follows:
            return False
        last = longest.pop()
        last.give(self._too_many())
        last.cancel()
        return True

    def _has_enough(self, client: Client) -> bool:
        """Whether `client` has all the places that others, who asked lately, leave it."""
        others = {*self._accounts.lately(), *(job.client for job in self._running)} - {client}
        mine = sum(job.client == client for job in self._running)
        return mine >= max(1, self.parallel - len(others))

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
            everything = [*self._running, *(job for line in self._lines.values() for job in line)]
            self._changed.notify()
        _refuse(everything)

    def stop(self) -> None:
        """Cancel what runs and end the thread."""
        self.cut_short()
        self._thread.join(timeout=10)

    def _serve(self) -> None:
        self._batch = self._engine.batch(self._accounts)
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        while True:
            with self._changed:
                while not (self._lines or self._running or self._stopped):
                    self._changed.wait()
                if self._stopped and not self._running:
                    for job in [job for line in self._lines.values() for job in line]:
                        job.end()
                    self._lines.clear()
                    return
            while (following := self._next()) is not None:
                self._start(following)
            if self._running:
                self._step()

    def _next(self) -> Job | None:
        """Take the job that is to run now beside the others out of its line; None if there is none."""
        with self._changed:
            self._drop_cancelled()
            if len(self._running) >= self.parallel:
                return None
            for client in sorted(self._lines, key=self._accounts.cost):
                line = self._lines[client]
                if self._has_enough(client):
                    continue
                if job := next((job for job in line if not self._is_behind(job)), None):
                    line.remove(job)
                    del self._lines[client]
                    if line:
                        self._lines[client] = line  # to the end: among equals the others' turn comes first
                    self._running.append(job)
                    return job
        return None

    def _is_behind(self, job: Job) -> bool:
        """Whether another prompt is being read which begins as this one does: its cache is copied then."""
        if job.behind is None or job.behind.is_done or job.behind.is_decoding:
            prompt, job.behind = job.work.prompt, None
            mine = [other for other in self._running if _share_caches(other, job)]
            for other in [one.slot for one in mine if one.slot]:
                if not other.is_decoding and not other.is_done:
                    common = common_prefix(other.prompt, prompt)
                    if common >= max(_WORTH_WAITING_TOKENS, len(prompt) // 2):
                        job.behind = other
        return job.behind is not None

    def _start(self, job: Job) -> None:
        job.started_s = time.monotonic()
        self.observe("queue", job.started_s - job.submitted_s)
        assert self._batch
        try:
            job.slot = job.work.begin(lambda: job.is_cancelled)
            if job.slot:
                job.slot.owner = job.client
                self._batch.add(job.slot)
        except Exception as error:
            self._end(job, error)
        else:
            if job.slot is None:
                self._end(job)
        self._accounts.charge(job.client, time.monotonic() - job.started_s)

    def _step(self) -> None:
        assert self._batch
        began = time.monotonic()
        try:
            drawn = self._batch.step(within_s=STEP_S)
        except Exception as error:  # whose fault it is can't be told
            for job in list(self._running):
                self._end(job, error)
            self._batch = self._engine.batch(self._accounts)
            return
        self.observe("step", time.monotonic() - began)
        by_slot = {job.slot: job for job in self._running}
        for slot, token in drawn:
            self._push(by_slot[slot], token)
        for job in list(self._running):
            if job.slot and job.slot.is_done:
                self._end(job, job.slot.error)

    def _push(self, job: Job, token: "Token") -> None:
        now, before = time.monotonic(), job.token_s
        self.observe("between_tokens" if before else "first_token", now - (before or job.submitted_s))
        job.token_s = now
        assert job.slot
        if not job.give_all(lambda: job.work.push(token)):
            job.cancel()  # it failed, which was told
            job.slot.end(Cancelled("stopped"))
        elif job.work.is_over:
            job.slot.end()

    def _end(self, job: Job, error: Exception | None = None) -> None:
        job.give_all(lambda: job.work.finish(error))
        job.end()
        self._job_s += 0.2 * (time.monotonic() - job.started_s - self._job_s)
        with self._changed:
            self._running.remove(job)
            job.slot = None


def _share_caches(job: Job, other: Job) -> bool:
    """Whether the KV cache of one may be copied for the other."""
    return (job.client.key, job.adapter) == (other.client.key, other.adapter)


def going_down() -> ApiError:
    """What a request is told that won't be answered any more."""
    return ApiError("the server is shutting down", status=503, kind="server_error")


def _refuse(jobs: list[Job]) -> None:
    for job in jobs:
        job.give(going_down())
        job.cancel()
