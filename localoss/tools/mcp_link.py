"""A connection to an MCP server that is made anew, once, if the server dies."""

from collections.abc import Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from localoss.chat.agent import Stop
from localoss.errors import Cancelled, LocalossError
from localoss.tools.mcp_client import START_S, Connection, McpLoop
from localoss.tools.mcp_config import McpServer

if TYPE_CHECKING:
    from mcp import Client

CALL_S, _LIST_S = 120.0, 20.0
Notice = Callable[[str], None]
T = TypeVar("T")


class McpLink:
    """The server that it leads to, and a line for the user when that had to be started again."""

    def __init__(
        self,
        server: McpServer,
        loop: McpLoop,
        notice: Notice,
        start_s: float = START_S,
        allowed: Collection[str] | None = None,
    ) -> None:
        """notice: told a line for the user. allowed: see Connection.

        Raises: LocalossError if the server doesn't start.
        """
        self.server, self.notice = server, notice
        self._loop, self._allowed = loop, allowed
        self._was_restarted = False
        self._connection = self._connect(start_s)

    @property
    def is_alive(self) -> bool:
        return self._connection.is_alive

    def ask(self, work: "Callable[[Client], Coroutine[Any, Any, T]]", stop: Stop) -> T:
        """What the server answers; one that has died is started again, once. Raises: LocalossError."""
        if not self._connection.is_alive:
            self._restart()
        try:
            return self._connection.ask(work, CALL_S, stop)
        except Cancelled:
            raise LocalossError("stopped") from None
        except LocalossError:
            if self._connection.is_alive or self._was_restarted:
                raise
        self._restart()
        return self._connection.ask(work, CALL_S, stop)

    def list_all(self, method: str, field: str) -> list[Any]:
        """All entries of a list. Raises: LocalossError."""
        return self._connection.list_all(method, field, _LIST_S)

    def close(self) -> None:
        self._connection.close()

    def _connect(self, start_s: float = START_S) -> Connection:
        connection = Connection(self.server, self._loop, self._allowed)
        connection.start(start_s)
        return connection

    def _restart(self) -> None:
        name = self.server.name
        if self._was_restarted:
            raise LocalossError(f"MCP server {name} has ended again; it isn't restarted any more")
        self._was_restarted = True
        self._connection.close()
        self._connection = self._connect()
        self.notice(f"(MCP server {name} had ended; it was started again)")
