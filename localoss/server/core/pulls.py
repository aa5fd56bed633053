"""Models on their way from the hub, and the clients that wait for them.

A pull is a process of its own, so the engine keeps its processor's caches and Python's lock. It goes on as
long as somebody waits for it: all clients that ask for one model follow the same pull, and the last one that
leaves ends it. What has come is kept, and is gone on with when the model is asked for again.
"""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

from localoss.errors import LocalossError
from localoss.server.core.errors import ApiError

logger = logging.getLogger("localoss.server")

Told = dict[str, Any]  # a line of localoss.hub.told
_COMMAND = (sys.executable, "-m", "localoss.hub.told")
_END_S = 10.0  # after which a process that doesn't end by itself is killed
_MOST_LINE_BYTES = 1 << 20
_MOST_LINES = 1000  # of a pull, for whoever comes later; a file's lines count as one


class Pulls:
    """The pulls of a server: of one model at a time. Used on the event loop alone."""

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        """command: what pulls the model whose name follows it."""
        self._command = command
        self._running: _Pull | None = None
        self._closed = False

    async def follow(self, name: str, idle_s: float) -> AsyncIterator[Told]:
        """What a pull of `name` tells, from its beginning: one that runs, or a new one.

        A line comes again after `idle_s` without news. Raises: ApiError 429 during another model's pull,
        LocalossError if it fails.
        """
        pull = self.take(name)
        pull.waiting += 1
        try:
            async for line in pull.lines(idle_s):
                yield line
        finally:
            pull.waiting -= 1
            if not pull.waiting:
                pull.stop()

    def check(self, name: str) -> None:
        """Raises: ApiError as `follow`, before there is an answer."""
        if self._closed:
            raise ApiError("the server is shutting down", status=503, kind="server_error")
        if self._running and not self._running.is_over and self._running.name != name:
            raise ApiError(f"{self._running.name} is being pulled; ask again once it is here", status=429)

    def take(self, name: str) -> "_Pull":
        """The pull of `name`, begun if need be. Raises: ApiError."""
        self.check(name)
        if self._running is None or self._running.is_over:
            self._running = _Pull(name, [*self._command, name], self._running)
        return self._running

    def stop(self) -> None:
        """End what runs; nothing new is begun."""
        self._closed = True
        if self._running:
            self._running.stop("the server is shutting down; what has come is kept")

    async def ended(self) -> None:
        """Waits, after `stop`, until no process is left."""
        if self._running:
            await self._running.ended()


class _Pull:
    """One process, and what it told."""

    def __init__(self, name: str, command: Sequence[str], before: "_Pull | None") -> None:
        """before: the pull that was stopped; the model's folder may still be locked by its process."""
        self.name, self.waiting = name, 0
        self._lines: dict[str, tuple[int, Told]] = {}  # the newest of each file and all that was said
        self._count = 0
        self._news = asyncio.Event()
        self._why_stopped: str | None = None
        self._error: str | None = None
        self._task = asyncio.create_task(self._run(command, before))
        self._task.add_done_callback(lambda _: self._wake())

    @property
    def is_over(self) -> bool:
        return self._why_stopped is not None or self._task.done()

    def stop(self, why: str = "nobody waits for it any more") -> None:
        if not self.is_over:
            self._why_stopped = why
            self._task.cancel()

    async def ended(self) -> None:
        """Waits until its process is gone."""
        await asyncio.wait({self._task})

    async def lines(self, idle_s: float) -> AsyncIterator[Told]:
        """Raises: LocalossError if the pull fails, or is stopped."""
        seen, last = 0, None
        while True:
            news, over = self._news, self._task.done()
            for number, line in sorted(self._lines.values(), key=lambda pair: pair[0]):
                if number > seen:
                    seen, last = number, line
                    yield line
            if over:
                break
            if seen == self._count and not await _is_set(news, idle_s) and last:
                yield last
        if self._why_stopped or self._error:
            raise LocalossError(self._why_stopped or self._error)

    def _tell(self, line: Told) -> None:
        self._count += 1
        key = f"file {line['file']}" if "file" in line else f"line {self._count}"
        if key in self._lines or len(self._lines) < _MOST_LINES:
            self._lines[key] = (self._count, line)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _run(self, command: Sequence[str], before: "_Pull | None") -> None:
        try:
            if before:
                await before.ended()
            await self._read(command)
        except OSError as error:
            self._error = f"no process can be started ({error.strerror})"
        except ValueError:  # no line of ours: `_error` says so already
            logger.exception("a pull of %s", self.name)

    async def _read(self, command: Sequence[str]) -> None:
        """Start the process and take down what it tells, until it ends or this is cancelled."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            limit=_MOST_LINE_BYTES,
        )
        assert process.stdout
        try:
            self._error = f"{self.name} couldn't be pulled; the server's log says why"
            async for text in process.stdout:
                line = json.loads(text)
                self._error = line.get("error") or self._error
                if "pulled" in line:
                    self._error = None
                elif "error" not in line:
                    self._tell(line)
            await process.wait()
        finally:
            await asyncio.shield(_end(process))


async def _end(process: asyncio.subprocess.Process) -> None:
    """See to it that `process` is gone."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(_END_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
