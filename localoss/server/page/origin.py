"""Whether a request comes from the page itself, and from no other that a browser has open."""

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import Response

from localoss.server.core.bodies import BodyRoute
from localoss.server.core.errors import ApiError
from localoss.server.core.keys import check_is_host


class PageRoute(BodyRoute):
    """A route that tells or changes conversations: for the server's own page.

    --cors-origin lets other pages ask the model; conversations are not theirs to read. Programs, which send
    neither header, need the server's own key where there is one: they are this machine's user's sessions.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            check_origin(request)
            check_is_host(request, "conversations are told")
            return await inner(request)

        return handle


def check_origin(request: Request) -> None:
    """Raises: ApiError 403 for a request that another page makes."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    is_same = origin is None or urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower()
    if site not in ("same-origin", "none") or not is_same:
        raise ApiError(
            "conversations are told to this server's own page only", status=403, code="forbidden_origin"
        )
