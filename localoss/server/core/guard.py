"""Who may ask at all: the Host header against DNS rebinding, and the API key."""

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from localoss.server.core.entrance import Entrance
from localoss.server.core.errors import ApiError
from localoss.server.core.keys import CLIENT, Keys, admit

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# These tell nothing: whoever watches over the server has no key, and a browser asks for a page without one.
_OPEN_PATHS, _OPEN_FOLDER = ("/health", "/"), "/localoss/page/"


class Guard:
    """ASGI middleware. hosts: the Host names to answer to, None for any. keys: None if there are none.

    What the server asks itself comes with a client in its scope.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, keys: Keys | None) -> None:
        self._app, self._keys, self._entrance = app, keys, Entrance()
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and CLIENT not in scope:
            if error := self._refusal(scope):
                await error.response(scope["path"])(scope, receive, send)
                return
            await self._entrance.wait(scope[CLIENT])
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._hosts is not None and _host_name(headers.get("host", "")) not in self._hosts:
            return ApiError(
                "the Host header names another host than this server's; start it with "
                "--allowed-host NAME, or with --host to serve there",
                status=403,
                code="forbidden_host",
            )
        is_open = scope["path"] in _OPEN_PATHS or scope["path"].startswith(_OPEN_FOLDER)
        if self._keys is None or is_open or scope["method"] == "OPTIONS":
            admit(scope, "")
            return None
        for key in _sent(headers):
            if (name := self._keys.name(key.strip().encode("latin-1"))) is not None:
                admit(scope, name)
                return self._keys.refusal(name) if scope["method"] == "POST" else None  # to look costs little
        return ApiError(
            "Incorrect API key provided; send the server's as `Authorization: Bearer KEY`",
            status=401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _sent(headers: Headers) -> list[str]:
    """The keys that came: a client may send one for another server, too, as it found it."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    bearer = [key] if scheme.lower() == "bearer" else []
    return bearer + [headers[name] for name in _KEY_HEADERS if name in headers]


_KEY_HEADERS = ("x-api-key", "api-key")  # of Anthropic's clients, and Azure's
_HOST = re.compile(r"(?:\[(?P<address>[^\]]*)\]|(?P<name>[^:]*))(?::\d*)?")


def _host_name(host: str) -> str:
    """The name in a Host header, without its port: `[::1]:80` is `::1`; nothing for what is no such thing."""
    match = _HOST.fullmatch(host)
    return (match["address"] or match["name"] or "").lower() if match else ""
