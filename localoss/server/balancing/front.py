"""The endpoint in front of several replicas: an ASGI application that gives each request to one of them.

A request that failed on the way to its answer, because its replica is going or gone, is given to another;
once a part of the answer was sent, it can't be: a stream says so then.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localoss.server.balancing.members import Asked, Gone, Member, Members
from localoss.server.balancing.prefixes import Beginnings, beginnings, response_key
from localoss.server.core.bodies import MAX_BODY_BYTES
from localoss.server.core.errors import ApiError, logger, stream_end
from localoss.server.core.guard import Guard
from localoss.server.core.keys import CLIENT, Keys
from localoss.server.core.scheduler import going_down

_LATER = (429, 503)  # what another replica may see otherwise
_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_-]{1,72})"')
_MOST_HELD_BYTES = 16 * MAX_BODY_BYTES  # of all bodies that are being sent on

Metrics = Callable[[], Awaitable[bytes]]


def build_front(
    members: Members,
    metrics: Metrics,
    *,
    hosts: Collection[str] | None,
    keys: Keys | None,
    cors_origins: Collection[str] = (),
) -> "Front":
    """The application, with the guard before it; see server.app.build_app. metrics: those of all replicas."""
    relay = Relay(members, metrics)
    app: ASGIApp = Guard(relay, hosts, keys)
    if cors_origins:
        app = CORSMiddleware(app, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"])
    return Front(app, relay)


class Front:
    """The application, and what the server tells it when it goes down."""

    def __init__(self, app: ASGIApp, relay: "Relay") -> None:
        self._app, self._relay = app, relay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def refuse_waiting(self) -> None:
        """Begin to go down: what runs goes on."""
        self._relay.is_closed = True

    def cut_short(self) -> None:
        """Go down at once."""
        self._relay.is_closed = True
        for task in list(self._relay.running):
            task.cancel()


class Relay:
    """Gives requests to replicas, and their answers back."""

    def __init__(self, members: Members, metrics: Metrics) -> None:
        self._members, self._metrics = members, metrics
        self.is_closed = False
        self.running: set[asyncio.Task[None]] = set()
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/health" and scope["method"] in ("GET", "HEAD"):
            is_there = any(member.is_open for member in self._members.all)
            answer: Response = JSONResponse(
                {"status": "ok" if is_there else "starting"}, 200 if is_there else 503
            )
            await answer(scope, receive, send)
        elif scope["path"] == "/metrics" and scope["method"] in ("GET", "HEAD"):
            text = await self._metrics()
            await Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")(scope, receive, send)
        else:
            await self._relay(scope, receive, send)

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        try:
            if self.is_closed:
                raise going_down()
            body = await self._body(scope, receive)
            asked = Asked(
                scope["method"],
                scope["path"],
                scope.get("query_string", b""),
                [(name, value) for name, value in scope["headers"] if name != b"authorization"],
                body,
                scope[CLIENT],
            )
            await self._unless_gone(receive, self._answer(asked, send))
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, send)
        finally:
            self._held_bytes -= len(body)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Raises: ApiError 413 for one that is too large, 503 while too many are being sent on."""
        chunks, size = [], 0
        while True:
            message = await receive()
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise ApiError(
                    f"the body is larger than {MAX_BODY_BYTES:,} bytes", status=413, code="request_too_large"
                )
            chunks.append(chunk)
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                break
        if self._held_bytes + size > _MOST_HELD_BYTES:
            raise ApiError(
                "too many large requests at once; try again in 5 s", status=503, kind="server_error"
            )
        self._held_bytes += size
        return b"".join(chunks)

    async def _unless_gone(self, receive: Receive, answering: Any) -> None:
        """Answer, unless the client leaves: then nobody goes on with it. Raises: what answering raises."""

        async def left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        answer, watch = asyncio.ensure_future(answering), asyncio.ensure_future(left())
        self.running.add(answer)
        try:
            await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                answer.cancel()
            with suppress(asyncio.CancelledError):
                await answer
        finally:
            self.running.discard(answer)
            for task in (answer, watch):
                task.cancel()

    async def _answer(self, asked: Asked, send: Send) -> None:
        """Raises: ApiError if no replica can answer."""
        wanted = beginnings(asked.client.key, _json(asked))
        failed: set[str] = set()
        refusal: list[Message] = []
        while True:
            member = await self._member(wanted, failed, bool(refusal))
            if member is None:
                for message in refusal:
                    await send(message)
                return
            try:
                refusal = await self._ask(member, asked, send)
                if not refusal:
                    return
            except Gone:
                pass
            finally:
                self._members.give_back(member)
                await self._members.changed()
            failed.add(member.name)

    async def _member(self, wanted: Beginnings, failed: set[str], has_refusal: bool) -> Member | None:
        """Who is asked next; None to give the refusal that is there. Raises: ApiError 503."""
        others = [one for one in self._members.all if one.is_open and one.name not in failed]
        if has_refusal and not others:
            return None
        if not others:
            failed.clear()  # those may be back: it is asked anew, as long as one may come
        if member := await self._members.take(wanted, failed):
            return member
        raise ApiError("no machine answers; try again in 60 s", status=503, kind="server_error")

    async def _ask(self, member: Member, asked: Asked, send: Send) -> list[Message]:
        """Send on what `member` answers; its messages instead, if it refuses for now, all of them unsent.

        Raises: Gone if nothing was sent yet. What streams already ends with an error, as its API shapes it.
        """
        answer, sent = member.ask(asked), _Sent(asked.path, send)
        held: list[Message] = []
        try:
            async for message in answer:
                # The start waits for what follows it: until then the request can be asked of another one.
                held.append(message)
                if held[0]["type"] == "http.response.start" and (
                    len(held) == 1 or held[0]["status"] in _LATER
                ):
                    continue
                if found := None if sent.has_begun else _RESPONSE_ID.search(message.get("body", b"")[:4096]):
                    self._members.note_response(response_key(found[1].decode()), member)
                for one in held:
                    await sent.send(one)
                held = []
        except Gone:
            if not sent.has_begun:
                raise
            await sent.break_off(member.name)
        finally:
            await _closed(answer)
        if not sent.has_begun and not held:
            raise Gone
        return held


class _Sent:
    """What of an answer a client has got."""

    def __init__(self, path: str, send: Send) -> None:
        self._path, self._send, self._media_type = path, send, ""
        self.has_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._media_type = Headers(raw=message["headers"]).get("content-type", "")
        self.has_begun = True
        await self._send(message)

    async def break_off(self, name: str) -> None:
        """Say in a stream that machine `name` is gone. Raises: RuntimeError for what is none: it is cut."""
        told = f"{name}, the machine that wrote this answer, is gone; ask again, and another one answers"
        logger.error("an answer broke off: %s is gone", name)
        error = ApiError(told, status=503, kind="server_error", code="machine_lost")
        end = stream_end(self._path, self._media_type, error)
        if end is None:
            raise RuntimeError(told)
        await self._send({"type": "http.response.body", "body": end, "more_body": False})


def _json(asked: Asked) -> Any:
    if asked.method != "POST" or not asked.body:
        return None
    try:
        return json.loads(asked.body)
    except (ValueError, RecursionError):
        return None


async def _closed(answer: AsyncIterator[Message]) -> None:
    with suppress(Exception):
        await answer.aclose()  # type: ignore[attr-defined]
