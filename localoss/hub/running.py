"""Servers that run on this machine: each leaves a file that says where, and its user's commands find it."""

import contextlib
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from localoss import settings
from localoss.errors import LocalossError

_PATIENCE_S = 600.0  # a model may have to be let go first
# A loopback address needs no proxy, whatever the environment says of others.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Running:
    """A server of this user. url: its base, without /v1. started: its process's start, seconds since 1970."""

    pid: int
    url: str
    started: float

    @property
    def port(self) -> int:
        return urllib.parse.urlsplit(self.url).port or 80

    @property
    def runs(self) -> bool:
        """Whether that very process is there: another may have got its number."""
        process = self._process()
        return process is not None and bool(process.status() != psutil.STATUS_ZOMBIE)

    def terminate(self) -> None:
        """Tell it to finish what it answers, and to end."""
        if process := self._process():
            with contextlib.suppress(psutil.Error):
                process.terminate()

    def get(self, path: str) -> Any:
        """What it answers. Raises: LocalossError."""
        return json.load(self.open(path))

    def post(self, path: str, body: Any) -> Any:
        """What it answers. Raises: LocalossError."""
        return json.load(self.open(path, body))

    def open(self, path: str, body: Any = None, timeout_s: float = _PATIENCE_S) -> Any:
        """The answer to be read, as it comes. Raises: LocalossError that says what the server does."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        if key := settings.api_key():
            request.add_header("Authorization", f"Bearer {key}")
        try:
            return _opener.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            raise LocalossError(f"{self.url}: {_told(error)}") from None
        except OSError as error:  # refused, or too slow
            raise LocalossError(f"{self.url}: {getattr(error, 'reason', error)}") from None

    def _process(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            return process if abs(float(process.create_time()) - self.started) < 1 else None
        except psutil.Error:
            return None


def _told(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return "it asks for a key; set LOCALOSS_API_KEY to the one that it was started with"
    try:
        said = json.load(error)["error"]
        return str(said["message"] if isinstance(said, dict) else said)
    except (ValueError, KeyError, TypeError, OSError):
        return str(error)


def _folder() -> Path:
    return settings.home() / "server" / "running"


@contextlib.contextmanager
def registered(url: str) -> Iterator[None]:
    """Let other commands find this process's server, whose API is at `url`, while the context lasts."""
    folder = _folder()
    file = folder / f"{os.getpid()}.json"
    started = psutil.Process().create_time()
    with contextlib.suppress(OSError):  # a disk that is full is no reason not to serve
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps({"url": url.removesuffix("/v1"), "started": started}), encoding="utf-8")
        part.replace(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def running_servers() -> list[Running]:
    """Those whose process still runs, the one started last first. Files of the others are removed."""
    found = []
    for file in sorted(_folder().glob("*.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            server = Running(int(file.stem), str(told["url"]), float(told["started"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if server.runs:
            found.append(server)
        else:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
    return sorted(found, key=lambda server: -server.started)
