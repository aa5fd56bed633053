"""MCP servers' tools, resources and prompts. What a server says is bounded and is data, never more."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localoss.chat.agent import Result, Stop
from localoss.chat.harmony import Function, Message
from localoss.chat.pieces import has_endless_word
from localoss.chat.tools import called_name
from localoss.errors import Cancelled, LocalossError
from localoss.tools.approval import Question
from localoss.tools.arguments import arguments_of
from localoss.tools.mcp_client import START_S, Connection, McpLoop
from localoss.tools.mcp_config import McpServer, read_servers
from localoss.tools.quoting import shell_command, shell_word
from localoss.tools.toolset import Tool

_CALL_S, _LIST_S = 120.0, 20.0
_MOST_TOOLS, _MOST_RESOURCES, _MOST_PROMPTS = 100, 20, 50
_MOST_SCHEMA_CHARS, _MOST_DEPTH, _MOST_DESCRIPTION = 20_000, 20, 1500
_MOST_RESULT_CHARS = 1_000_000
_MOST_NAME = 64
_READ = "read_resource"
_URI = {"type": "object", "properties": {"uri": {"type": "string"}}, "required": ["uri"]}
Notice = Callable[[str], None]


@dataclass(frozen=True)
class Prompt:
    """A prompt that a server offers. arguments: names; required: those that must be given."""

    name: str
    description: str
    arguments: tuple[str, ...]
    required: tuple[str, ...]


class McpTools(Tool):
    """The tools of one server, under names of their own."""

    limit_s = _CALL_S

    def __init__(self, server: McpServer, loop: McpLoop, notice: Notice, start_s: float = START_S) -> None:
        """notice: told a line for the user. Raises: LocalossError if it doesn't start."""
        self.name, self._server, self._loop, self._notice = server.name, server, loop, notice
        self._connection = Connection(server, loop)
        self._was_restarted = False
        self._connection.start(start_s)
        self._names: dict[str, str] = {}  # the server's names of its tools, by the model's
        self.functions = tuple(self._functions())
        self.prompts = tuple(self._prompts())
        self.reach = f"all that MCP server {server.name} reaches ({shell_command(server.words)})"

    def approval_keys(self) -> dict[str, str]:
        tools = {f"{self.name}/{tool}": f"mcp:{self.name}/{tool}" for tool in self._names.values()}
        return {self.name: f"mcp:{self.name}"} | tools

    def question(self, recipient: str, arguments: str) -> Question | None:
        tool = self._names[called_name(recipient)]
        return Question(
            f"mcp:{self.name}/{tool}", f"{shell_word(self.name)} {shell_word(tool)} {shell_word(arguments)}"
        )

    def run(self, call: Message, stop: Stop) -> Result:
        arguments = arguments_of(call.text)
        tool = self._names[called_name(call.recipient or "")]
        if tool == _READ:
            return self._read(str(arguments.get("uri", "")), stop)
        answer = self._ask(lambda client: client.call_tool(tool, arguments), stop)
        text = _text_of(answer.content)
        if not text and answer.structured_content is not None:
            text = json.dumps(answer.structured_content, ensure_ascii=False)
        return Result(self._as_data(text), ok=not answer.is_error)

    def prompt(self, name: str, arguments: Mapping[str, str]) -> str:
        """The text of a prompt. Raises: LocalossError."""
        answer = self._ask(lambda client: client.get_prompt(name, dict(arguments)), Stop())
        return "\n\n".join(_text_of([message.content]) for message in answer.messages)[:_MOST_RESULT_CHARS]

    def close(self) -> None:
        self._connection.close()

    def _ask(self, work: Callable[[Any], Any], stop: Stop) -> Any:
        """What the server answers; one that has died is started again, once. Raises: LocalossError."""
        if not self._connection.is_alive:
            self._restart()
        try:
            return self._connection.ask(work, _CALL_S, stop)
        except Cancelled:
            raise LocalossError("stopped") from None
        except LocalossError:
            if self._connection.is_alive or self._was_restarted:
                raise
        self._restart()
        return self._connection.ask(work, _CALL_S, stop)

    def _restart(self) -> None:
        if self._was_restarted:
            raise LocalossError(f"MCP server {self.name} has ended again; it isn't restarted any more")
        self._was_restarted = True
        self._connection.close()
        self._connection = Connection(self._server, self._loop)
        self._connection.start()
        self._notice(f"(MCP server {self.name} had ended; it was started again)")

    def _functions(self) -> list[Function]:
        found: list[Function] = []
        listed = self._connection.list_all("list_tools", "tools", _LIST_S)
        for tool in listed[:_MOST_TOOLS]:
            problem = _problem(tool.input_schema)
            if problem:
                self._notice(f"(MCP server {self.name}: {tool.name[:64]!r} is left out: {problem})")
                continue
            found.append(self._function(tool.name, tool.description or "", tool.input_schema))
        if len(listed) > _MOST_TOOLS:
            self._notice(
                f"(MCP server {self.name}: only the first {_MOST_TOOLS} of {len(listed)} tools are taken)"
            )
        if resources := self._listed("list_resources", "resources")[:_MOST_RESOURCES]:
            names = "; ".join(f"{resource.uri} ({resource.name})" for resource in resources)
            found.append(self._function(_READ, f"Reads a resource. There are: {names}", _URI))
        return found

    def _function(self, tool: str, description: str, schema: dict[str, Any]) -> Function:
        name = model_name(self.name, tool, self._names)
        self._names[name] = tool
        description = " ".join(description[:_MOST_DESCRIPTION].split("\n")) if description else ""
        return Function(name, "" if has_endless_word(description) else description, schema)

    def _prompts(self) -> list[Prompt]:
        return [
            Prompt(
                prompt.name,
                (prompt.description or "")[:200],
                tuple(argument.name for argument in prompt.arguments or ()),
                tuple(argument.name for argument in prompt.arguments or () if argument.required),
            )
            for prompt in self._listed("list_prompts", "prompts")[:_MOST_PROMPTS]
        ]

    def _listed(self, method: str, field: str) -> list[Any]:
        """Entries of a list that not every server has."""
        try:
            return self._connection.list_all(method, field, _LIST_S)
        except LocalossError:
            return []

    def _read(self, uri: str, stop: Stop) -> Result:
        answer = self._ask(lambda client: client.read_resource(uri), stop)
        return Result(self._as_data(_text_of(answer.contents)))

    def _as_data(self, text: str) -> str:
        return f"[data from MCP server {self.name}]\n{text[:_MOST_RESULT_CHARS]}"


def open_servers(path: Path, notice: Notice, taken: Collection[str] = ()) -> "tuple[McpLoop, list[McpTools]]":
    """The servers of a file, started side by side; those that don't start are told of and left out.

    Raises: UsageError for a file that is none.
    """
    servers = read_servers(path)
    loop = McpLoop()

    def start(server: McpServer) -> McpTools | str:
        try:
            return McpTools(server, loop, notice)
        except LocalossError as error:
            return f"({error}; it is left out)"

    with ThreadPoolExecutor(max(len(servers), 1)) as pool:
        started = list(pool.map(start, servers))
    for problem in started:
        if isinstance(problem, str):
            notice(problem)
    return loop, [tools for tools in started if isinstance(tools, McpTools)]


def model_name(server: str, tool: str, taken: Collection[str]) -> str:
    """The name by which the model calls a server's tool: its own, whatever other servers have."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{server}__{tool}")
    if len(name) > _MOST_NAME or name in taken:
        digest = hashlib.sha256(f"{server}\0{tool}\0{len(taken)}".encode("utf-8", "replace")).hexdigest()[:8]
        name = f"{name[: _MOST_NAME - 9]}_{digest}"
    return name


def _problem(schema: Any) -> str | None:
    """Why a tool's schema isn't taken; None if it is."""
    if not isinstance(schema, dict):
        return "its schema is none"
    if _depth(schema) > _MOST_DEPTH:
        return f"its schema is nested deeper than {_MOST_DEPTH} levels"
    text = json.dumps(schema, ensure_ascii=False)
    if len(text) > _MOST_SCHEMA_CHARS:
        return f"its schema has {len(text):,} characters"
    return "its schema has an endless word" if has_endless_word(text) else None


def _depth(value: Any) -> int:
    """How deep `value` is nested; without recursion."""
    deepest, stack = 0, [(value, 1)]
    while stack:
        one, depth = stack.pop()
        deepest = max(deepest, depth)
        if depth <= _MOST_DEPTH + 1:
            inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
            stack += [(item, depth + 1) for item in inner if isinstance(item, dict | list)]
    return deepest


def _text_of(contents: Sequence[Any]) -> str:
    """The texts of a result; of pictures and the like, what they are."""
    parts = []
    for part in contents:
        inner = getattr(part, "resource", part)
        text = getattr(inner, "text", None)
        if isinstance(text, str):
            parts.append(text[:_MOST_RESULT_CHARS])
        else:
            kind = getattr(inner, "mime_type", None) or getattr(part, "type", "something")
            parts.append(f"[{kind}, which isn't text: {getattr(inner, 'uri', 'not shown')}]")
    return "\n".join(parts)
