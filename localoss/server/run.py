"""From a loaded engine to a server that listens, until it is told to stop."""

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from localoss.chat import harmony
from localoss.chat.tools import Thoughts
from localoss.engine.engine import Engine
from localoss.errors import UsageError
from localoss.options import MOST_SLOTS
from localoss.server.app import build_app
from localoss.server.batches.batches import Batches
from localoss.server.batches.store import FileStore
from localoss.server.core.apart import stop_reading
from localoss.server.core.catalogue import Catalogue
from localoss.server.core.connections import (
    Connections,
    configuration,
    give_memory_back,
    let_wait,
    report_errors_once,
)
from localoss.server.core.garbage import collect, passes_are_short
from localoss.server.core.guard import LOOPBACK
from localoss.server.core.hosted import HostedTools
from localoss.server.core.keys import Keys
from localoss.server.core.metrics import Metrics
from localoss.server.core.models import Models
from localoss.server.core.parked import ParkedCaches
from localoss.server.core.pool import SequencePool
from localoss.server.core.response_store import ResponseStore
from localoss.server.core.scheduler import Scheduler
from localoss.server.core.service import Service
from localoss.server.core.threads import stop_compiling
from localoss.server.page import Page


def open_socket(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port`. Raises: UsageError if it can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host}: {getattr(error, 'strerror', None) or error}") from None
    try:
        if hasattr(socket, "SO_REUSEADDR") and not hasattr(signal, "CTRL_C_EVENT"):  # means theft on Windows
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UsageError(
            f"port {port} on {host} can't be had ({error.strerror}); choose another with --port"
        ) from None
    return bound


@dataclass(frozen=True)
class ServeOptions:
    """How a server is to be.

    host: where it listens. keys: what clients send. allowed_hosts: other names that clients on this
    machine reach it by. cors_origins: web pages that may ask. strict: refuse unknown fields. parallel: how
    many answers are written side by side; None for as many as a model has slots, up to MOST_SLOTS. queue:
    how many requests may wait. think_budget: of requests that give none. idle_unload_s: after how long
    without a request a model leaves memory; None for never. responses: the file that stored responses are
    kept in. page: the chat page at /, if there is one. hosted: tools that requests may have run here.
    """

    host: str
    responses: Path
    keys: Keys | None = None
    allowed_hosts: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    strict: bool = False
    parallel: int | None = None
    queue: int = 64
    think_budget: int | None = None
    idle_unload_s: float | None = None
    page: Page | None = None
    hosted: HostedTools | None = None


def serve(
    catalogue: Catalogue,
    bound: Sequence[socket.socket],
    options: ServeOptions,
    listening: Callable[[str], AbstractContextManager[None]],
) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish what runs, refuse what waits, and return.

    A second one cuts short what runs. The catalogue's first model is loaded before anything is answered.
    listening: told the base URL once requests are taken; what it gives is held until the end.
    """
    harmony.encoding()  # half a second that the first request needn't wait for
    store = ResponseStore(options.responses)
    models = _models(catalogue, options, store)
    side_by_side = models.held()[0].service.scheduler.parallel
    models.batches = Batches(FileStore(options.responses.parent / "files"), side_by_side)
    is_here = options.host in LOOPBACK
    hosts = {*LOOPBACK, options.host, *options.allowed_hosts} if is_here else None  # elsewhere there is a key
    app = build_app(
        models,
        hosts=hosts,
        keys=options.keys,
        cors_origins=options.cors_origins,
        strict=options.strict,
        page=options.page,
    )
    try:
        collect()
        run_server(app, models, bound, options.host, listening)
    finally:
        models.stop()
        store.close()
        if options.hosted:
            options.hosted.close()


class Serving(Protocol):
    """What answers behind a server. batches: files of requests that go on when it starts."""

    batches: Batches | None

    async def begin(self) -> None:
        """Called on the server's loop before it listens. What it raises ends the server."""

    async def end(self) -> None:
        """Called there once all is answered."""

    def refuse_waiting(self) -> None:
        """Begin to go down: what runs goes on, what waits is refused."""

    def cut_short(self) -> None:
        """Go down at once."""


def run_server(
    app: ASGIApp,
    serving: Serving,
    bound: Sequence[socket.socket],
    host: str,
    listening: Callable[[str], AbstractContextManager[None]],
) -> None:
    """Serve `app` until SIGTERM or Ctrl-C; see serve."""
    config = configuration(app, Connections())
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{bound[0].getsockname()[1]}/v1"
    # uvicorn raises the signal again once it is done, which would end the process by it.
    before = {number: signal.signal(number, lambda *_: None) for number in _signals()}
    try:
        with passes_are_short(), ExitStack() as held:
            _Server(config, serving, lambda: held.enter_context(listening(url))).run(sockets=list(bound))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _models(catalogue: Catalogue, options: ServeOptions, store: ResponseStore) -> Models:
    """The models, with the first one in memory. Raises: LocalossError."""
    thoughts, metrics = Thoughts(), Metrics()

    def start(engine: Engine, name: str) -> Service:
        return Service(
            engine,
            name,
            Scheduler(engine, options.queue, min(options.parallel or MOST_SLOTS, engine.slots)),
            SequencePool(engine, engine.slots, ParkedCaches.of_server()),
            store,
            options.think_budget,
            thoughts,
            metrics,
            options.hosted,
        )

    first = start(catalogue.load(catalogue.first), catalogue.first.name)
    return Models(first, catalogue, start, idle_s=options.idle_unload_s, capacity=options.queue)


def _signals() -> list[int]:
    return [signal.SIGINT, signal.SIGTERM]


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it listens and when it goes down."""

    def __init__(self, config: uvicorn.Config, serving: Serving, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._serving, self._listening = serving, listening
        self._is_cut_short = False

    async def startup(self, *arguments: Any, **options: Any) -> None:
        await self._serving.begin()
        await super().startup(*arguments, **options)
        let_wait(options.get("sockets") or ())
        self._loop = asyncio.get_running_loop()
        report_errors_once(self._loop)
        self._upkeep = self._loop.create_task(give_memory_back(self.server_state))
        if self._serving.batches:  # those that the last server left open go on
            self._serving.batches.start(self.config.loaded_app)
        self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal lets what runs finish, a second one ends it; with a third uvicorn just leaves."""
        if self.should_exit and not self._is_cut_short:
            self._is_cut_short = True
            self._loop.call_soon_threadsafe(self._serving.cut_short)
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, *arguments: Any, **options: Any) -> None:
        self._serving.refuse_waiting()
        stop_compiling()
        stop_reading()
        await super().shutdown(*arguments, **options)
        await self._serving.end()
