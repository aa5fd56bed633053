"""Servers that run on this machine: each leaves a file that says where, and its user's commands find it."""

import contextlib
import http.client
import json
import os
import queue
import socket
import threading
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
from quant.format.json_file import MOST_BYTES, parse_json

_SILENCE_S = 60.0  # a stream shows a sign of life much sooner
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

    def get(self, path: str, timeout_s: float = _PATIENCE_S) -> Any:
        """What it answers. Raises: LocalossError."""
        return self._parsed(self.open(path, timeout_s=timeout_s))

    def post(self, path: str, body: Any) -> Any:
        """What it answers. Raises: LocalossError."""
        return self._parsed(self.open(path, body))

    def _parsed(self, answer: Any) -> Any:
        try:
            return parse_json(answer.read(MOST_BYTES + 1))
        except (ValueError, OSError) as error:
            raise LocalossError(f"{self.url} does not answer as localoss does ({error})") from None

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

    @contextlib.contextmanager
    def events(self, path: str, body: Any) -> Iterator["Events"]:
        """The events of a stream that it answers with, which ends there when the context does.

        Raises: LocalossError.
        """
        place = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname or "", self.port, timeout=_SILENCE_S)
        headers = {"Content-Type": "application/json"}
        if key := settings.api_key():
            headers["Authorization"] = f"Bearer {key}"
        try:
            connection.connect()
            held = connection.sock
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise urllib.error.HTTPError(path, answer.status, answer.reason, answer.headers, answer)
            events = Events(answer, held, self.url)
            try:
                yield events
            finally:
                events.close()
        except urllib.error.HTTPError as error:
            raise LocalossError(f"{self.url}: {_told(error)}") from None
        except (OSError, http.client.HTTPException) as error:
            raise LocalossError(f"{self.url}: {error}") from None
        finally:
            connection.close()

    def _process(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            return process if abs(float(process.create_time()) - self.started) < 1 else None
        except psutil.Error:
            return None


class Events:
    """Server-sent events, read on a thread of their own: who waits for one can look around meanwhile."""

    def __init__(self, answer: http.client.HTTPResponse, held: socket.socket, url: str) -> None:
        """held: what the answer comes by."""
        self._answer, self._held, self._url = answer, held, url
        self._lines: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="events", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float) -> Any:
        """The next event's JSON, or its text if it has none; None if none comes in time.

        Raises: LocalossError if the stream breaks off.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if line is None or isinstance(line, Exception):
            raise LocalossError(f"{self._url}: the server went away in the middle of its answer")
        return json.loads(line) if line.startswith("{") else line

    def close(self) -> None:
        """Let the server see that nobody listens any more."""
        with contextlib.suppress(OSError):
            self._held.shutdown(socket.SHUT_RDWR)  # wakes the thread, too
        self._thread.join(timeout=5)

    def _read(self) -> None:
        try:
            for line in self._answer:
                if line.startswith(b"data: "):
                    self._lines.put(line[6:].decode().strip())
            self._lines.put(None)
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._lines.put(error)


def _told(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return "it asks for a key; set LOCALOSS_API_KEY to the one that it was started with"
    try:
        said = parse_json(error.read(MOST_BYTES + 1))["error"]
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
