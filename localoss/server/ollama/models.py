"""Ollama's API about models: which there are, which are in memory, and what becomes of them."""

import datetime
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from localoss import __version__
from localoss.errors import LocalossError
from localoss.hub import store
from localoss.hub.registry import known_models, store_folder
from localoss.server.core.bodies import BodyRoute
from localoss.server.core.catalogue import Catalogue, Entry
from localoss.server.core.errors import ApiError
from localoss.server.core.keys import check_is_host
from localoss.server.core.models import Held, Models
from localoss.server.core.schemas import LINES
from localoss.server.core.threads import in_thread
from localoss.server.ollama.lines import line_stream
from localoss.server.ollama.pulling import model_to_pull, pulling
from localoss.server.ollama.schemas import NamedModel

router = APIRouter(prefix="/api", route_class=BodyRoute)

_OLLAMA_VERSION = "0.13.5"  # Codex CLI refuses one below 0.13.4, where Ollama got /v1/responses
_NEVER = "9999-12-31T23:59:59Z"


@router.get("/version")
async def version(request: Request) -> dict[str, str]:
    """The version of Ollama whose API this is, which clients compare, and localoss's own."""
    return {"version": _OLLAMA_VERSION, "localoss": __version__}


@router.get("/tags")
async def list_models(request: Request) -> dict[str, Any]:
    """The models that requests may name."""
    return {"models": await in_thread(_all, request.app.state.models.catalogue)}


@router.get("/ps")
async def list_loaded(request: Request) -> dict[str, Any]:
    """The models that are in memory."""
    models: Models = request.app.state.models
    return {"models": [await in_thread(_described, held.entry) | _in_memory(held) for held in models.held()]}


@router.post("/show", summary="Show a model (Ollama)")
async def show(body: NamedModel, request: Request) -> Response:
    models: Models = request.app.state.models
    entry = await _named(models, body)
    config = entry.config
    facts = {
        "general.architecture": "gptoss",
        "gptoss.block_count": config.layers,
        "gptoss.context_length": await in_thread(models.context_tokens, entry),
        "gptoss.embedding_length": config.hidden,
        "gptoss.expert_count": config.experts,
    }
    shown = {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _described(entry)["details"],
        "model_info": facts,
        "capabilities": ["completion", "tools", "thinking"],
    }
    return JSONResponse(shown)


@router.post("/pull", responses=LINES, summary="Pull a model (Ollama)")
async def pull(body: NamedModel, request: Request) -> Response:
    """Success for a model that is here; another comes from the hub as by `localoss pull`, one at a time.

    Raises: ApiError 404 for a name that stands for none, 403 for a key that may not, 429 during another pull.
    """
    name = _name(body)
    models: Models = request.app.state.models
    lines = _there()
    if await in_thread(models.catalogue.find, name) is None:
        check_is_host(request, "models are pulled")
        lines = pulling(models.pulls, await in_thread(model_to_pull, name))
    if body.stream is False:
        async for _ in lines:
            pass
        return JSONResponse({"status": "success"})
    return line_stream(lines)


async def _there() -> AsyncIterator[dict[str, Any]]:
    yield {"status": "pulling manifest"}
    yield {"status": "success"}


@router.delete("/delete", summary="Delete a model (Ollama)")
async def delete(body: NamedModel, request: Request) -> Response:
    """Remove an installed model from the disk, once no answer needs it any more.

    Raises: ApiError 404, LocalossError for a model that lies outside the store or is being written.
    """
    check_is_host(request, "models are deleted")
    models: Models = request.app.state.models
    entry = await _named(models, body)
    if entry.base:
        raise ApiError(f"{entry.name} is an adapter of {entry.base}; start the server without it", status=400)
    await in_thread(store.removable, entry.name if _is_in_store(entry) else str(entry.folder))
    await models.unload(entry)
    await in_thread(store.remove, entry.name)
    return Response(status_code=200)


def _name(body: NamedModel) -> str:
    return (body.model or body.name or "").removesuffix(":latest")


async def _named(models: Models, body: NamedModel) -> Entry:
    return await models.find(_name(body))


def _is_in_store(entry: Entry) -> bool:
    return entry.folder.absolute() == store_folder(entry.name).absolute()


def _all(catalogue: Catalogue) -> list[dict[str, Any]]:
    described = []
    for entry in catalogue.entries():
        with suppress(LocalossError, OSError):  # damaged, or removed just now
            described.append(_described(entry))
    return described


def _described(entry: Entry) -> dict[str, Any]:
    """Raises: LocalossError, OSError."""
    known = known_models().get(entry.name)
    made = datetime.datetime.fromtimestamp(entry.created, datetime.UTC).isoformat()
    details = {
        "parent_model": entry.base or "",
        "format": "localoss",
        "family": "gptoss",
        "families": ["gptoss"],
        "parameter_size": f"{known.parameters / 1e9:.1f}B" if known and known.parameters else "",
        "quantization_level": entry.dtypes.experts.upper(),
    }
    named = {"name": entry.name, "model": entry.name, "digest": entry.digest, "size": entry.size_bytes}
    return {**named, "modified_at": made, "details": details}


def _in_memory(held: Held) -> dict[str, Any]:
    expires = _NEVER
    if held.idle_left_s is not None:
        left = datetime.timedelta(seconds=held.idle_left_s)
        expires = (datetime.datetime.now(datetime.UTC) + left).isoformat().replace("+00:00", "Z")
    context_tokens = held.service.engine.context_tokens
    return {"context_length": context_tokens, "expires_at": expires, "size_vram": 0}
