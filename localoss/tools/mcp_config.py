"""Which MCP servers there are: a file in the form that Claude Desktop and LM Studio use."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localoss.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


@dataclass(frozen=True)
class McpServer:
    """A server by a program that is started (command, args, env, cwd), or by an address (url, headers)."""

    name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    cwd: str | None = None
    url: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """What is started, or the address."""
        return (self.command, *self.args) if self.command else (self.url,)


def read_servers(path: Path) -> list[McpServer]:
    """The servers of a file {"mcpServers": {NAME: {…}}}; disabled ones are left out.

    Raises: UsageError that says where the file is wrong.
    """
    try:
        document = json.loads(path.expanduser().read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"--mcp {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--mcp {path}: not JSON ({error})") from None
    servers = _listed(document)
    if not isinstance(servers, dict) or not servers:
        raise UsageError(
            f'--mcp {path}: expected {{"mcpServers": {{NAME: {{"command": …}} or {{"url": …}}}}}}'
        )
    read = [_server(name, entry, path) for name, entry in servers.items()]
    return [server for server in read if server is not None]


def _listed(document: Any) -> Any:
    """The servers as Claude and LM Studio write them, or as VS Code does, in its settings too."""
    if not isinstance(document, dict):
        return None
    inner = document.get("mcp")
    places = (document, inner if isinstance(inner, dict) else {})
    return next(
        (place[word] for place in places for word in ("mcpServers", "servers") if word in place), None
    )


def _server(name: str, entry: Any, path: Path) -> McpServer | None:
    where = f"--mcp {path}: server {name[:64]!r}"
    if not _NAME.fullmatch(name):
        raise UsageError(f"{where}: a name has up to 64 letters, digits, '.', '-', '_' and blanks")
    if not isinstance(entry, dict):
        raise UsageError(f"{where} must be an object")
    if entry.get("disabled") is True or entry.get("enabled") is False:
        return None
    command = entry.get("command")
    url = entry.get("url") or entry.get("serverUrl") or entry.get("httpUrl")
    if entry.get("type") == "sse":
        raise UsageError(f"{where}: the old SSE transport isn't spoken; use streamable HTTP")
    if bool(command) == bool(url) or not isinstance(command or url, str):
        raise UsageError(f"{where} needs either a command or a url, which is a text")
    if url and not url.startswith(("http://", "https://")):
        raise UsageError(f"{where}: the url must begin with http:// or https://")
    args, cwd = entry.get("args") or [], entry.get("cwd")
    if not isinstance(args, list) or not all(isinstance(word, str) for word in args):
        raise UsageError(f"{where}: args must be a list of texts")
    if cwd is not None and not isinstance(cwd, str):
        raise UsageError(f"{where}: cwd must be a folder")
    env, headers = (_texts(entry.get(field), f"{where}: {field}") for field in ("env", "headers"))
    return McpServer(name, command or "", tuple(args), env, cwd, url or "", headers)


def _texts(values: Any, where: str) -> tuple[tuple[str, str], ...]:
    if values is None:
        return ()
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise UsageError(f"{where} must be an object of texts")
    return tuple(values.items())
