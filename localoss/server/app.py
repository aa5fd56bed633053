"""The ASGI application: endpoints, guard and errors put together."""

from collections.abc import Collection, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localoss import __version__
from localoss.server.anthropic import api as anthropic_api
from localoss.server.batches import api as batches_api
from localoss.server.chat import api as chat_api
from localoss.server.completions import api as completions_api
from localoss.server.core import errors, fields
from localoss.server.core.guard import Guard
from localoss.server.core.schemas import ErrorBody
from localoss.server.core.service import Service
from localoss.server.ollama import api as ollama_api
from localoss.server.page import Page, add_page
from localoss.server.responses import api as responses_api

router = APIRouter()


def build_app(
    service: Service,
    *,
    hosts: Collection[str] | None,
    api_key: str | None = None,
    cors_origins: Sequence[str] = (),
    strict: bool = False,
    page: Page | None = None,
) -> FastAPI:
    """The application on `service`. hosts: see Guard. cors_origins: web pages that may ask.

    strict: refuse fields that aren't known, rather than name them. page: the chat page, if there is one.
    """

    app = FastAPI(
        title="localoss",
        version=__version__,
        docs_url=None,  # Swagger's page would fetch its scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.state.service, app.state.strict = service, strict
    app.state.ignored_names = set()  # those that the log has been told of
    for part in (
        router,
        chat_api.router,
        responses_api.router,
        completions_api.router,
        anthropic_api.router,
        ollama_api.router,
        batches_api.router,
    ):
        app.include_router(part)
    if page is not None:
        add_page(app, page, service)
    _name_the_model(app, [service.model, *service.aliases])
    errors.install(app)
    app.add_middleware(_Methods)
    app.add_middleware(_Counted, service=service)
    app.add_middleware(Guard, hosts=hosts, api_key=api_key)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    return app


def _name_the_model(app: FastAPI, names: list[str]) -> None:
    """Have the OpenAPI document say which model there is."""
    document = app.openapi

    def openapi() -> dict[str, Any]:
        described = document()
        for schema in described["components"]["schemas"].values():
            if schema.get("required") and "model" in schema.get("properties", {}):
                schema["properties"]["model"]["enum"] = names
        return described

    app.openapi = openapi  # type: ignore[method-assign]


@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    """Whether the server answers; it does so once the model is loaded."""
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Counters in Prometheus' format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The names that requests may give: the model's, and its aliases."""
    return {"object": "list", "data": _models(request.app.state.service)}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, request: Request) -> dict[str, Any]:
    """One model."""
    service: Service = request.app.state.service
    service.check_model(name)
    return _model(service)


def _models(service: Service) -> list[dict[str, Any]]:
    return [_model(service) | {"id": name} for name in (service.model, *service.aliases)]


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": service.created,
        "owned_by": "localoss",
        "context_length": service.engine.context_tokens,
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

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._requests = app, service.metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                path = getattr(route, "path", "other")  # the template, so that names don't multiply
                self._requests.labels(path, str(message["status"])).inc()
                message["headers"] = [*message.get("headers", []), *fields.header_of(scope)]
            await send(message)

        await self._app(scope, receive, counting if scope["type"] == "http" else send)
