"""Tools of type mcp in a request: which server is meant, which of its tools, and which are asked about.

A client can't have this server connect anywhere: it chooses among the servers that `--mcp FILE` names.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from localoss.server.core.errors import ApiError
from localoss.tools.mcp_config import McpServer

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_VALUE = re.compile(r"[\x20-\x7e\t]{0,4096}")
_MOST_HEADERS, _MOST_SERVERS, _MOST_NAMES = 16, 16, 1000
_OURS = (  # what makes a request what it is, or names a session of somebody else's
    "host", "connection", "content-", "transfer-encoding", "upgrade", "te", "trailer", "keep-alive", "expect",
    "proxy-", "accept", "mcp-", "last-event-id",
)  # fmt: skip


@dataclass(frozen=True)
class ToolFilter:
    """Which tools of a server are meant. names, read_only: None for any."""

    names: frozenset[str] | None = None
    read_only: bool | None = None

    def matches(self, tool: Any) -> bool:
        """Whether a tool, as its server lists it, is one of them."""
        only_reads = bool(tool.annotations and tool.annotations.read_only_hint)
        return (self.names is None or tool.name in self.names) and self.read_only in (None, only_reads)


@dataclass(frozen=True)
class McpWanted:
    """A tool of type mcp. label: the client's name of the server. operators_name: what the file calls it.

    allowed: the tools that the model may call; unasked: those that it may call without asking.
    """

    label: str
    operators_name: str
    server: McpServer
    allowed: ToolFilter
    unasked: ToolFilter | None

    def asks(self, tool: Any) -> bool:
        return self.unasked is None or not self.unasked.matches(tool)


def is_mcp(tool: Any) -> bool:
    return isinstance(tool, Mapping) and tool.get("type") == "mcp"


def parse_wanted(definitions: Sequence[Any], servers: Sequence[McpServer]) -> list[McpWanted]:
    """What the tools of type mcp among a request's ask for. servers: those that may be used; nothing without.

    Raises: ApiError for one that can't be had.
    """
    given = [tool for tool in definitions if is_mcp(tool)]
    if not given or not servers:
        return []
    if len(given) > _MOST_SERVERS:
        raise ApiError(f"at most {_MOST_SERVERS} tools of type mcp are taken", param="tools")
    wanted = [_wanted(tool, servers) for tool in given]
    if len({one.label for one in wanted}) < len(wanted):
        raise ApiError("two tools of type mcp have the same server_label", param="tools")
    return wanted


def _wanted(tool: Mapping[str, Any], servers: Sequence[McpServer]) -> McpWanted:
    label = tool.get("server_label")
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise ApiError(
            "a tool of type mcp needs a server_label: up to 64 letters, digits, '.', '-' and '_'",
            param="tools",
        )
    server = _meant(tool, label, servers)
    headers = _headers(tool, label)
    if headers and not server.url:
        raise ApiError(f"MCP server {label!r} is a program: it takes no headers", param="tools")
    # A client's headers stand in the place of all of the file's: the operator's key is never sent together
    # with what a client chose.
    meant = replace(server, name=label, headers=headers or server.headers)
    where = f"MCP server {label!r}"
    allowed = _filter(tool.get("allowed_tools"), f"{where}: allowed_tools") or ToolFilter()
    return McpWanted(label, server.name, meant, allowed, _unasked(tool.get("require_approval"), where))


def _meant(tool: Mapping[str, Any], label: str, servers: Sequence[McpServer]) -> McpServer:
    """The server that is meant by its address, or by its name where none is given."""
    url = tool.get("server_url")
    if tool.get("connector_id") or tool.get("tunnel_id"):
        raise ApiError(
            f"MCP server {label!r}: connectors and tunnels are OpenAI's; give server_url", param="tools"
        )
    for server in servers:
        if server.url and server.url.rstrip("/") == str(url).rstrip("/") if url else server.name == label:
            return server
    names = ", ".join(server.name for server in servers)
    raise ApiError(
        f"MCP server {label!r}{' at that server_url' if url else ''} isn't one that clients may use: "
        f"`localoss serve --mcp FILE` names those ({names})",
        param="tools",
    )


def _headers(tool: Mapping[str, Any], label: str) -> tuple[tuple[str, str], ...]:
    """What the client has sent to the server. Raises: ApiError, which never shows a value."""
    given, token = tool.get("headers") or {}, tool.get("authorization")
    if not isinstance(given, Mapping) or len(given) > _MOST_HEADERS:
        raise ApiError(f"MCP server {label!r}: headers must be at most {_MOST_HEADERS}", param="tools")
    headers = dict(given) if token is None else {**given, "Authorization": f"Bearer {token}"}
    for name, value in headers.items():
        if not _HEADER.fullmatch(name) or name.lower().startswith(_OURS):
            raise ApiError(f"MCP server {label!r}: a header {name[:64]!r} can't be sent", param="tools")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ApiError(
                f"MCP server {label!r}: the value of header {name!r} must be a line of text", param="tools"
            )
    return tuple(headers.items())


def _unasked(given: Any, where: str) -> ToolFilter | None:
    """The tools that need no approval; None for none of them, which holds where nothing is said."""
    where = f"{where}: require_approval"
    if given in (None, "always"):
        return None
    if given == "never":
        return ToolFilter()
    if not isinstance(given, Mapping) or not given.keys() <= {"always", "never"}:
        raise ApiError(f"{where} is always, never, or an object that has these", param="tools")
    never, always = (_filter(given.get(word), f"{where}.{word}") for word in ("never", "always"))
    if never and always and never.names and always.names and never.names & always.names:
        raise ApiError(f"{where}: a tool is in always and in never", param="tools")
    return never


def _filter(given: Any, where: str) -> ToolFilter | None:
    if given is None:
        return None
    names, read_only = given, None
    if isinstance(given, Mapping):
        names, read_only = given.get("tool_names"), given.get("read_only")
    are_names = names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))
    if not are_names or not isinstance(read_only, bool | None):
        raise ApiError(
            f"{where} must be a list of names, or an object with tool_names and read_only", param="tools"
        )
    if names is not None and len(names) > _MOST_NAMES:
        raise ApiError(f"{where}: at most {_MOST_NAMES} names are taken", param="tools")
    return ToolFilter(None if names is None else frozenset(names), read_only)
