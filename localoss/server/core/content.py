"""A message's content, text or parts, becomes the text that the model reads."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from localoss.server.core.errors import ApiError


class Part(Protocol):
    """One of a content's parts, in any API's words."""

    @property
    def type(self) -> str: ...
    @property
    def text(self) -> str | None: ...
    @property
    def refusal(self) -> str | None: ...


def text_of(content: str | Sequence[Part] | None, where: str, is_new: bool = False) -> str:
    """The text of `content`. Where there is none of a part, such as an image's, a line says what it was.

    is_new: a part that isn't text is what is asked about. Raises: ApiError for such a part then.
    """
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(_part_text(part, where, is_new) for part in content)


def json_unless_parts(content: Any) -> Any:
    """`content` if it is text or parts that have a type; else the JSON of it, which is what a tool gave."""
    if content is None or isinstance(content, str):
        return content
    is_parts = isinstance(content, list) and all(
        isinstance(one, Mapping) and "type" in one for one in content
    )
    return content if is_parts else json.dumps(content, ensure_ascii=False)


def _part_text(part: Part, where: str, is_new: bool) -> str:
    if part.type == "refusal":
        return part.refusal or ""
    if "text" in part.type and (part.text is not None or part.type == "text"):
        return part.text or ""
    if is_new:
        raise ApiError(
            f"{where}: content of type {part.type[:64]!r}; this model reads text only", param=where
        )
    kind = part.type.removeprefix("input_").removesuffix("_url")[:32]
    return f"[{kind} left out: this model reads text only]"
