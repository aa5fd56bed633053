"""Whether a request comes from the page itself, and from no other that a browser has open."""

from urllib.parse import urlsplit

from fastapi import Request

from localoss.server.core.errors import ApiError


async def own_page(request: Request) -> None:
    """A dependency of every endpoint that tells or changes conversations.

    --cors-origin lets other pages ask the model; conversations are not theirs to read. Programs, which send
    neither header, need the key where there is one. Raises: ApiError 403.
    """
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    is_same = origin is None or urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower()
    if site not in ("same-origin", "none") or not is_same:
        raise ApiError(
            "conversations are told to this server's own page only", status=403, code="forbidden_origin"
        )
