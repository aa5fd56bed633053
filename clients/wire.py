"""What clients really sent and got: a line of JSON for each request that the player's server answered."""

import json
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_STREAMS = (b"text/event-stream", b"application/x-ndjson")


class Wire:
    """ASGI middleware that writes down each answer: its path, status, and in how many pieces it went out."""

    def __init__(self, app: ASGIApp, file: Path) -> None:
        self._app, self._file = app, file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = {"method": scope["method"], "path": scope["path"], "status": 0, "pieces": 0, "streamed": False}

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = dict(message.get("headers", []))
                seen["status"] = message["status"]
                seen["streamed"] = headers.get(b"content-type", b"").split(b";")[0] in _STREAMS
                seen["ignored"] = headers.get(b"x-localoss-ignored", b"").decode()
            elif message.get("body"):
                seen["pieces"] += 1
                if seen["status"] >= 400:
                    seen["said"] = message["body"].decode(errors="replace")[:500]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(json.dumps(seen) + "\n")
