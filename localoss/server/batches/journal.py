"""The files of a batch: requests that come in, answers and errors that go out, each line exactly once.

Answers are appended to `OUT.partial`, errors to `OUT.errors.partial`, each line in one write; what a killed
process left half-written at the end is cut off. Both get their names once all is done. So what is done can be
read from them, and nothing else has to be kept.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localoss.errors import UsageError
from localoss.server.core.bodies import MAX_BODY_BYTES
from localoss.server.core.json_text import dumps
from quant.format.disk import take_lock

URLS = ("/v1/chat/completions", "/v1/responses", "/v1/completions")
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Request:
    """One line of a batch. line: its number, from 1 on. fault: why it can't be answered, None if it can."""

    line: int
    custom_id: str | None
    url: str
    body: dict[str, Any]
    fault: str | None = None


def read_requests(path: Path) -> Iterator[Request]:
    """The requests in the file at `path`; empty lines are none.

    Raises: UsageError if it can't be read.
    """
    seen: set[str] = set()
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _request(number, line, seen)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None


def _request(number: int, line: bytes, seen: set[str]) -> Request:
    if len(line) > MAX_BODY_BYTES:
        return Request(number, None, "", {}, f"line {number} is longer than {MAX_BODY_BYTES:,} bytes")
    try:
        found = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return Request(number, None, "", {}, f"line {number} is no JSON")
    if not isinstance(found, dict):
        return Request(number, None, "", {}, f"line {number} is no JSON object")
    custom_id, url, body = found.get("custom_id"), found.get("url"), found.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        return Request(
            number, None, "", {}, f"line {number} has no custom_id, which tells whose answer is whose"
        )
    fault = None
    if custom_id in seen:
        fault = f"custom_id {custom_id[:64]!r} stands on an earlier line, too"
    elif found.get("method", "POST") != "POST":
        fault = f"method {str(found['method'])[:16]!r}: only POST is taken"
    elif url not in URLS:
        fault = f"url {str(url)[:64]!r}: use one of {', '.join(URLS)}"
    elif not isinstance(body, dict):
        fault = "body must be a JSON object"
    elif body.get("stream"):
        fault = "stream: answers of a batch come whole; leave it out"
    seen.add(custom_id)
    return Request(number, custom_id, str(url), body if isinstance(body, dict) else {}, fault)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON's")


class Journal:
    """The two files that a batch writes; `errors` may be None as long as there is none."""

    def __init__(self, out: Path, errors: Path) -> None:
        """Open what an earlier run left, or begin. Raises: UsageError if another process writes to it."""
        self.out, self.errors = out, errors
        self._files = [_Lines(out), _Lines(errors)]
        self._answered = {answer["custom_id"] for answer in self._files[0].kept}
        self._failed = {error["line"] for error in self._files[1].kept}

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self._files:
            file.close()

    @property
    def counts(self) -> tuple[int, int]:
        """Lines that were answered, and that failed."""
        return len(self._answered), len(self._failed)

    def has(self, request: Request) -> bool:
        """Whether its answer, or what is wrong with it, is written already."""
        return request.line in self._failed or (request.fault is None and request.custom_id in self._answered)

    def strangers(self, custom_ids: set[str]) -> set[str]:
        """Ids of answers that aren't among `custom_ids`: another batch's."""
        return self._answered - custom_ids

    def answer(self, request: Request, answer: dict[str, Any]) -> None:
        self._files[0].append(answer)
        self._answered.add(str(request.custom_id))

    def fail(self, request: Request, answer: dict[str, Any]) -> None:
        self._files[1].append(answer | {"line": request.line})
        self._failed.add(request.line)

    def finish(self) -> None:
        """Give the files their names: all is done. Without errors there is no file of errors."""
        for file, is_wanted in zip(self._files, (True, bool(self._failed)), strict=True):
            file.finish(is_wanted)


class _Lines:
    """A file of JSON lines that grows; it is `path` once it is finished, and `path`.partial until then."""

    def __init__(self, path: Path) -> None:
        """kept: custom_id and line of each line that is there. Raises: UsageError; all stays as it was."""
        self._path, self._partial = path, path.with_name(path.name + _PARTIAL)
        try:
            if path.exists():
                if self._partial.exists():
                    raise UsageError(f"{path} and {self._partial} are both there; remove or rename one")
                if _whole_lines(path)[1] != path.stat().st_size:  # a file of something else keeps its name
                    raise UsageError(f"{path}: its last line is no batch's; choose another -o")
                path.rename(self._partial)
            self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        except OSError as error:
            raise UsageError(f"{self._partial}: {error.strerror or error}; choose another -o") from None
        try:
            if not take_lock(self._file):
                raise UsageError(f"{self._partial}: another batch writes to it")
            self.kept, self._size = _whole_lines(self._partial, self._file)
        except BaseException:
            os.close(self._file)
            raise
        os.ftruncate(self._file, self._size)
        os.lseek(self._file, self._size, os.SEEK_SET)

    def append(self, value: dict[str, Any]) -> None:
        """Raises: UsageError if the disk is full."""
        left = memoryview(dumps(value).encode() + b"\n")
        try:
            while left:
                self._size += (count := os.write(self._file, left))
                left = left[count:]
        except OSError as error:
            raise UsageError(
                f"{self._partial}: {error.strerror or error}; what is done is kept: run it again to go on"
            ) from None

    def finish(self, is_wanted: bool) -> None:
        os.fsync(self._file)
        os.close(self._file)
        self._file = -1
        if is_wanted:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            if not self._size:  # nothing to go on with
                self._partial.unlink()


def _whole_lines(path: Path, file: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """custom_id and line of each whole line of the file at `path`, which may be open as `file`, and the bytes
    of them all. Raises: UsageError if it isn't what a batch writes.
    """
    kept, whole = [], 0
    with open(path if file is None else file, "rb", closefd=file is None) as opened:
        for number, line in enumerate(opened, 1):
            if not line.endswith(b"\n"):
                break
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            if not isinstance(found, dict) or "custom_id" not in found:
                raise UsageError(f"{path}: line {number} is no batch's; choose another -o")
            kept.append({"custom_id": found["custom_id"], "line": found.get("line")})
            whole += len(line)
    return kept, whole
