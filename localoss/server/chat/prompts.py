"""Chat completions' messages become harmony's, and its options the rules of an answer."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from localoss.chat.grammar import ANY_OBJECT, Budget, Grammar
from localoss.chat.grammar_limits import lenient_grammar, strict_grammar
from localoss.chat.harmony import Message
from localoss.chat.rules import AnswerRules, argument_grammars
from localoss.chat.tools import KeyThoughts, ToolCall, call_message, result_message
from localoss.errors import UsageError
from localoss.server.chat.schemas import ChatMessage
from localoss.server.core.content import text_of
from localoss.server.core.errors import ApiError
from localoss.server.core.json_text import printable
from localoss.server.core.threads import compiling
from localoss.server.core.toolbox import Toolbox, custom_arguments, model_name


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


def rules_for(toolbox: Toolbox, wanted: Format | None, budget: Budget | None = None) -> AnswerRules:
    """The rules that tools, tool_choice and response_format make.

    budget: what compiling their schemas may take. Raises: ApiError for a schema that can't be followed.
    """
    names = [function.name for function in toolbox.functions]
    may = tuple(names) if toolbox.may_call is None else toolbox.may_call
    callable_functions = [function for function in toolbox.functions if function.name in may]
    try:
        arguments = argument_grammars(callable_functions, toolbox.strict, budget)
        final = _final_grammar(wanted, budget) if wanted else None
    except UsageError as error:
        raise ApiError(str(error), code="invalid_json_schema") from None
    return AnswerRules(
        may,
        toolbox.may_call != (),
        toolbox.must_call,
        preambles=wanted is None,
        final=final,
        arguments=arguments,
    )


async def compiled_rules(toolbox: Toolbox, wanted: Format | None) -> AnswerRules:
    """rules_for, on a thread for compiling unless there is nothing to compile. Raises: ApiError."""
    if toolbox.functions or wanted:
        return await compiling(rules_for, toolbox, wanted)
    return rules_for(toolbox, wanted)  # nobody waits for another's schemas


def _final_grammar(wanted: Format, budget: Budget | None) -> Grammar:
    schema = printable(wanted.schema)
    if wanted.strict:
        return strict_grammar(schema, budget)
    return lenient_grammar("the answer's format", schema, budget)


def convert_messages(messages: Sequence[ChatMessage], thoughts: KeyThoughts) -> list[Message]:
    """Harmony's messages for `messages`. Raises: ApiError for one that the model can't read."""
    said = [index for index, message in enumerate(messages) if message.role == "assistant"]
    converter = _Converter(thoughts, newest=said[-1] + 1 if said else 0)
    for index, message in enumerate(messages):
        converter.add(index, message)
    return converter.messages


def split_instructions(messages: Sequence[Message]) -> tuple[list[str], list[Message]]:
    """The texts of the developer messages at the beginning, which harmony has in one, and the rest."""
    first = 0
    while first < len(messages) and messages[first].role == "developer":
        first += 1
    return [message.text for message in messages[:first] if message.text], list(messages[first:])


class _Converter:
    """newest: index of the first message after the assistant's last, from where images are refused."""

    def __init__(self, thoughts: KeyThoughts, newest: int) -> None:
        self.messages: list[Message] = []
        self._thoughts, self._newest = thoughts, newest
        self._names: dict[str, str] = {}  # of the functions called, by the call's id

    def add(self, index: int, message: ChatMessage) -> None:
        is_new = message.role == "user" and index >= self._newest
        text = text_of(message.content, f"messages.{index}.content", is_new)
        if message.role == "assistant":
            self._add_assistant(message, text or message.refusal or "")
        elif message.role in ("tool", "function"):
            name = self._names.get(message.tool_call_id or message.name or "", message.name)
            self.messages.append(result_message(model_name(name, None) if name else "unknown", text))
        else:
            self.messages.append(Message("user" if message.role == "user" else "developer", text))

    def _add_assistant(self, message: ChatMessage, text: str) -> None:
        """Thinking, a preamble and calls; or thinking and the final answer."""
        calls = list(_calls_of(message))
        known = self._thoughts.before(calls[0].id) if calls else None
        if known is not None:
            self.messages += known
        else:
            thinking = message.reasoning_content or message.reasoning
            if thinking and isinstance(thinking, str):
                self.messages.append(Message("assistant", thinking, "analysis"))
            if text or not calls:
                self.messages.append(Message("assistant", text, "commentary" if calls else "final"))
        for call in calls:
            self._names[call.id] = call.name
            self.messages.append(call_message(call.name, call.arguments))


def _calls_of(message: ChatMessage) -> Iterator[ToolCall]:
    """The calls in an assistant's message; the older form, function_call, has the function's name for an id.

    Raises: ApiError for a name that no function can have.
    """
    for call in message.tool_calls or []:
        call_id = call.id or ""
        if call.custom:
            yield ToolCall(call_id, model_name(call.custom.name, None), custom_arguments(call.custom.input))
        elif call.function:
            yield ToolCall(
                call_id, model_name(call.function.name, None), arguments_text(call.function.arguments)
            )
    if message.function_call:
        name = model_name(message.function_call.name, None)
        yield ToolCall(name, name, arguments_text(message.function_call.arguments))


def arguments_text(arguments: str | dict[str, Any] | list[Any] | None) -> str:
    """Arguments as JSON text; some clients send them as an object."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
