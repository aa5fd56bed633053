"""Pictures that tools drew, for the page that shows them."""

import re

from fastapi import APIRouter, Request
from fastapi.responses import Response

from localoss.server.core.errors import ApiError
from localoss.server.core.threads import in_thread
from localoss.server.page.origin import PageRoute
from localoss.tools import pictures

router = APIRouter(prefix="/localoss/pictures", route_class=PageRoute, include_in_schema=False)
_NAME = re.compile(r"[\w-]{1,100}\.png", re.ASCII)


@router.get("/{name}")
async def picture(name: str, request: Request) -> Response:
    """Raises: ApiError 404 for one that isn't there any more."""
    if not _NAME.fullmatch(name):
        raise _missing()
    try:
        data = await in_thread((pictures.folder() / name).read_bytes)
    except OSError:
        raise _missing() from None
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(data, headers=headers, media_type="image/png")


def _missing() -> ApiError:
    return ApiError("there is no such picture, or no longer", status=404, code="not_found")
