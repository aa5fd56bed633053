"""The lines of a batch, asked of the application itself: what HTTP would bring, without HTTP."""

import asyncio
import json
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from localoss.server.batches.journal import Journal, Request, read_requests
from localoss.server.core.json_text import dumps
from localoss.server.core.keys import CLIENT, Client

_LATER = (429, 499, 503)  # what says nothing about the request itself
_NOBODY = Client(address="batch")
_MOST_LOSSES = 5  # after which it seems to be the line's own fault
_PATIENCE_S = 1.0  # before what was refused for now is asked again, where nobody says how long


@dataclass
class Progress:
    """How far a batch is. tokens: that were written in this run. machines: how many lines
    each has done in it, where there are several.
    """

    total: int
    answered: int
    failed: int
    tokens: int = 0
    machines: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return self.answered + self.failed


@dataclass(frozen=True)
class Work:
    """A batch: the file of its requests, how many these are, and the journal of its answers."""

    path: Path
    journal: Journal
    total: int

    def requests(self) -> Iterator[Request]:
        """Raises: UsageError if they can't be read."""
        return read_requests(self.path)


class Stopped(Exception):
    """The application takes no more requests: the rest of the batch is for another run."""


class Lost(Exception):
    """Who was asked is gone, and with it what it may have answered: the line is for somebody else."""


Ask = Callable[[Request], Awaitable[tuple[int, dict[str, Any]]]]  # the status and the body of an answer


class Lines:
    """The lines of a batch that aren't in the journal: each is one worker's at a time, and written once.

    Any number of workers may join and leave meanwhile: a fast one takes more lines.
    """

    def __init__(
        self, requests: Iterable[Request], journal: Journal, told: Callable[[Progress], None], total: int
    ) -> None:
        """told: called after every line that is done. total: how many requests there are."""
        self.progress = Progress(total, *journal.counts)
        self._left, self._journal, self._told = iter(requests), journal, told
        self._back: deque[Request] = deque()  # those that come back from workers who were lost
        self._losses: Counter[int] = Counter()  # by line, how often
        self._taken = 0
        self._changed = asyncio.Condition()
        told(self.progress)

    @property
    def is_done(self) -> bool:
        return self.progress.done >= self.progress.total

    async def work(self, ask: Ask, machine: str | None = None) -> None:
        """Answer lines by `ask`, one after the other, until all lines are done. machine: who gets the credit.

        Raises: what `ask` raises; the line that it was asked for is somebody else's then. UsageError if the
        files can't be written.
        """
        while request := await self._take():
            try:
                fault = request.fault or self._given_up(request)
                answer = await ask(request) if fault is None else None
            except BaseException as error:
                self._losses[request.line] += isinstance(error, Lost)
                self._back.append(request)
                raise
            else:
                if machine is not None:
                    self.progress.machines[machine] = self.progress.machines.get(machine, 0) + 1
                self._write(request, fault, answer)
            finally:
                self._taken -= 1
                async with self._changed:
                    self._changed.notify_all()

    async def _take(self) -> Request | None:
        """The next line, as soon as there is one; None once all are done."""
        async with self._changed:
            while True:
                request = self._back.popleft() if self._back else self._next()
                if request:
                    self._taken += 1
                    return request
                if not self._taken:
                    return None
                await self._changed.wait()

    def _next(self) -> Request | None:
        return next((one for one in self._left if not self._journal.has(one)), None)

    def _given_up(self, request: Request) -> str | None:
        """Why a line isn't asked for again that so many didn't survive."""
        if self._losses[request.line] < _MOST_LOSSES:
            return None
        return f"{_MOST_LOSSES} machines were lost one after the other while they answered this"

    def _write(
        self, request: Request, fault: str | None, answered: tuple[int, dict[str, Any]] | None
    ) -> None:
        answer: dict[str, Any] = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": request.custom_id}
        progress = self.progress
        if answered is None:
            code = "invalid_request" if request.fault else "machines_lost"
            error = {"code": code, "message": fault}
            self._journal.fail(request, answer | {"response": None, "error": error})
            progress.failed += 1
        else:
            status, body = answered
            response = {"status_code": status, "request_id": f"req_{secrets.token_hex(12)}", "body": body}
            answer |= {"response": response, "error": None}
            if status == 200:
                usage = body.get("usage") or {}
                progress.tokens += usage.get("completion_tokens", usage.get("output_tokens", 0))
                self._journal.answer(request, answer)
                progress.answered += 1
            else:
                self._journal.fail(request, answer)
                progress.failed += 1
        self._told(progress)


async def run_requests(
    ask: Ask,
    requests: Iterable[Request],
    journal: Journal,
    at_once: int,
    told: Callable[[Progress], None],
    *,
    total: int,
) -> Progress:
    """Answer those of `requests` that aren't in the journal, `at_once` at a time.

    Args:
        ask: see asking.
        told: called after every line that is done.
        total: how many requests there are.
    Raises: Stopped; UsageError if the files can't be written.
    """
    lines = Lines(requests, journal, told, total)
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(lines.work(ask))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return lines.progress


def asking(app: ASGIApp, client: Client = _NOBODY) -> Ask:
    """What asks `app` for `client`, as if they had come over HTTP, however often it takes to be let in.

    It raises: Stopped.
    """

    async def ask(request: Request) -> tuple[int, dict[str, Any]]:
        while True:
            status, headers, content = await call(app, request.url, dumps(request.body).encode(), client)
            if status not in _LATER:
                return status, json.loads(content)
            if status != 429:
                raise Stopped
            await asyncio.sleep(float(headers.get(b"retry-after", _PATIENCE_S)))

    return ask


async def call(
    app: ASGIApp, path: str, body: bytes, client: Client = _NOBODY
) -> tuple[int, dict[bytes, bytes], bytes]:
    """POST `body` to the application: the answer's status, headers and body."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": (client.address, 0),
        "server": None,
        CLIENT: client,
    }
    incoming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    status, answered, chunks = 500, {}, []

    async def receive() -> Message:
        if incoming:
            return incoming.pop()
        await asyncio.Event().wait()  # nobody leaves
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status, answered
        if message["type"] == "http.response.start":
            status, answered = message["status"], dict(message.get("headers", []))
        elif message["type"] == "http.response.body":
            chunks.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, answered, b"".join(chunks)
