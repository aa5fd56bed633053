"""/v1/files and /v1/batches."""

import os
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.types import Message

from localoss.server.batches.batches import Batches
from localoss.server.batches.store import KEY, Object
from localoss.server.core.bodies import BodyRoute
from localoss.server.core.errors import ApiError
from localoss.server.core.keys import client_of
from localoss.server.core.threads import in_thread

router = APIRouter(route_class=BodyRoute)

MAX_FILE_BYTES = 200 * 1024 * 1024  # OpenAI's bound for a batch
_CHUNK_BYTES = 1 << 20
_MAX_LISTED = 10_000


class BatchRequest(BaseModel):
    """The body of /v1/batches."""

    input_file_id: Annotated[str, Field(max_length=64)]
    endpoint: Literal["/v1/chat/completions", "/v1/responses", "/v1/completions"]
    completion_window: Literal["24h"] = "24h"
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]] | None, Field(max_length=16)] = None


def _batches(request: Request) -> Batches:
    found: Batches | None = request.app.state.models.batches
    if found is None:
        raise ApiError("this server keeps no files", status=404, code="not_found")
    return found


@router.post("/v1/batches", summary="Create a batch")
async def create_batch(body: BatchRequest, request: Request) -> Response:
    batches, key = _batches(request), client_of(request).key
    await in_thread(batches.files.path, body.input_file_id, key)
    made = await in_thread(
        batches.create, body.input_file_id, body.endpoint, body.completion_window, body.metadata, key
    )
    batches.start(request.app)
    return JSONResponse(_shown(made))


@router.get("/v1/batches")
async def list_batches(request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Object:
    batches = _batches(request)
    found = await _all(request, "batch")
    return _listed([batches.get(one["id"], client_of(request).key) for one in found], limit)


@router.get("/v1/batches/{name}")
async def get_batch(name: str, request: Request) -> Object:
    return _shown(await in_thread(_batches(request).get, name, client_of(request).key))


@router.api_route("/v1/batches/{name}/cancel", methods=["POST"])
async def cancel_batch(name: str, request: Request) -> Object:
    return _shown(_batches(request).cancel(name, client_of(request).key))


@router.api_route("/v1/files", methods=["POST"], summary="Upload a file")
async def create_file(request: Request) -> Object:
    files = _batches(request).files
    async with Request(request.scope, _bounded(request)).form(max_files=1, max_fields=8) as form:
        upload, purpose = form.get("file"), form.get("purpose")
        if not isinstance(upload, UploadFile):
            raise ApiError("file is missing: send it as multipart/form-data", param="file")
        if not isinstance(purpose, str) or not purpose:
            raise ApiError("purpose is missing; `batch` it is for batches", param="purpose")
        name, path = files.new_file()
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            while chunk := await upload.read(_CHUNK_BYTES):
                await in_thread(file.write, chunk)
        filename = (upload.filename or "file")[:255]
        return _shown(await in_thread(files.add_file, name, filename, purpose[:64], client_of(request).key))


def _bounded(request: Request) -> Any:
    """The request's messages, as far as they are within MAX_FILE_BYTES. Raises: ApiError 413."""
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > MAX_FILE_BYTES:
            raise ApiError(
                f"the file is larger than {MAX_FILE_BYTES:,} bytes", status=413, code="request_too_large"
            )
        return message

    return receive


@router.get("/v1/files")
async def list_files(
    request: Request, purpose: str | None = None, limit: Annotated[int, Query(ge=1)] = _MAX_LISTED
) -> Object:
    found = await _all(request, "file")
    return _listed([one for one in found if purpose in (None, one["purpose"])], min(limit, _MAX_LISTED))


@router.get("/v1/files/{name}")
async def get_file(name: str, request: Request) -> Object:
    return _shown(await in_thread(_batches(request).files.get, name, client_of(request).key))


@router.get("/v1/files/{name}/content")
async def get_content(name: str, request: Request) -> Response:
    path = await in_thread(_batches(request).files.path, name, client_of(request).key)
    return FileResponse(path, media_type="application/octet-stream")


@router.delete("/v1/files/{name}")
async def delete_file(name: str, request: Request) -> Object:
    await in_thread(_batches(request).files.remove, name, client_of(request).key)
    return {"id": name, "object": "file", "deleted": True}


async def _all(request: Request, kind: str) -> list[Object]:
    """The objects of a kind that are the client's, the newest first."""
    found = await in_thread(_batches(request).files.all, kind)
    return [one for one in found if one.get(KEY, "") == client_of(request).key]


def _shown(value: Object) -> Object:
    return {name: field for name, field in value.items() if name != KEY}


def _listed(found: list[Object], limit: int) -> Object:
    shown = [_shown(one) for one in found[:limit]]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(found) > limit,
    }
