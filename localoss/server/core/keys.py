"""Who asks: the keys that a server takes, and whose each is.

What one key's requests leave behind is for that key alone: KV caches, whose reuse could be seen in
`cached_tokens` and in the time to the first token, thoughts before calls, stored responses, files, batches.
"""

import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import HTTPConnection
from starlette.types import Scope

from localoss.errors import UsageError
from localoss.server.core.errors import ApiError
from localoss.server.core.rates import Limits, Rates

CLIENT = "localoss.client"  # in a scope, where no client can set it
_LINE = re.compile(r"([A-Za-z0-9._@-]{1,64})\s+(\S{8,512})((?:\s+(?:requests|tokens)=[1-9]\d{0,11})*)")
_MOST_BYTES = 1 << 20
_LOOK_EVERY_S = 1.0

logger = logging.getLogger("localoss.server")


@dataclass(frozen=True)
class Client:
    """key: the name of the key that it sent; empty for the server's own, and where there is none."""

    key: str = ""
    address: str = ""


def client_of(request: HTTPConnection) -> Client:
    """Who asks; also whose line the request waits in: a `user` is any text, and so would be many lines."""
    client: Client = request.scope[CLIENT]
    return client


def admit(scope: Scope, key: str) -> None:
    """Note in the scope of a request who asks."""
    scope[CLIENT] = Client(key, (scope.get("client") or ("",))[0])


def check_is_host(request: HTTPConnection, what: str) -> None:
    """Raises: ApiError 403 for a key of the key file: `what` is for whoever runs the server."""
    if client_of(request).key:
        raise ApiError(
            f"{what} with the server's own key only, not with one of its key file",
            status=403,
            code="forbidden_key",
        )


class Keys:
    """The server's own key and those of a file of names and keys, which is read again once it changes.

    Only their hashes are kept: to find one takes a time that tells nothing about the keys. rates: what each
    had lately.
    """

    def __init__(self, own: str | None = None, file: Path | None = None) -> None:
        """Raises: UsageError for a file that can't be used."""
        self._own, self._file = own, file
        self.rates = Rates()
        self._limits: Mapping[str, Limits] = {}
        self._state: tuple[int, ...] = ()
        self._looked_s = time.monotonic()
        self._names: dict[bytes, str] = {} if own is None else {_hash(own.encode()): ""}
        if file is not None:
            self._read(file)

    def name(self, sent: bytes) -> str | None:
        """The name of the key `sent`, empty for the server's own; None if there is no such key."""
        if self._file is not None and time.monotonic() - self._looked_s > _LOOK_EVERY_S:
            self._look_again(self._file)
        return self._names.get(_hash(sent))

    def refusal(self, name: str) -> ApiError | None:
        """Why the key of that name may not ask now; None, and the request is counted, if it may."""
        limits = self._limits.get(name)
        if limits and (found := self.rates.refusal(name, limits)):
            most, wait_s = found
            return ApiError(
                f"the key {name!r} may have {most} a minute; try again in {wait_s} s",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(wait_s)},
            )
        self.rates.note(name, requests=1)
        return None

    def _look_again(self, file: Path) -> None:
        self._looked_s = time.monotonic()
        try:
            if _state(file) != self._state:
                self._read(file)
                logger.warning("%s was read again: %d keys", file, len(self._names))
        except (OSError, UsageError) as error:
            if self._state:
                logger.warning("%s; the keys that were there before stay", error)
            self._state = ()

    def _read(self, file: Path) -> None:
        try:
            state = _state(file)
            with open(file, "rb") as opened:
                text = opened.read(_MOST_BYTES + 1)
        except OSError as error:
            raise UsageError(f"--api-key-file {file}: {error.strerror or error}") from None
        named = _parse(text, file)
        names = {_hash(key.encode()): name for name, (key, _) in named.items()}
        if self._own is not None:
            names[_hash(self._own.encode())] = ""
        self._limits = {name: limits for name, (_, limits) in named.items()}
        self._names, self._state = names, state


def others_may_read(file: Path) -> bool:
    """Whether other users of this machine can read `file`."""
    try:
        return os.name == "posix" and bool(file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False


def _state(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _parse(text: bytes, file: Path) -> Mapping[str, tuple[str, Limits]]:
    """Keys and what they may have, by their names.

    Raises: UsageError that says which line is wrong, and never shows a key.
    """
    where = f"--api-key-file {file}"
    if len(text) > _MOST_BYTES:
        raise UsageError(f"{where}: it is larger than {_MOST_BYTES >> 20} MiB")
    named: dict[str, tuple[str, Limits]] = {}
    for number, line in enumerate(text.decode("utf-8-sig", "replace").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match:
            raise UsageError(
                f"{where}: line {number} is no name (letters, digits, . _ @ -) and key of at least "
                "8 characters, with a space between them, and perhaps requests=N and tokens=N a minute"
            )
        name, key, limits = match.groups()
        if name in named or any(key == other for other, _ in named.values()):
            what = f"the name {name}" if name in named else "its key"
            raise UsageError(f"{where}: line {number}: {what} stands on an earlier line, too")
        given = dict(limit.split("=") for limit in limits.split())
        named[name] = key, Limits(**{what: int(most) for what, most in given.items()})
    if not named:
        raise UsageError(f"{where}: there is no key in it; write a name and a key on each line")
    return named
