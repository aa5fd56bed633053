"""The lines of a batch, asked of the application itself: what HTTP would bring, without HTTP."""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from localoss.server.batches.journal import Journal, Request
from localoss.server.core.json_text import dumps
from localoss.server.core.keys import CLIENT, Client

_LATER = (429, 499, 503)  # what says nothing about the request itself
_NOBODY = Client(address="batch")
_PATIENCE_S = 1.0  # before what was refused for now is asked again, where nobody says how long


@dataclass
class Progress:
    """How far a batch is. tokens: that were written in this run."""

    total: int
    answered: int
    failed: int
    tokens: int = 0

    @property
    def done(self) -> int:
        return self.answered + self.failed


class Stopped(Exception):
    """The application takes no more requests: the rest of the batch is for another run."""


async def run_requests(
    app: ASGIApp,
    requests: Iterable[Request],
    journal: Journal,
    at_once: int,
    told: Callable[[Progress], None],
    *,
    total: int,
    client: Client = _NOBODY,
) -> Progress:
    """Answer those of `requests` that aren't in the journal, `at_once` at a time.

    Args:
        app: takes the requests, as if they had come over HTTP.
        told: called after every line that is done.
        total: how many requests there are.
        client: who asks.
    Raises: Stopped; UsageError if the files can't be written.
    """
    progress = Progress(total, *journal.counts)
    left = iter(requests)
    told(progress)

    async def work() -> None:
        for request in left:
            if not journal.has(request):
                await _answer(app, client, request, journal, progress)
                told(progress)

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return progress


async def _answer(
    app: ASGIApp, client: Client, request: Request, journal: Journal, progress: Progress
) -> None:
    answer: dict[str, Any] = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": request.custom_id}
    if request.fault:
        error = {"code": "invalid_request", "message": request.fault}
        journal.fail(request, answer | {"response": None, "error": error})
        progress.failed += 1
        return
    status, body = await _asked(app, client, request)
    response = {"status_code": status, "request_id": f"req_{secrets.token_hex(12)}", "body": body}
    answer |= {"response": response, "error": None}
    if status == 200:
        usage = body.get("usage") or {}
        progress.tokens += usage.get("completion_tokens", usage.get("output_tokens", 0))
        journal.answer(request, answer)
        progress.answered += 1
    else:
        journal.fail(request, answer)
        progress.failed += 1


async def _asked(app: ASGIApp, client: Client, request: Request) -> tuple[int, dict[str, Any]]:
    """The status and the body of the answer, however often it takes to be let in. Raises: Stopped."""
    while True:
        status, headers, content = await call(app, request.url, dumps(request.body).encode(), client)
        if status not in _LATER:
            return status, json.loads(content)
        if status != 429:
            raise Stopped
        await asyncio.sleep(float(headers.get(b"retry-after", _PATIENCE_S)))


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
