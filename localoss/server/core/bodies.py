"""A request's body becomes a model: within limits of size, time and shape, and off the event loop.

FastAPI would parse it on the event loop, with an error for each wrong element. Here the first error ends
it, and what only costs memory is refused by its brackets and commas, before it is parsed.
"""

import asyncio
import email.message
import json
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar, get_type_hints

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from localoss.server.core.apart import LARGE, apart
from localoss.server.core.errors import ApiError, validation_error

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_BODY_S = 60.0  # from a request's headers to the end of its body
MAX_HELD_BYTES = 4 * MAX_BODY_BYTES  # of all bodies that are being read and parsed
# The JSON of a body: an empty object takes two bytes on the wire and 64 in memory.
MAX_CONTAINERS, MAX_VALUES, MAX_DEPTH = 100_000, 2_000_000, 100
_PIECE_BYTES = 4096
_SMALL_BYTES = LARGE  # parsed where it is, and not counted: the bound on connections bounds these, too
_FROM_A_PAGE = (
    "origin",
    "sec-fetch-site",
    "referer",
)  # headers that browsers send, and pages can't leave out

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")


class BodyRoute(APIRoute):
    """A route whose endpoint is endpoint(body, request); `body` is what the document says it is.

    The endpoint is cancelled when its client goes away before there is a response.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        model = get_type_hints(self.endpoint).get("body")
        if model is None:
            return super().get_route_handler()
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            body = await request.app.state.models.bodies.read(request, model)
            response: Response = await _unless_gone(request, endpoint(body=body, request=request))
            return response

        return handle


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for `work`, which is cancelled as soon as the client goes away."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(watch())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError("the client went away", status=499)
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


class Bodies:
    """Reads bodies; all that it holds at one time are within `most_bytes`."""

    def __init__(self, most_bytes: int = MAX_HELD_BYTES) -> None:
        self._left = most_bytes

    async def read(self, request: Request, model: type[Model]) -> Model:
        """The request's body as a `model`. Raises: ApiError that says the first thing that is wrong."""
        _check_headers(request)
        received, held = _Received(), 0
        try:
            async with asyncio.timeout(MAX_BODY_S):
                async for chunk in request.stream():
                    received.add(chunk)
                    if received.size > MAX_BODY_BYTES:
                        raise _too_large()
                    held += self._hold(max(received.size - _SMALL_BYTES, 0) - held)
            if received.size <= _SMALL_BYTES:
                return parse(received.pieces, model)
            return await _unless_gone(request, apart(parse, received.pieces, model))
        except TimeoutError:
            raise ApiError(
                f"the body took more than {MAX_BODY_S:.0f} s to arrive", status=408, code="request_timeout"
            ) from None
        except ClientDisconnect:
            raise ApiError("the client went away", status=499) from None
        finally:
            self._left += held

    def _hold(self, more: int) -> int:
        """Raises: ApiError 429 if `more` bytes are more than may be held."""
        if more > self._left:
            raise ApiError(
                "too many large bodies are being read; try again in 1 s",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        self._left -= more
        return more


class _Received:
    """What came of a body, in pieces, which whatever parses it puts together: it would take the loop long."""

    def __init__(self) -> None:
        self.pieces: list[bytes | bytearray] = []
        self.size = 0

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if len(chunk) >= _PIECE_BYTES:
            self.pieces.append(chunk)
            return
        # A client may send byte by byte, and each as an object of its own takes forty times as much memory.
        last = self.pieces[-1] if self.pieces else b""
        if not isinstance(last, bytearray) or len(last) >= _SMALL_BYTES:
            last = bytearray()
            self.pieces.append(last)
        last += chunk


def parse(pieces: Sequence[bytes | bytearray], model: type[Model]) -> Model:
    """What a body in so many pieces says. Raises: ApiError that says the first thing that is wrong."""
    body = b"".join(pieces)
    _check_shape(body)
    try:
        value = json.loads(body, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ApiError(f"the body is no valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError("the body must be a JSON object", code="invalid_json")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise validation_error(error, value) from None


def _check_headers(request: Request) -> None:
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise ApiError(
            f"a body in {coding[:32]} isn't read; send it as it is", status=415, code="invalid_json"
        )
    kind = email.message.Message()
    kind["content-type"] = request.headers.get("content-type", "")
    subtype = kind.get_content_subtype()
    is_json = kind.get_content_maintype() == "application" and f"+{subtype}".endswith("+json")
    if not is_json and any(name in request.headers for name in _FROM_A_PAGE):
        # A browser sends other kinds to other sites without asking them first. Programs may leave the kind
        # out, as LiteLLM does with Ollama's API, or call JSON a form, as `curl -d` does.
        raise ApiError("a web page must send its body as application/json", code="invalid_json")
    if int(request.headers.get("content-length", "0")) > MAX_BODY_BYTES:
        raise _too_large()


def _too_large() -> ApiError:
    return ApiError(f"the body is larger than {MAX_BODY_BYTES:,} bytes", status=413, code="request_too_large")


def _too_deep() -> ApiError:
    return ApiError(f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")


def _check_shape(body: bytes) -> None:
    """Raises: ApiError for JSON of too many values or levels, which its brackets and commas show."""
    escaped = body.replace(b"\\\\", b"  ").replace(b'\\"', b"  ") if b"\\" in body else body
    text = np.frombuffer(escaped, np.uint8)
    is_outside = np.cumsum(text == ord('"'), dtype=np.uint8) & 1 == 0  # wraps, and stays even or odd
    opens = ((text == ord("[")) | (text == ord("{"))) & is_outside
    closes = ((text == ord("]")) | (text == ord("}"))) & is_outside
    if np.count_nonzero(opens) > MAX_CONTAINERS:
        raise ApiError(f"the body has more than {MAX_CONTAINERS:,} lists and objects", code="invalid_value")
    if np.count_nonzero((text == ord(",")) & is_outside) >= MAX_VALUES:
        raise ApiError(f"the body has more than {MAX_VALUES:,} values", code="invalid_value")
    brackets = opens[opens | closes]
    if len(brackets) and np.cumsum(np.where(brackets, 1, -1)).max() > MAX_DEPTH:
        raise _too_deep()


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON's")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number
