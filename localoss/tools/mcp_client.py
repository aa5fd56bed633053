"""Connections to MCP servers, by the mcp package, on an event loop of their own thread."""

import asyncio
import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from localoss.chat.agent import Stop
from localoss.errors import Cancelled, LocalossError, UsageError
from localoss.tools.mcp_config import McpServer

if TYPE_CHECKING:
    from mcp import Client

START_S = 30.0
_LOOK_S = 0.05
_MOST_PAGES = 20  # of a list
_ADDRESS = re.compile(r"https?://[^\s'\"]+")

T = TypeVar("T")


class McpLoop:
    """The thread whose event loop all connections of a program share."""

    def __init__(self) -> None:
        """Raises: UsageError if the mcp package isn't installed."""
        try:
            import mcp  # noqa: F401 - that it is there
        except ImportError:
            raise UsageError("MCP servers need the package mcp: pip install 'localoss[tools]'") from None
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="mcp", daemon=True)
        self._thread.start()

    def wait(self, work: Coroutine[Any, Any, T], seconds: float, stop: Stop | None = None) -> T:
        """What `work` gives. Raises: Cancelled if stopped, TimeoutError, and what `work` raises."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self.loop)
        ends = time.monotonic() + seconds
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    return future.result(_LOOK_S)
                if future.done():
                    return future.result()
                if stop is not None and stop.is_set:
                    raise Cancelled("stopped")
                if time.monotonic() > ends:
                    raise TimeoutError(f"no answer within {seconds:.0f} s")
        finally:
            future.cancel()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)


class Connection:
    """A server that runs. A task of its own holds the connection open: it must end where it began."""

    def __init__(self, server: McpServer, loop: McpLoop, allowed: Collection[str] | None = None) -> None:
        """allowed: hosts that may have private addresses; None for any, where who asks named the server."""
        self.server, self._loop, self._allowed = server, loop, allowed
        self.client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._leave: asyncio.Event | None = None
        self._is_lost = False  # nothing comes from the server any more

    def start(self, seconds: float = START_S) -> None:
        """Raises: LocalossError if it doesn't start."""
        self._loop.wait(self._begin(), 5)
        try:
            self._loop.wait(self._until_ready(), seconds)
        except TimeoutError:
            self.close()
            raise LocalossError(f"MCP server {self.server.name}: not ready within {seconds:.0f} s") from None
        except Exception as error:
            raise LocalossError(f"MCP server {self.server.name}: {reason(error)}") from None

    @property
    def is_alive(self) -> bool:
        is_held = self.client is not None and self._task is not None and not self._task.done()
        return is_held and not self._is_lost

    def ask(
        self, work: "Callable[[Client], Coroutine[Any, Any, T]]", seconds: float, stop: Stop | None = None
    ) -> T:
        """What the server answers. Raises: LocalossError, Cancelled."""
        if self.client is None or not self.is_alive:
            raise LocalossError(f"MCP server {self.server.name} has ended")
        try:
            return self._loop.wait(self._while_alive(work(self.client)), seconds, stop)
        except (LocalossError, Cancelled):
            raise
        except TimeoutError as error:
            raise LocalossError(f"MCP server {self.server.name}: {error}") from None
        except Exception as error:
            self._is_lost = _is_lost(error)
            raise LocalossError(f"MCP server {self.server.name}: {reason(error)}") from None

    def list_all(self, method: str, field: str, seconds: float) -> list[Any]:
        """All entries of a list that comes in pages. Raises: LocalossError."""

        async def pages(client: "Client") -> list[Any]:
            entries: list[Any] = []
            cursor = None
            for _ in range(_MOST_PAGES):
                page = await getattr(client, method)(cursor=cursor)
                entries += getattr(page, field)
                cursor = page.next_cursor
                if not cursor:
                    break
            return entries

        return self.ask(pages, seconds)

    def close(self) -> None:
        async def leave() -> None:
            if self._leave:
                self._leave.set()
            if self._task:
                await asyncio.wait([self._task], timeout=5)
                self._task.cancel()

        with contextlib.suppress(Exception):
            self._loop.wait(leave(), 8)
        self.client = None

    async def _begin(self) -> None:
        self._leave, self._ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._task = asyncio.create_task(self._hold())

    async def _until_ready(self) -> None:
        await asyncio.shield(self._ready)

    async def _hold(self) -> None:
        from mcp import Client
        from mcp.types import Implementation

        assert self._leave
        try:
            async with contextlib.AsyncExitStack() as stack:
                transport = await self._transport(stack)
                info = Implementation(name="localoss", version="1")
                self.client = await stack.enter_async_context(Client(transport, client_info=info))
                self._ready.set_result(None)
                await self._leave.wait()
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(
                    error if isinstance(error, Exception) else LocalossError("it ended")
                )
            elif not isinstance(error, Exception):
                raise
        finally:
            self.client = None

    async def _transport(self, stack: contextlib.AsyncExitStack) -> Any:
        server = self.server
        if server.command:
            from mcp.client.stdio import StdioServerParameters, stdio_client

            quiet = stack.enter_context(open(os.devnull, "w"))  # noqa: SIM115
            given = StdioServerParameters(
                command=server.command,
                args=list(server.args),
                env=dict(server.env) or None,
                cwd=server.cwd,
                encoding_error_handler="replace",
            )
            return stdio_client(given, errlog=quiet)
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        client = httpx2.AsyncClient(
            headers=dict(server.headers),
            timeout=httpx2.Timeout(30.0, read=300.0),
            trust_env=False,
            follow_redirects=False,  # an address that nobody named, perhaps one of this network
        )
        if self._allowed is not None:
            from localoss.tools.addresses import connect_to_public

            client.event_hooks = {"request": [connect_to_public(self._allowed)]}
        return streamable_http_client(server.url, http_client=await stack.enter_async_context(client))

    async def _while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """`work`, unless the connection ends before. Raises: LocalossError if it does."""
        assert self._task
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, self._task], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise LocalossError(f"MCP server {self.server.name} has ended")
            return task.result()
        finally:
            task.cancel()


def _is_lost(error: Exception) -> bool:
    """Whether an error says that the connection is gone, rather than what the server thinks of a request."""
    from mcp.shared.exceptions import MCPError
    from mcp.types import CONNECTION_CLOSED

    return not isinstance(error, MCPError) or error.error.code == CONNECTION_CLOSED


def reason(error: BaseException) -> str:
    """What went wrong, in a line; of a group of errors, the first one. Addresses may have keys in them, and
    what is said here reaches models, and clients of a server: they aren't shown.
    """
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    said = _ADDRESS.sub("its address", " ".join(str(error).split()))[:500]
    return said or type(error).__name__
