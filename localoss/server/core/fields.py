"""Fields of a request that localoss doesn't know: harmless ones pass, others are ignored and named.

The names that were ignored go into the header X-Localoss-Ignored and, once for each, into the log. A server
started with --strict refuses them.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from localoss.server.core.errors import ApiError

HEADER = "X-Localoss-Ignored"
_MAX_NAMES, _MAX_NAME_CHARS, _MAX_LOGGED = 16, 64, 1000
logger = logging.getLogger("localoss.server")

_ANY = None
# What may be left out without a change of what a client gets; with values, only those ask for nothing.
_HARMLESS: dict[str, list[Any] | None] = {
    "add_generation_prompt": [True],
    "audio": [],
    "background": [False],
    "best_of": [1],
    "cache_prompt": _ANY,
    "client_metadata": _ANY,
    "custom_llm_provider": _ANY,
    "draft_model": _ANY,
    "dry_multiplier": [0],
    "dynatemp_range": [0],
    "echo": [False],
    "extra_body": [{}],
    "id_slot": _ANY,
    "include_reasoning": [True],
    "keep_alive": _ANY,
    "max_tool_calls": _ANY,  # of tools that the server runs, and there are none
    "mirostat": [0],
    "moderation": _ANY,
    "nonce": _ANY,
    "parse_tool_calls": [True],
    "prediction": _ANY,  # makes OpenAI's servers faster, and no answer another
    "priority": _ANY,
    "prompt_cache_options": _ANY,
    "provider": _ANY,
    "request_id": _ANY,
    "skip_special_tokens": [True],
    "spaces_between_special_tokens": _ANY,
    "tfs_z": [1],
    "timings_per_token": [False],
    "transforms": [[]],
    "ttl": _ANY,
    "typical_p": [1],
    "usage": _ANY,
    "xtc_probability": [0],
}


def note_unknown(body: BaseModel, request: Request, more: Iterable[str] = ()) -> None:
    """Name what isn't known of `body`, and `more` that was left out, to the client and once in the log.

    Raises: ApiError on a strict server.
    """
    unknown = [
        name
        for name, value in _unknown(body)
        if value is not None and not _is_harmless(name.rpartition(".")[2], value)
    ]
    leave_out(request, [*unknown, *more])


def _is_harmless(word: str, value: Any) -> bool:
    return word in _HARMLESS and (_HARMLESS[word] is _ANY or value in (_HARMLESS[word] or []))


def leave_out(request: Request, names: Iterable[str]) -> None:
    """Name fields, tools or items that this request's answer doesn't heed. Raises: ApiError if strict."""
    state = request.app.state
    ignored = request.scope.setdefault("localoss.ignored", [])
    for name in names:
        # A header's value must not end with a blank, as the list would after an empty name.
        printable = re.sub(r"[^\w.:\[\]-]", "?", name[:_MAX_NAME_CHARS], flags=re.ASCII) or "?"
        if getattr(state, "strict", False):
            raise ApiError(
                f"Unrecognized request argument supplied: {printable}",
                code="unknown_parameter",
                param=printable,
            )
        if printable in ignored or len(ignored) >= _MAX_NAMES:
            continue
        ignored.append(printable)
        if printable not in state.ignored_names and len(state.ignored_names) < _MAX_LOGGED:
            state.ignored_names.add(printable)
            logger.warning("%s: %s isn't supported and was ignored", request.url.path, printable)


def header_of(scope: Any) -> list[tuple[bytes, bytes]]:
    """The header that names what was ignored, if anything was."""
    ignored = scope.get("localoss.ignored")
    return [(HEADER.lower().encode(), ", ".join(ignored).encode())] if ignored else []


def _unknown(body: BaseModel, where: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in (body.model_extra or {}).items():
        yield where + name, value
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, BaseModel):
            yield from _unknown(value, f"{where}{name}.")
