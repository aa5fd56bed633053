"""Anthropic's messages and tools become harmony's messages and the toolbox that all APIs share."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from localoss.chat.harmony import Message
from localoss.chat.tools import KeyThoughts, call_message, result_message
from localoss.server.anthropic.schemas import Block, Content, CountRequest, SentMessage
from localoss.server.chat.prompts import arguments_text
from localoss.server.core.content import json_unless_parts, text_of
from localoss.server.core.errors import ApiError
from localoss.server.core.toolbox import Toolbox, model_name, open_toolbox

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def toolbox_of(body: CountRequest) -> Toolbox:
    """The tools of `body` and what it wants of them. Raises: ApiError."""
    toolbox = open_toolbox([_definition(tool) for tool in body.tools or []])
    choice = body.tool_choice
    if choice is None:
        return toolbox.choose(None)
    if choice.type == "tool":
        return toolbox.choose({"type": "function", "name": choice.name})
    return toolbox.choose(_CHOICES[choice.type])


def _definition(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool in the form of the responses API; what has another type is one that Anthropic's servers run."""
    if tool.get("type") == "function":  # OpenAI's form
        return tool
    if tool.get("type") not in (None, "custom"):
        return {"type": str(tool["type"])}
    return {
        "type": "function",
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
        "strict": tool.get("strict"),
    }


def convert_messages(body: CountRequest, thoughts: KeyThoughts) -> list[Message]:
    """Harmony's messages, those of `system` first. Raises: ApiError for what the model can't read."""
    said = [index for index, message in enumerate(body.messages) if message.role == "assistant"]
    converter = _Converter(thoughts, newest=said[-1] + 1 if said else 0)
    if system := text_of(body.system, "system"):
        converter.messages.append(Message("developer", system))
    for index, message in enumerate(body.messages):
        converter.add(index, message)
    return converter.messages


class _Converter:
    """newest: index of the first message after the assistant's last, from where images are refused."""

    def __init__(self, thoughts: KeyThoughts, newest: int) -> None:
        self.messages: list[Message] = []
        self._thoughts, self._newest = thoughts, newest
        self._names: dict[str, str] = {}  # of the functions called, by the call's id

    def add(self, index: int, message: SentMessage) -> None:
        where = f"messages.{index}.content"
        if message.role == "assistant":
            self._add_assistant(_blocks(message.content), where)
        elif message.role == "system":
            self.messages.append(Message("developer", text_of(message.content, where)))
        else:
            self._add_user(_blocks(message.content), where, is_new=index >= self._newest)

    def _add_user(self, blocks: Sequence[Block], where: str, is_new: bool) -> None:
        for block in blocks:
            if block.type == "tool_result":
                name = self._names.get(block.tool_use_id or "", "unknown")
                self.messages.append(result_message(name, text_of(_inner(block.content), where)))
        rest = [_as_text(block) for block in blocks if block.type != "tool_result"]
        if rest or not blocks:
            self.messages.append(Message("user", text_of(rest, where, is_new)))

    def _add_assistant(self, blocks: Sequence[Block], where: str) -> None:
        """Thinking, a preamble and calls; or thinking and the final answer."""
        calls = [block for block in blocks if block.type == "tool_use"]
        known = self._thoughts.before(calls[0].id or "") if calls else None
        if known is not None:
            self.messages += known
        else:
            thinking = "\n\n".join(block.thinking for block in blocks if block.thinking)
            if thinking:
                self.messages.append(Message("assistant", thinking, "analysis"))
            text = text_of([block for block in blocks if block.type == "text"], where)
            if text or not calls:
                self.messages.append(Message("assistant", text, "commentary" if calls else "final"))
        for call in calls:
            if not call.id or not call.name:
                raise ApiError(f"{where}: a tool_use needs id and name", param=where)
            name = self._names[call.id] = model_name(call.name, None)
            self.messages.append(call_message(name, arguments_text(call.input)))


def _blocks(content: Content) -> list[Block]:
    return [Block(type="text", text=content)] if isinstance(content, str) else content


def _inner(content: Any) -> Content | None:
    """A tool result's content; what is neither text nor blocks as JSON."""
    content = json_unless_parts(content)
    if content is None or isinstance(content, str):
        return content
    try:
        return [_as_text(Block.model_validate(block)) for block in content]
    except ValidationError:
        return json.dumps(content, ensure_ascii=False)


def _as_text(block: Block) -> Block:
    """`block`, or the text of one that has its text within: a document as text, a search's result."""
    if block.type == "document" and isinstance(block.source, Mapping):
        inner = block.source.get("data" if block.source.get("type") == "text" else "content")
    elif block.type == "search_result":
        inner = block.content
    else:
        return block
    if isinstance(inner, list):
        texts = [one.get("text") for one in inner if isinstance(one, Mapping)]
        inner = "\n".join(text for text in texts if isinstance(text, str))
    if not isinstance(inner, str):
        return block
    return Block(type="text", text=f"{block.title}\n\n{inner}" if block.title else inner)
