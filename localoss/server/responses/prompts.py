"""Input items of /v1/responses become harmony's messages."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from localoss.chat.harmony import Message
from localoss.chat.tools import KeyThoughts, call_message, result_message
from localoss.server.chat.prompts import arguments_text
from localoss.server.core.content import text_of
from localoss.server.core.errors import ApiError
from localoss.server.core.toolbox import custom_arguments, model_name
from localoss.server.responses.schemas import InputItem

FoundItem = Callable[[str], dict[str, Any] | None]
_MESSAGES = ("message", "agent_message")


def convert_items(
    items: Sequence[InputItem], thoughts: KeyThoughts, names: dict[str, str]
) -> tuple[list[Message], list[str]]:
    """The messages of `items`, and the types of those that say nothing to this model.

    names: of the functions that previous responses called, by the call's id; those of `items` are added.
    Raises: ApiError for an item that the model can't read.
    """
    said = [index for index, item in enumerate(items) if _is_said(item)]
    converter = _Converter(thoughts, names, newest=said[-1] + 1 if said else 0)
    for index, item in enumerate(items):
        converter.add(index, item)
    return converter.messages, converter.left_out


def with_references(items: Sequence[InputItem], find: FoundItem) -> list[InputItem]:
    """`items` with stored ones in the place of references to them; unknown references stay."""
    resolved = []
    for item in items:
        is_reference = item.type == "item_reference" or (item.type is None and item.role is None)
        found = find(item.id) if is_reference and item.id else None
        resolved.append(InputItem.model_validate(found) if found else item)
    return resolved


def _is_said(item: InputItem) -> bool:
    """Whether the model wrote it: what comes before is old."""
    return item.role == "assistant" or (item.type or "").endswith("_call") or item.type == "reasoning"


class _Converter:
    """newest: index of the first item after the model's last, from where images are refused."""

    def __init__(self, thoughts: KeyThoughts, names: dict[str, str], newest: int) -> None:
        self.messages: list[Message] = []
        self.left_out: list[str] = []
        self._thoughts, self._names, self._newest = thoughts, names, newest
        self._turn = 0  # where the assistant's open turn begins

    def add(self, index: int, item: InputItem) -> None:
        kind, where = item.type or "message", f"input.{index}"
        if kind in _MESSAGES and item.role not in ("tool", "function"):
            self._add_message(item, where, is_new=index >= self._newest)
        elif kind == "reasoning":
            if text := text_of(item.content or item.summary, where):
                self.messages.append(Message("assistant", text, "analysis"))
        elif kind.endswith("_output") or item.role in ("tool", "function"):
            self._add_result(item, where)
        elif kind in ("function_call", "custom_tool_call") or (kind.endswith("_call") and item.call_id):
            self._add_call(item, kind, where)
        else:  # what a server's own tools did, a compacted history that another server made
            self.left_out.append(f"input:{kind}")

    def _add_message(self, item: InputItem, where: str, is_new: bool) -> None:
        if item.role is None:
            raise ApiError(f"{where}: a message needs a role", param=f"{where}.role")
        text = text_of(item.content, f"{where}.content", is_new and item.role == "user")
        if item.role == "assistant":
            channel = "commentary" if item.phase == "commentary" else "final"
            self.messages.append(Message("assistant", text, channel))
        else:
            self.messages.append(Message("user" if item.role == "user" else "developer", text))
            self._turn = len(self.messages)

    def _add_call(self, item: InputItem, kind: str, where: str) -> None:
        if kind in ("function_call", "custom_tool_call") and item.name is None:
            raise ApiError(f"{where}: a {kind} needs a name", param=where)
        if not item.call_id:
            raise ApiError(f"{where}: a {kind} needs call_id, name and arguments", param=where)
        name = model_name(item.name or kind.removesuffix("_call"), item.namespace)
        self._names[item.call_id] = name
        known = self._thoughts.before(item.call_id)
        if known is not None:  # better than what the client sends of it, which may be nothing
            del self.messages[self._turn :]
            self.messages += known
        if kind == "custom_tool_call":
            arguments = custom_arguments(item.input or "")
        else:
            arguments = arguments_text(item.arguments or item.action)
        self.messages.append(call_message(name, arguments))
        self._turn = len(self.messages)

    def _add_result(self, item: InputItem, where: str) -> None:
        output = item.content if item.output is None else item.output
        text = json.dumps(output, ensure_ascii=False) if isinstance(output, dict) else text_of(output, where)
        name = self._names.get(item.call_id or "", item.name)
        self.messages.append(result_message(model_name(name, None) if name else "unknown", text))
        self._turn = len(self.messages)
