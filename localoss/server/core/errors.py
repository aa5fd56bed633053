"""Errors as OpenAI's API shapes them: {"error": {"message", "type", "param", "code"}}."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from localoss.errors import ContextFullError, LocalossError, UsageError
from localoss.server.core.json_text import dumps

logger = logging.getLogger("localoss.server")

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
_MAX_MESSAGE_CHARS = 1000


class ApiError(Exception):
    """A request that isn't met: an HTTP status and what OpenAI's error object says."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param, self.headers = status, kind, code, param, headers

    def body(self) -> dict[str, Any]:
        message = " ".join(str(self).split())[:_MAX_MESSAGE_CHARS]
        error = {"message": message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": {key: _printable(value) for key, value in error.items()}}

    def response(self, path: str = "") -> JSONResponse:
        """The refusal of a request of `path`, in the shape of the API that it belongs to."""
        if path.startswith("/api/"):
            body = ollama_body(self)
        else:
            body = anthropic_body(self) if path.startswith("/v1/messages") else self.body()
        return JSONResponse(body, self.status, self.headers)


_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """An error as Anthropic's API shapes it."""
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_KINDS.get(error.status, kind)
    return {"type": "error", "error": {"type": kind, "message": error.body()["error"]["message"]}}


def ollama_body(error: ApiError) -> dict[str, Any]:
    """An error as Ollama's API shapes it."""
    return {"error": error.body()["error"]["message"]}


def stream_end(path: str, media_type: str, error: ApiError) -> bytes | None:
    """The end of a stream of `path` that can't go on, as its API shapes it; None for what is no stream."""
    if media_type.startswith("application/x-ndjson"):
        return f"{dumps(ollama_body(error))}\n".encode()
    if not media_type.startswith("text/event-stream"):
        return None
    if path.startswith("/v1/messages"):
        return f"event: error\ndata: {dumps(anthropic_body(error))}\n\n".encode()
    if path.startswith("/v1/responses"):
        flat = {"type": "error", **error.body()["error"]}
        return f"event: error\ndata: {dumps(flat)}\n\n".encode()
    return f"data: {dumps(error.body())}\n\ndata: [DONE]\n\n".encode()


def context_length_error(prompt_tokens: int, context_tokens: int, param: str) -> ApiError:
    """What a prompt that doesn't fit gets, in OpenAI's words: clients look for the counts in them."""
    return ApiError(
        f"This model's maximum context length is {context_tokens} tokens. However, your {param} resulted in "
        f"{prompt_tokens} tokens. Please reduce the length of the {param}, or start the server with a "
        "larger --context.",
        code="context_length_exceeded",
        param=param,
    )


def too_much() -> ApiError:
    """What a request gets that would take too long to read, or too much memory."""
    return ApiError("reading the request takes too much time or memory; send less at once")


def as_api_error(error: Exception) -> ApiError:
    """The error that a client is told for any exception; what isn't the client's doing is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextFullError):
        return ApiError(str(error), code="context_length_exceeded")
    if isinstance(error, UsageError):
        return ApiError(str(error))
    if isinstance(error, LocalossError):
        logger.error("a request failed: %s", error)
        told = str(error)
    else:
        logger.error("a request failed", exc_info=error)
        told = "the server failed; its log says why"
    return ApiError(told, status=500, kind="server_error", code="server_error")


def install(app: FastAPI) -> None:
    """Have every error of `app` answered in OpenAI's shape."""

    def served() -> (
        str
    ):  # the document takes FastAPI a third of a second, once: not each start's, nor the loop's
        return ", ".join(path for path in app.openapi().get("paths", {}) if "{" not in path)

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        detail = str(error.detail)
        if error.status_code in (404, 405):
            paths = await run_in_threadpool(served)
            detail = f"{request.method} {request.url.path[:100]}: there is none; served are {paths}"
        return ApiError(
            detail,
            status=error.status_code,
            code=_CODES.get(error.status_code),
            headers=dict(error.headers or {}),
        ).response(request.url.path)

    async def explain(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response(request.url.path)

    app.add_exception_handler(HTTPException, refuse)
    app.add_exception_handler(ApiError, explain)
    app.add_exception_handler(LocalossError, explain)
    app.add_exception_handler(Exception, explain)


_SHOULD_BE = "Input should be "  # as pydantic begins most of what it says


def validation_error(error: ValidationError, body: Any) -> ApiError:
    """The first thing that is wrong with `body`, in words.

    Of a union's branches it is the one that goes furthest with the value, or all that refuse its very type.
    """
    found = [(_path_in(body, one), one) for one in error.errors(include_url=False, include_input=False)]
    found = [(path, one) for path, one in found if path[:1] == found[0][0][:1]]
    furthest = max(_progress(path) for path, _ in found)
    found = [(path, one) for path, one in found if _progress(path) == furthest]
    others = [(path, one) for path, one in found if not one["type"].endswith(("_type", "_parsing"))]
    path, first = (others or found)[0]
    where = ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        return ApiError(
            f"Unrecognized request argument supplied: {where}", code="unknown_parameter", param=where
        )
    told = [_words(one) for _, one in (others[:1] or found)]
    says = " or ".join(dict.fromkeys([told[0], *(text.removeprefix(_SHOULD_BE) for text in told[1:])]))
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return ApiError(f"{where}: {says}", code=code, param=where)


def _path_in(value: Any, error: Any) -> tuple[str | int, ...]:
    """Where in `value` an error is: pydantic puts names of a union's branches among the keys."""
    path: list[str | int] = []
    for number, part in enumerate(error["loc"], start=1):
        is_missing = error["type"] == "missing" and number == len(error["loc"])
        is_there = (
            part in value
            if isinstance(value, dict)
            else isinstance(value, list) and isinstance(part, int) and part < len(value)
        )
        if is_there:
            value = value[part]
        if is_there or is_missing:
            path.append(part)
    return tuple(path)


def _progress(path: tuple[str | int, ...]) -> tuple[int, tuple[int, ...]]:
    """How far a check came: the deeper, and the further along its lists, the more of the value it liked."""
    return len(path), tuple(part for part in path if isinstance(part, int))


def _words(error: Any) -> str:
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{_SHOULD_BE}an object"
    return str(error["msg"])


def _printable(value: str | None) -> str | None:
    # What a client sent may hold lone surrogates, which no response can carry.
    return value and value.encode("utf-8", "replace").decode("utf-8")
