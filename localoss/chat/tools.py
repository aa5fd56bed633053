"""Function calling: definitions as OpenAI writes them, calls, results, and the thinking between them."""

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localoss.chat.harmony import Function, Message
from localoss.errors import UsageError

_PREFIX = "functions."


@dataclass(frozen=True)
class ToolCall:
    """A call that the model wrote to its end. arguments: JSON text. id: names the call in its result."""

    id: str
    name: str
    arguments: str


def parse_function(definition: Mapping[str, Any]) -> tuple[Function, bool]:
    """The function of a tool definition, and whether it is strict.

    Takes chat completions' form {"type": "function", "function": {"name": …}} and responses' flat form.
    Raises: UsageError that says what is wrong.
    """
    if not isinstance(definition, Mapping) or definition.get("type", "function") != "function":
        kind = definition.get("type") if isinstance(definition, Mapping) else definition
        raise UsageError(f'tool type {kind!r} isn\'t supported; use "function"')
    inner = definition.get("function", definition)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise UsageError("a tool of type function needs a name")
    parameters, description = inner.get("parameters"), inner.get("description")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise UsageError(f"function {inner['name']!r}: parameters must be a JSON schema, an object")
    if description is not None and not isinstance(description, str):
        raise UsageError(f"function {inner['name']!r}: description must be text")
    function = Function(inner["name"], description or "", dict(parameters) if parameters else None)
    return function, bool(inner.get("strict"))


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def called_name(recipient: str) -> str:
    """The function's name in a call's recipient."""
    return recipient.removeprefix(_PREFIX)


def call_of(message: Message, call_id: str | None = None) -> ToolCall:
    """The call that `message`, which has a recipient, makes; with an id of its own unless one is given."""
    assert message.recipient
    return ToolCall(call_id or new_call_id(), called_name(message.recipient), message.text)


def call_message(name: str, arguments: str) -> Message:
    """A call as the model writes it."""
    return Message("assistant", arguments, "commentary", _PREFIX + name, "json")


def result_message(name: str, output: str) -> Message:
    """A function's result, for the model to read."""
    return Message("tool", output, "commentary", "assistant", name=_PREFIX + name)


def answer_message(call: Message, output: str) -> Message:
    """The result of `call`, whose tool answers on the channel that it was called on."""
    return Message("tool", output, call.channel, "assistant", name=call.recipient)


def _chars_of(messages: Sequence[Message]) -> int:
    return sum(len(message.text) for message in messages)


class Thoughts:
    """What was thought and said before each call, by the call's id: clients don't send it back.

    Only whoever made the calls, as `of` names them, is given what came before. The least recently used of
    more than `capacity` calls, or `most_chars`, are forgotten. Any thread may use it.
    """

    def __init__(self, capacity: int = 4096, most_chars: int = 16_000_000) -> None:
        self._capacity, self._most_chars, self._chars = capacity, most_chars, 0
        self._kept: OrderedDict[tuple[str, str], tuple[Message, ...]] = OrderedDict()  # whose, and the id
        self._lock = threading.Lock()

    def of(self, key: str) -> "KeyThoughts":
        """Those before the calls that were made with the API key of that name."""
        return KeyThoughts(self, key)

    def keep(self, call: tuple[str, str], messages: Sequence[Message]) -> None:
        with self._lock:
            self._forget(call)
            self._kept[call] = tuple(messages)
            self._chars += _chars_of(messages)
            while len(self._kept) > self._capacity or self._chars > self._most_chars:
                self._forget(next(iter(self._kept)))

    def _forget(self, call: tuple[str, str]) -> None:
        self._chars -= _chars_of(self._kept.pop(call, ()))

    def before(self, call: tuple[str, str]) -> tuple[Message, ...] | None:
        with self._lock:
            if call in self._kept:
                self._kept.move_to_end(call)
            return self._kept.get(call)


@dataclass(frozen=True)
class KeyThoughts:
    """The thoughts before the calls of one API key's requests."""

    _all: Thoughts
    _key: str

    def keep(self, call_id: str, messages: Sequence[Message]) -> None:
        self._all.keep((self._key, call_id), messages)

    def before(self, call_id: str) -> tuple[Message, ...] | None:
        """The messages before the call; None for a call that isn't known."""
        return self._all.before((self._key, call_id))


@dataclass(frozen=True)
class ToolFile:
    """The functions of a tools file, and the command that carries each out, where one is given."""

    functions: tuple[Function, ...]
    strict: tuple[str, ...]
    commands: dict[str, tuple[str, ...]]


def read_tool_file(path: Path) -> ToolFile:
    """Read a JSON list of tool definitions as OpenAI takes them, each with a "command" if there is one.

    A command is a list, the program and its arguments; it gets the call's arguments as JSON on its standard
    input, and what it writes is the result. Raises: UsageError that says where the file is wrong.
    """
    try:
        definitions = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"--tools {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--tools {path}: not JSON ({error})") from None
    if not isinstance(definitions, list) or not definitions:
        raise UsageError(f"--tools {path}: expected a list of tool definitions")
    functions: list[Function] = []
    strict: list[str] = []
    commands: dict[str, tuple[str, ...]] = {}
    for definition in definitions:
        try:
            function, is_strict = parse_function(definition)
        except UsageError as error:
            raise UsageError(f"--tools {path}: {error}") from None
        if any(function.name == other.name for other in functions):
            raise UsageError(f"--tools {path}: two functions have the name {function.name!r}")
        command = definition.get("command")
        if command is not None:
            if not isinstance(command, list) or not command or not all(isinstance(w, str) for w in command):
                raise UsageError(
                    f"--tools {path}: the command of {function.name!r} must be a list, program and arguments"
                )
            commands[function.name] = tuple(command)
        functions.append(function)
        strict += [function.name] * is_strict
    return ToolFile(tuple(functions), tuple(strict), commands)
