"""From a loaded engine to a server that listens, until it is told to stop."""

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from localoss.chat import harmony
from localoss.engine.engine import Engine
from localoss.errors import UsageError
from localoss.server.app import build_app
from localoss.server.batches.batches import Batches
from localoss.server.batches.store import FileStore
from localoss.server.core.connections import (
    Connections,
    configuration,
    give_memory_back,
    tell_errors_once,
)
from localoss.server.core.guard import LOOPBACK
from localoss.server.core.hosted import HostedTools
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


def serve(
    engine: Engine,
    model: str,
    bound: socket.socket,
    *,
    host: str,
    api_key: str | None,
    cors_origins: Sequence[str],
    allowed_hosts: Sequence[str] = (),
    strict: bool = False,
    aliases: Sequence[str] = (),
    conversations: int,
    parallel: int = 1,
    queue: int,
    think_budget: int | None,
    responses: Path,
    page: Page | None = None,
    hosted: HostedTools | None = None,
    listening: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish what runs, refuse what waits, and return.

    A second one cuts short what runs. think_budget: of requests that give none.
    allowed_hosts: other names that clients on this machine reach it by. strict: refuse unknown fields.
    aliases: other names that requests may give the model.
    parallel: how many answers run side by side, on as many of the `conversations`.
    responses: the file that stored responses are kept in. page: the chat page at /, if there is one.
    hosted: tools that requests may have run here.
    listening: told the base URL once requests are taken.
    """
    harmony.encoding()  # half a second that the first request needn't wait for
    scheduler = Scheduler(engine, queue, parallel)
    pool, store = SequencePool(engine, conversations), ResponseStore(responses)
    service = Service(engine, model, scheduler, pool, store, think_budget, aliases=aliases, hosted=hosted)
    service.batches = Batches(FileStore(responses.parent / "files"), parallel)
    hosts = {*LOOPBACK, host, *allowed_hosts} if host in LOOPBACK else None  # elsewhere there is a key
    app = build_app(
        service, hosts=hosts, api_key=api_key, cors_origins=cors_origins, strict=strict, page=page
    )
    config = configuration(app, Connections())
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{bound.getsockname()[1]}/v1"
    # uvicorn raises the signal again once it is done, which would end the process by it.
    before = {number: signal.signal(number, lambda *_: None) for number in _signals()}
    try:
        _Server(config, service, lambda: listening(url)).run(sockets=[bound])
    finally:
        scheduler.stop()
        service.store.close()
        if hosted:
            hosted.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _signals() -> list[int]:
    return [signal.SIGINT, signal.SIGTERM]


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it listens and when it goes down."""

    def __init__(self, config: uvicorn.Config, service: Service, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._scheduler, self._listening = service, service.scheduler, listening
        self._is_cut_short = False

    async def startup(self, *arguments: Any, **options: Any) -> None:
        await super().startup(*arguments, **options)
        self._loop = asyncio.get_running_loop()
        tell_errors_once(self._loop)
        self._upkeep = self._loop.create_task(give_memory_back(self.server_state))
        if self._service.batches:  # those that the last server left open go on
            self._service.batches.start(self.config.loaded_app)
        self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal lets what runs finish, a second one ends it; with a third uvicorn just leaves."""
        if self.should_exit and not self._is_cut_short:
            self._is_cut_short = True
            self._loop.call_soon_threadsafe(self._scheduler.cut_short)
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, *arguments: Any, **options: Any) -> None:
        self._scheduler.refuse_waiting()
        stop_compiling()
        await super().shutdown(*arguments, **options)
