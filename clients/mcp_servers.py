"""Real MCP servers from npm and PyPI, by both transports, called by the player in `localoss run --mcp`."""

import contextlib
import functools
import http.server
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attempts import Result, output, yes_or_no
from catalogue import Client
from install import install, programs_of

HERE = Path(__file__).parent
TRANSPORTS = ("stdio", "streamable HTTP")
_START_S = 60.0
_STARTS = 3
_MARK = "localoss-42"


@dataclass(frozen=True)
class Server:
    """command: what runs it, in which PLACE stands for a folder with a file, a page and a repository.

    call: a tool and its arguments, whose result holds the mark. over_http: what has it listen at PORT; None
    for a server that speaks stdio alone, which supergateway then puts behind HTTP.
    """

    client: Client
    command: tuple[str, ...]
    call: str
    over_http: tuple[str, ...] | None = None


_GATEWAY = Client("supergateway", "npm", ("supergateway",))


def _npm(package: str) -> Client:
    return Client(package, "npm", (package,))


def _pypi(package: str) -> Client:
    return Client(package, "PyPI", (package,), place="mcp-servers")


SERVERS = (
    Server(
        _npm("@modelcontextprotocol/server-everything"),
        ("mcp-server-everything",),
        f'tried__echo {{"message": "{_MARK}"}}',
        ("mcp-server-everything", "streamableHttp"),
    ),
    Server(
        _npm("@modelcontextprotocol/server-filesystem"),
        ("mcp-server-filesystem", "PLACE"),
        'tried__read_text_file {"path": "PLACE/page.html"}',
    ),
    Server(
        _pypi("mcp-server-fetch"),
        ("mcp-server-fetch", "--ignore-robots-txt", "--allow-private-ips"),
        'tried__fetch {"url": "SITE/page.html"}',
    ),
    Server(
        _pypi("mcp-server-git"),
        ("mcp-server-git", "--repository", "PLACE"),
        'tried__git_log {"repo_path": "PLACE"}',
    ),
)


def try_server(folder: Path, server: Server, patience: float) -> Result:
    """What came of a server by each transport."""
    _, problem = install(folder, _GATEWAY)
    if problem:
        return Result(problem=f"{_GATEWAY.name} {problem}")
    place = _place(folder)
    program, *rest = server.command
    command = [
        str(programs_of(folder, server.client) / program),
        *(word.replace("PLACE", str(place)) for word in rest),
    ]
    with _site(place) as site:
        call = server.call.replace("PLACE", str(place)).replace("SITE", site)
        passed = {"stdio": _ask(folder, {"command": command[0], "args": command[1:]}, call, patience)}
        for _ in range(_STARTS):  # the port that was free may be somebody's by then
            with _listening(folder, server, command) as url:
                passed["streamable HTTP"] = _ask(folder, {"url": url}, call, patience) if url else "no"
            if url:
                break
    return Result(passed)


def _ask(folder: Path, entry: dict, call: str, patience: float) -> str:
    """Whether the model of `localoss run`, with the server, is given the mark for its call."""
    home = folder / "localoss"
    home.mkdir(exist_ok=True)
    (home / "approvals.json").write_text(
        json.dumps({"format": "localoss approvals 1", "policies": {"mcp:tried": "always"}})
    )
    config = folder / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"tried": entry}}))
    command = [sys.executable, HERE / "player.py", "run", "demo", "--mcp", config, f"please @call {call}@"]
    environment = {"LOCALOSS_HOME": str(home), "WIRE": os.devnull}
    said = output(folder, "mcp", command, environment, patience)
    return yes_or_no(re.search(rf"The tool said:.*{_MARK}", said, re.S))


def _place(folder: Path) -> Path:
    """A folder with a page that has the mark, in a repository whose log has it."""
    place = folder / "mcp-place"
    if not (place / ".git").exists():
        place.mkdir(exist_ok=True)
        (place / "page.html").write_text(
            f"<html><body><article><p>{_MARK} is here.</p></article></body></html>"
        )
        author = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.com")
        for words in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", _MARK)):
            subprocess.run(["git", *words], cwd=place, check=True)
    return place


class _Pages(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *words: object) -> None:
        """Nothing: the run's own lines are enough."""


@contextlib.contextmanager
def _site(place: Path) -> Iterator[str]:
    """The address of a site whose pages are the files of `place`."""
    handler = functools.partial(_Pages, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.shutdown()


@contextlib.contextmanager
def _listening(folder: Path, server: Server, command: list[str]) -> Iterator[str | None]:
    """The address at which the server speaks streamable HTTP; None if it doesn't start."""
    port = _free_port()
    if server.over_http:
        program, *rest = server.over_http
        words = [str(programs_of(folder, server.client) / program), *rest]
    else:
        gateway = folder / _GATEWAY.place / "node_modules" / ".bin" / "supergateway"
        words = [str(gateway), "--stdio", shlex.join(command), "--outputTransport", "streamableHttp"]
        words += ["--stateful", "--port", str(port)]
    (folder / "logs").mkdir(exist_ok=True)
    with open(folder / "logs" / "mcp-server.log", "a") as log:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"PORT": str(port)}
        )
        try:
            yield f"http://127.0.0.1:{port}/mcp" if _answers(port, process) else None
        finally:
            process.terminate()
            process.wait()


def _answers(port: int, process: subprocess.Popen) -> bool:
    ends = time.monotonic() + _START_S
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.2)
    return False


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
