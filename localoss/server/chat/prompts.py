"""Chat completions' messages become harmony's, and its options the rules of an answer."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from localoss.chat.grammar import ANY_OBJECT, Grammar
from localoss.chat.harmony import Function, Message
from localoss.chat.rules import AnswerRules, argument_grammars
from localoss.chat.tools import Thoughts, call_message, parse_function, result_message
from localoss.errors import UsageError
from localoss.server.chat.schemas import ChatMessage, ContentPart
from localoss.server.core.errors import ApiError
from localoss.server.core.json_text import printable


@dataclass(frozen=True)
class Format:
    """What the final message must be: a JSON schema with what the model is told of it."""

    schema: dict[str, Any]
    name: str = "response"
    description: str | None = None
    strict: bool = False

    @property
    def instructions(self) -> str:
        """The section of the developer message that harmony has for it."""
        description = f"// {self.description}\n\n" if self.description else ""
        return f"# Response Formats\n\n## {self.name}\n\n{description}{json.dumps(printable(self.schema))}"


JSON_OBJECT = Format(ANY_OBJECT, "json_object", "A JSON object")


def parse_functions(definitions: Sequence[dict[str, Any]]) -> tuple[tuple[Function, ...], tuple[str, ...]]:
    """The functions of `tools`, and the names of the strict ones. Raises: ApiError."""
    try:
        parsed = [parse_function(printable(definition)) for definition in definitions]
    except UsageError as error:
        raise ApiError(str(error), param="tools") from None
    functions = tuple(function for function, _ in parsed)
    names = [function.name for function in functions]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ApiError(f"two tools have the name {min(twice)!r}", param="tools")
    return functions, tuple(function.name for function, strict in parsed if strict)


def rules_for(
    functions: Sequence[Function], strict: Sequence[str], choice: str | None, wanted: Format | None
) -> AnswerRules:
    """The rules that tools, tool_choice and response_format make. choice: none, auto, required or a name.

    Raises: ApiError for a schema that can't be followed, or a choice that there isn't.
    """
    names = tuple(function.name for function in functions)
    if choice not in (None, "none", "auto", "required", *names):
        raise ApiError(f"tool_choice names {choice!r}, which isn't among the tools", param="tool_choice")
    if choice == "required" and not names:
        raise ApiError("tool_choice is required, but there are no tools", param="tool_choice")
    may = names if choice in (None, "auto", "required") else () if choice == "none" else (choice,)
    try:
        arguments = argument_grammars(functions, strict)
        final = Grammar(printable(wanted.schema), strict=wanted.strict) if wanted else None
    except UsageError as error:
        raise ApiError(str(error), code="invalid_json_schema") from None
    must_call = choice == "required" or choice in names
    return AnswerRules(may, must_call, preambles=wanted is None, final=final, arguments=arguments)


def convert_messages(messages: Sequence[ChatMessage], thoughts: Thoughts) -> list[Message]:
    """Harmony's messages for `messages`. Raises: ApiError for one that the model can't read."""
    converted: list[Message] = []
    names: dict[str, str] = {}  # of the functions called, by the call's id
    for index, message in enumerate(messages):
        converted += _convert(message, f"messages.{index}", names, thoughts)
    return converted


def split_instructions(messages: Sequence[Message]) -> tuple[list[str], list[Message]]:
    """The texts of the developer messages at the beginning, which harmony has in one, and the rest."""
    first = 0
    while first < len(messages) and messages[first].role == "developer":
        first += 1
    return [message.text for message in messages[:first] if message.text], list(messages[first:])


def _convert(
    message: ChatMessage, where: str, names: dict[str, str], thoughts: Thoughts
) -> Iterator[Message]:
    text = text_of(message.content, f"{where}.content")
    if message.role == "assistant":
        yield from _assistant_messages(message, text, names, thoughts)
    elif message.role == "tool":
        if message.tool_call_id not in names:
            raise ApiError(
                f"{where}: tool_call_id {message.tool_call_id!r} isn't that of a call before it",
                param=f"{where}.tool_call_id",
            )
        yield result_message(names[message.tool_call_id], text)
    else:
        yield Message("user" if message.role == "user" else "developer", text)


def _assistant_messages(
    message: ChatMessage, text: str, names: dict[str, str], thoughts: Thoughts
) -> Iterator[Message]:
    """Thinking, a preamble and calls; or thinking and the final answer."""
    calls = message.tool_calls or []
    known = thoughts.before(calls[0].id) if calls else None
    if known is not None:
        yield from known
    else:
        if thinking := message.reasoning_content or message.reasoning:
            yield Message("assistant", thinking, "analysis")
        if text or not calls:
            yield Message("assistant", text, "commentary" if calls else "final")
    for call in calls:
        names[call.id] = checked_name(call.function.name)
        yield call_message(call.function.name, call.function.arguments)


def checked_name(name: str) -> str:
    """A function's name that can stand in a header. Raises: ApiError for another."""
    try:
        return Function(name).name
    except UsageError as error:
        raise ApiError(str(error)) from None


def text_of(content: str | list[ContentPart] | None, where: str) -> str:
    """The text of a message's content. Raises: ApiError for parts that aren't text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if part.text is None or "text" not in part.type:
            raise ApiError(f"{where}: content of type {part.type!r}; this model reads text only", param=where)
        texts.append(part.text)
    return "\n".join(texts)
