"""Connections have bounds: how many there are, and how long one may take to say what it wants.

uvicorn waits for ever for the rest of a request's headers, and for a client to read its answer.
"""

import asyncio
import contextlib
import ctypes
import errno
import functools
import logging
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from localoss.server.core.bodies import MAX_BODY_S

MOST = 1024
HEADERS_S = 10.0  # from accepting a connection, or from an answer's end, to the end of the next headers
_READING_S = 60.0  # a client that reads nothing for so long has left
_CONNECTIONS_A_SECOND = 25.0  # of one address, after as many at once as it may make in _BURST_S
_BURST_S = 4.0
_LOOP_SHARE = 0.05  # of the event loop's time, that one address may take to have read what it sends
_LINE_S, _REQUEST_S = (
    5e-6,
    1e-3,
)  # what h11 takes for a line of headers, chunks or trailers; and all for a request
_FEW_LINES = 100  # as requests have; they aren't counted
_MOST_ADDRESSES = 4096
_HEADER_BYTES = 16 * 1024  # of a request: h11 takes microseconds for each of them
_KERNEL_BACKLOG = 1024  # what is left out of it comes again a second later
_OTHER_FILES = 40  # the model's, the store's, the log's
_FILES_WANTED = 65_536
_TIDY_EVERY_S = 5.0
_BUSY_TIDY_AFTER = 12  # times that, among requests: it holds up whoever allocates for some milliseconds
_SAY_AGAIN_S = 60.0

logger = logging.getLogger("localoss.server")


def raise_file_limit() -> int | None:
    """Let this process open as many files as the system lets it; gives how many. None: no such limit here."""
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    if soft != resource.RLIM_INFINITY and wanted > soft:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit that it doesn't tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


class Connections:
    """The connections of one server: at most `most`, and fewer where few files may be open.

    A new one takes the place of the oldest that hasn't sent its headers yet, so that those who send none keep
    nobody out. Where all have sent them, it is closed.
    """

    def __init__(self, most: int = MOST) -> None:
        files = raise_file_limit()
        spare = 2 * most if files is None else max(files - _OTHER_FILES, 16)
        self.most = min(most, spare * 2 // 3)
        # As many are accepted at a time, and closed only after that.
        self.backlog = min(8, spare // 3)
        self.waiting: OrderedDict[_Protocol, None] = OrderedDict()  # for headers, the oldest first
        self.rate = _Rate()

    def protocol(self) -> Callable[..., asyncio.Protocol]:
        """What uvicorn's Config takes as `http`."""
        return functools.partial(_Protocol, self)


class _Rate:
    """How fast each address may make connections, and send what takes long; the rest isn't read at once."""

    def __init__(self) -> None:
        self._next_s: dict[str, float] = {}  # when the next connection of an address would be due

    def wait_s(self, address: str) -> float:
        """How long a connection that `address` makes now is left alone."""
        return self._wait_s(address, 1 / _CONNECTIONS_A_SECOND)

    def reading_wait_s(self, address: str, lines: int, requests: int) -> float:
        """How long nothing more is read of `address`, which has sent so many lines and requests at once."""
        if lines <= _FEW_LINES:
            return 0.0
        return self._wait_s(address, (lines * _LINE_S + requests * _REQUEST_S) / _LOOP_SHARE)

    def _wait_s(self, address: str, cost_s: float) -> float:
        now = time.monotonic()
        if len(self._next_s) > _MOST_ADDRESSES:
            self._next_s = {one: due for one, due in self._next_s.items() if due > now}
        due = max(self._next_s.get(address, now), now)
        self._next_s[address] = min(due + cost_s, now + HEADERS_S / 2 + _BURST_S)
        return max(due - now - _BURST_S, 0.0)


class _Protocol(H11Protocol):
    """uvicorn's, with a deadline for each part of a request, and for reading its answer."""

    def __init__(self, bounds: Connections, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bounds, self._address = bounds, ""
        self._stage: tuple[Any, Any] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.most:
            waiting = self._bounds.waiting
            given_up = waiting.popitem(last=False)[0] if waiting else self
            given_up.give_up()
        self._address = str((transport.get_extra_info("peername") or ("",))[0])
        self._let_wait(self._bounds.rate.wait_s(self._address))
        self._watch()

    def _let_wait(self, seconds: float) -> None:
        """Read nothing for so long."""
        if seconds and not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_later(seconds, self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        is_head = self.conn.their_state is h11.IDLE
        left = data
        while left and not self.transport.is_closing():
            # Lines come piece by piece: h11 looks at its bound only if what it has doesn't hold their end.
            reads_lines = self.conn.their_state is h11.IDLE or self._is_chunked()
            piece = left[:_HEADER_BYTES] if reads_lines else left
            super().data_received(piece)
            left = left[len(piece) :]
        data = data[: len(data) - len(left)]
        if is_head or self._is_chunked():  # other bodies aren't read line by line
            requests = data.count(b" HTTP/1.") if is_head else 0
            has_body = requests == 1 and not self._is_chunked()
            lines = data.count(b"\n", 0, data.find(b"\r\n\r\n") if has_body else len(data))
            self._let_wait(self._bounds.rate.reading_wait_s(self._address, lines, requests))
        self._watch()

    def _is_chunked(self) -> bool:
        return any(name == b"transfer-encoding" for name, _ in self.headers or ())

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._bounds.waiting.pop(self, None)
        for timer in (self._deadline, self._unread):
            if timer:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self._unread or self.loop.call_later(_READING_S, self.give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:
            self._unread.cancel()
            self._unread = None

    def give_up(self) -> None:
        """Close the connection, whatever is still to be said."""
        self.transport.abort()

    def _watch(self) -> None:
        """Begin the deadline of what the client has to send next; what it sends of it begins no new one."""
        state = self.conn.their_state
        seconds = {h11.IDLE: HEADERS_S, h11.SEND_BODY: MAX_BODY_S + 5}.get(state)
        stage = (state, self.cycle)
        if stage == self._stage:
            return
        self._stage = stage
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None
        self._bounds.waiting.pop(self, None)
        if seconds is not None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(seconds, self.give_up)
            if state is h11.IDLE:
                self._bounds.waiting[self] = None


class _Seldom(logging.Filter):
    """Lets a text through once a minute: who sends what is no HTTP shall not fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._said.get(str(record.msg), -_SAY_AGAIN_S) < _SAY_AGAIN_S:
            return False
        if len(self._said) < 1000:
            self._said[str(record.msg)] = now
        return True


class _Sending:
    """ASGI middleware: what can't be said any more, since the client sent what is no HTTP, isn't an error."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def say(message: Any) -> None:
            with contextlib.suppress(h11.LocalProtocolError):
                await send(message)

        await self._app(scope, receive, say)


def let_wait(sockets: Sequence[socket.socket]) -> None:
    """Have more connections wait in the system than are accepted at a time."""
    for one in sockets:
        with contextlib.suppress(OSError):
            one.listen(_KERNEL_BACKLOG)


def configuration(app: Any, connections: Connections) -> uvicorn.Config:
    """How uvicorn serves `app`."""
    config = uvicorn.Config(
        _Sending(app),
        http=connections.protocol(),  # type: ignore[arg-type]  # it is called as the class would be
        ws="none",
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        backlog=connections.backlog,
    )
    log = logging.getLogger("uvicorn.error")
    if not any(isinstance(one, _Seldom) for one in log.filters):
        log.addFilter(_Seldom())
    return config


def report_errors_once(loop: asyncio.AbstractEventLoop) -> None:
    """A loop that can open no more files says so in one line, rather than with a traceback each second."""
    said: set[int] = set()

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        number = error.errno if isinstance(error, OSError) else None
        if number not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            loop.default_exception_handler(context)
        elif number not in said:
            said.add(number)
            logger.warning("connections wait to be taken: %s", getattr(error, "strerror", error))

    loop.set_exception_handler(report)


async def give_memory_back(state: ServerState) -> None:
    """Whenever requests were answered and none runs, give the C library's free memory back to the system; and
    now and then where some always run.

    glibc keeps what large bodies and prompts took: 356 MB had become 1.5 GB, and stayed. Sixteen clients who
    never paused took 11 % more after ten minutes.
    """
    trim = _malloc_trim()
    seen = waited = 0
    while trim:
        await asyncio.sleep(_TIDY_EVERY_S)
        waited += 1
        if state.total_requests != seen and (not state.tasks or waited >= _BUSY_TIDY_AFTER):
            seen, waited = state.total_requests, 0
            await asyncio.to_thread(trim, 0)


def _malloc_trim() -> Any:
    """glibc's malloc_trim, where there is one."""
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL(None).malloc_trim
    return None
