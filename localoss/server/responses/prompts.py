"""Input items of /v1/responses become harmony's messages."""

from collections.abc import Sequence

from localoss.chat.harmony import Message
from localoss.chat.tools import Thoughts, call_message, result_message
from localoss.server.chat.prompts import checked_name
from localoss.server.core.errors import ApiError
from localoss.server.responses.schemas import InputItem, InputPart


def convert_items(items: Sequence[InputItem], thoughts: Thoughts, names: dict[str, str]) -> list[Message]:
    """The messages of `items`.

    names: of the functions that previous responses called, by the call's id; those of `items` are added.
    Raises: ApiError for an item that the model can't read.
    """
    converter = _Converter(thoughts, names)
    for index, item in enumerate(items):
        converter.add(item, f"input.{index}")
    return converter.messages


class _Converter:
    def __init__(self, thoughts: Thoughts, names: dict[str, str]) -> None:
        self.messages: list[Message] = []
        self._thoughts, self._names = thoughts, names
        self._turn = 0  # where the assistant's open turn begins

    def add(self, item: InputItem, where: str) -> None:
        kind = item.type or "message"
        if kind == "message":
            self._add_message(item, where)
        elif kind == "reasoning":
            if text := _text(item.content, where):
                self.messages.append(Message("assistant", text, "analysis"))
        elif kind == "function_call":
            self._add_call(item, where)
        elif kind == "function_call_output":
            self._add_result(item, where)
        else:
            raise ApiError(f"{where}: items of type {kind!r} aren't supported", param=f"{where}.type")

    def _add_message(self, item: InputItem, where: str) -> None:
        text = _text(item.content, f"{where}.content")
        if item.role is None:
            raise ApiError(f"{where}: a message needs a role", param=f"{where}.role")
        if item.role == "assistant":
            channel = "commentary" if item.phase == "commentary" else "final"
            self.messages.append(Message("assistant", text, channel))
        else:
            self.messages.append(Message("user" if item.role == "user" else "developer", text))
            self._turn = len(self.messages)

    def _add_call(self, item: InputItem, where: str) -> None:
        if not item.call_id or item.name is None or item.arguments is None:
            raise ApiError(f"{where}: a function_call needs call_id, name and arguments", param=where)
        name = self._names[item.call_id] = checked_name(item.name)
        known = self._thoughts.before(item.call_id)
        if known is not None:  # better than what the client sends of it, which may be nothing
            del self.messages[self._turn :]
            self.messages += known
        self.messages.append(call_message(name, item.arguments))
        self._turn = len(self.messages)

    def _add_result(self, item: InputItem, where: str) -> None:
        if item.call_id not in self._names:
            raise ApiError(
                f"{where}: call_id {item.call_id!r} isn't that of a call before it", param=f"{where}.call_id"
            )
        self.messages.append(result_message(self._names[item.call_id], _text(item.output, where)))
        self._turn = len(self.messages)


def _text(content: str | Sequence[InputPart] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.text is None or not part.type.endswith("text"):
            raise ApiError(f"{where}: content of type {part.type!r}; this model reads text only", param=where)
    return "\n".join(part.text or "" for part in content)
