"""The engine's thread: which answers run side by side, and who is next.

All kernels must run on one thread. Up to `parallel` answers share its batch: each step gives every one of
them a token, and goes on with prompts, for about STEP_S; where several clients have some, each client's have
an equal share of the time. The others wait in a bounded queue, a line for each client; of two clients the one
comes first whose answers have cost less, prompts included, so that who asks much doesn't hold up who asks
little. Nor does it fill the queue, or all places beside each other, where others have asked lately.
"""

import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from localoss.engine.accounts import Accounts
from localoss.engine.sequence import common_prefix
from localoss.errors import Cancelled
from localoss.server.core.errors import ApiError
from localoss.server.core.jobs import Job, gathered
from localoss.server.core.keys import Client

if TYPE_CHECKING:
    from localoss.engine.batch import Batch
    from localoss.engine.engine import Engine
    from localoss.engine.sampler import Token
    from localoss.engine.slot import Slot

STEP_S = 0.25  # how long a step takes at most, about: so long who comes, or cancels, is kept waiting
_USUAL_JOB_S = 5.0  # how long a job takes until one has been seen
_SWITCH_S = 0.0005  # Python's 5 ms are as long as a step of a small model, which asks for its lock 30 times
_WORTH_WAITING_TOKENS = 64  # which another prompt is reading, and this one could copy
_WAITING_SHARE = 2.0  # so many tokens are waited for, for each that needs no reading then
# An answer makes room for another client's once it ran for so many times as long as reading it again takes:
_PAUSES, _PAUSES_OF_SEVERAL = 10.0, 4.0  # its client's only one, and one of several
_LEAST_RUN_S = 2.0  # and its client's only one at least so long


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
            left = deque(job for job in line if job.is_paused or not job.is_cancelled)
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
            for client, line in self._lines.items():
                if gone := next((job for job in line if job.is_cancelled), None):  # it has to be told its end
                    return self._take(client, gone)
            clients = list(self._lines)
            if len(self._running) >= self.parallel:
                clients = self._make_room()
            for client in sorted(clients, key=self._accounts.cost):
                if self._has_enough(client):
                    continue
                if job := next((job for job in self._lines[client] if not self._is_behind(job)), None):
                    return self._take(client, job)
        return None

    def _take(self, client: Client, job: Job) -> Job:
        line = self._lines.pop(client)
        line.remove(job)
        if line:
            self._lines[client] = line  # to the end: among equals the others' turn comes first
        self._running.append(job)
        return job

    def _make_room(self) -> list[Client]:
        """Let an answer wait for those who have none running; who they are, and none if nothing can wait."""
        busy = Counter(job.client for job in self._running)
        without = [client for client in self._lines if not busy[client]]
        if not without:
            return []
        least_s, now = min(map(self._accounts.cost, without)), time.monotonic()
        costs = {}
        for job in self._running:
            again_s = self._batch.again_s(job.slot) if self._batch and job.slot else None
            if again_s is not None:
                several, cost_s = busy[job.client] > 1, self._accounts.cost(job.client)
                needed_s = _PAUSES_OF_SEVERAL * again_s if several else _LEAST_RUN_S + _PAUSES * again_s
                if now - job.started_s >= needed_s and (several or cost_s > least_s):
                    costs[job] = several, cost_s
        if not costs:
            return []
        self._pause(max(costs, key=lambda job: costs[job]))
        return without

    def _pause(self, job: Job) -> None:
        """Put a job that runs in front of its line."""
        assert self._batch and job.slot
        self._batch.pause(job.slot)
        job.work.pause()
        self._running.remove(job)
        job.is_paused = job.follows = True
        self._lines.setdefault(job.client, deque()).appendleft(job)

    def _is_behind(self, job: Job) -> bool:
        """Whether another prompt is being read which begins as this one does: its cache is copied then."""
        reading = [
            one.slot
            for one in self._running
            if one.slot and _share_caches(one, job) and not one.slot.is_decoding and not one.slot.is_done
        ]
        if job.behind is None or job.behind[0] not in reading:
            prompt, job.behind = job.work.prompt, None
            for other in reading:
                common = common_prefix(other.prompt, prompt)
                if common >= max(_WORTH_WAITING_TOKENS, len(prompt) // 2):
                    job.behind = other, common
        return job.behind is not None and self._is_worth_waiting(*job.behind)

    def _is_worth_waiting(self, other: "Slot", common: int) -> bool:
        """Whether `other` will soon have read the `common` tokens: a long prompt, with which a question has a
        few tokens in common, is read in passes of hundreds.
        """
        read = common_prefix(
            other.sequence.tokens[:common], other.prompt
        )  # before it begins it has another's tokens
        left = common - read
        to_read = min(max(left, self._engine.pass_tokens), len(other.prompt) - read)
        return left > 0 and to_read <= _WAITING_SHARE * left

    def _start(self, job: Job) -> None:
        job.started_s = time.monotonic()
        assert self._batch
        try:
            if job.slot:
                job.is_paused = False
                if job.is_cancelled:
                    raise Cancelled("stopped")
                job.work.resume(job.slot)
            else:
                self.observe("queue", job.started_s - job.submitted_s)
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
        with gathered():
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
