"""Ollama's streams: JSON, a line each."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi.responses import StreamingResponse

from localoss.server.core.errors import as_api_error, ollama_body
from localoss.server.core.json_text import dumps


def line_stream(lines: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """Lines of JSON, the last of which is an error if there is one."""
    return StreamingResponse(_texts(lines), media_type="application/x-ndjson")


async def _texts(lines: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for line in lines:
            yield dumps(line) + "\n"
    except Exception as error:
        yield dumps(ollama_body(as_api_error(error))) + "\n"
    finally:
        with suppress(RuntimeError):
            await lines.aclose()  # type: ignore[attr-defined]
