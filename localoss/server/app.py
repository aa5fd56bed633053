"""The ASGI application: endpoints, guard and errors put together."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localoss import __version__
from localoss.errors import LocalossError
from localoss.server.anthropic import api as anthropic_api
from localoss.server.batches import api as batches_api
from localoss.server.chat import api as chat_api
from localoss.server.completions import api as completions_api
from localoss.server.core import errors, fields
from localoss.server.core.catalogue import Catalogue, Entry
from localoss.server.core.guard import Guard
from localoss.server.core.keys import CLIENT, Keys
from localoss.server.core.metrics import Metrics
from localoss.server.core.models import HoldsModels, Models
from localoss.server.core.schemas import ErrorBody
from localoss.server.core.threads import in_thread
from localoss.server.ollama import api as ollama_api
from localoss.server.ollama import models as ollama_models
from localoss.server.page import Page, add_page
from localoss.server.responses import api as responses_api
from localoss.server.tokens import api as tokens_api

router = APIRouter()


def build_app(
    models: Models,
    *,
    hosts: Collection[str] | None,
    keys: Keys | None = None,
    cors_origins: Sequence[str] = (),
    strict: bool = False,
    page: Page | None = None,
) -> FastAPI:
    """The application on `models`. hosts, keys: see Guard. cors_origins: web pages that may ask.

    strict: refuse fields that aren't known, rather than name them. page: the chat page, if there is one.
    """

    app = FastAPI(
        title="localoss",
        version=__version__,
        docs_url=None,  # Swagger's page would fetch its scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.state.models, app.state.strict = models, strict
    app.state.ignored_names = set()  # those that the log has been told of
    for part in (
        router,
        chat_api.router,
        responses_api.router,
        completions_api.router,
        anthropic_api.router,
        ollama_api.router,
        batches_api.router,
        ollama_models.router,
        tokens_api.router,
    ):
        app.include_router(part)
    if page is not None:
        add_page(app, page, models)
    else:
        app.add_api_route("/", _is_running, methods=["GET"], response_class=PlainTextResponse)
    _name_the_models(app, models.catalogue)
    errors.install(app)
    app.add_middleware(HoldsModels, models=models)
    app.add_middleware(_Methods)
    app.add_middleware(_Counted, metrics=models.metrics)
    if keys:
        models.metrics.watch_keys(keys.rates)
    app.add_middleware(Guard, hosts=hosts, keys=keys)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    return app


async def _is_running() -> str:
    """What is at / without a page: Ollama's clients and Claude Code look there whether a server answers."""
    return "localoss is running"


def _name_the_models(app: FastAPI, catalogue: Catalogue) -> None:
    """Have the OpenAPI document say which models there are."""
    document = app.openapi

    def openapi() -> dict[str, Any]:
        described = document()
        names = [*(entry.name for entry in catalogue.entries()), *catalogue.aliases]
        for schema in described["components"]["schemas"].values():
            if schema.get("required") and "model" in schema.get("properties", {}):
                schema["properties"]["model"]["enum"] = names
        return described

    app.openapi = openapi  # type: ignore[method-assign]


@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    """Whether the server answers; it does so once its first model is loaded."""
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Counters in Prometheus' format."""
    models: Models = request.app.state.models
    return Response(models.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The names that requests may give: those of all models here, and aliases."""
    models: Models = request.app.state.models
    return {"object": "list", "data": await in_thread(_models, models.catalogue, _contexts(models))}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, request: Request) -> dict[str, Any]:
    """One model."""
    models: Models = request.app.state.models
    entry = await models.find(name)
    return await in_thread(_model, models.catalogue, entry, _contexts(models))


def _contexts(models: Models) -> dict[str, int]:
    """The contexts, in tokens, of the models in memory."""
    return {held.entry.name: held.service.engine.context_tokens for held in models.held()}


def _models(catalogue: Catalogue, contexts: dict[str, int]) -> list[dict[str, Any]]:
    described = []
    for entry in catalogue.entries():
        with suppress(LocalossError, OSError):  # damaged, or removed just now
            described.append(_model(catalogue, entry, contexts))
    first = [one for one in described if one["id"] == catalogue.first.name]
    return described + [one | {"id": alias} for alias in catalogue.aliases for one in first]


def _model(catalogue: Catalogue, entry: Entry, contexts: dict[str, int]) -> dict[str, Any]:
    """Raises: LocalossError, OSError."""
    context_tokens = contexts.get(entry.loaded_as)
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "localoss",
        **({"parent": entry.base} if entry.base else {}),
        "context_length": context_tokens or catalogue.context_tokens(entry),
        "status": {"value": "unloaded" if context_tokens is None else "loaded"},  # as llama.cpp's router says
    }


class _Methods:
    """ASGI middleware for the methods that every path has: HEAD is GET without a body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            allowed = {"Allow": "GET, HEAD, POST, DELETE, OPTIONS"}
            await Response(status_code=204, headers=allowed)(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "HEAD":
            await self._app({**scope, "method": "GET"}, receive, send)  # the server sends no body to HEAD
        else:
            await self._app(scope, receive, send)


class _Counted:
    """ASGI middleware that counts requests by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._requests, self._key_requests = app, metrics.requests, metrics.key_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                path = getattr(route, "path", "other")  # the template, so that names don't multiply
                self._requests.labels(path, str(message["status"])).inc()
                if key := scope[CLIENT].key:
                    self._key_requests.labels(key, str(message["status"])).inc()
                message["headers"] = [*message.get("headers", []), *fields.header_of(scope)]
            await send(message)

        await self._app(scope, receive, counting if scope["type"] == "http" else send)
