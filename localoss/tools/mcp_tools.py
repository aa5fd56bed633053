"""MCP servers' tools, resources and prompts. What a server says is bounded and is data, never more."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localoss.chat.agent import Result, Stop
from localoss.chat.harmony import Function, Message
from localoss.chat.pieces import has_endless_word
from localoss.chat.tools import called_name
from localoss.errors import LocalossError
from localoss.tools.approval import Question
from localoss.tools.arguments import arguments_of
from localoss.tools.mcp_client import McpLoop
from localoss.tools.mcp_config import McpServer, read_servers
from localoss.tools.mcp_link import CALL_S, McpLink, Notice
from localoss.tools.quoting import shell_command, shell_word
from localoss.tools.toolset import Tool

_MOST_TOOLS, _MOST_RESOURCES, _MOST_PROMPTS = 100, 20, 50
_MOST_SCHEMA_CHARS, _MOST_DEPTH, _MOST_DESCRIPTION = 20_000, 20, 1500
_MOST_RESULT_CHARS = 1_000_000
_MOST_NAME = 64
_READ = "read_resource"
_URI = {"type": "object", "properties": {"uri": {"type": "string"}}, "required": ["uri"]}


@dataclass(frozen=True)
class Prompt:
    """A prompt that a server offers. arguments: names; required: those that must be given."""

    name: str
    description: str
    arguments: tuple[str, ...]
    required: tuple[str, ...]


class McpTools(Tool):
    """The tools of one server, under names of their own."""

    limit_s = CALL_S

    def __init__(self, link: McpLink, name: str | None = None, tools_only: bool = False) -> None:
        """name: what the server is called here; None for its own. tools_only: no resources, no prompts.

        Raises: LocalossError if it doesn't list its tools.
        """
        self.name, self._link = name or link.server.name, link
        self._names: dict[str, str] = {}  # the server's names of its tools, by the model's
        self.listed: dict[str, Any] = {}  # as the server lists them, by the model's names
        functions = self._functions()
        self.functions = tuple(functions if tools_only else functions + self._readers())
        self.prompts = () if tools_only else tuple(self._prompts())
        self.reach = f"all that MCP server {self.name} reaches ({shell_command(link.server.words)})"

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
        name = called_name(call.recipient or "")
        tool = self._names[name]
        if tool == _READ and name not in self.listed:
            return self._read(str(arguments.get("uri", "")), stop)
        answer = self._link.ask(lambda client: client.call_tool(tool, arguments), stop)
        text = _text_of(answer.content)
        if not text and answer.structured_content is not None:
            text = json.dumps(answer.structured_content, ensure_ascii=False)
        return Result(self._as_data(text), ok=not answer.is_error)

    def prompt(self, name: str, arguments: Mapping[str, str]) -> str:
        """The text of a prompt. Raises: LocalossError."""
        answer = self._link.ask(lambda client: client.get_prompt(name, dict(arguments)), Stop())
        return "\n\n".join(_text_of([message.content]) for message in answer.messages)[:_MOST_RESULT_CHARS]

    def close(self) -> None:
        self._link.close()

    def _functions(self) -> list[Function]:
        found: list[Function] = []
        listed = self._link.list_all("list_tools", "tools")
        for tool in listed[:_MOST_TOOLS]:
            problem = _problem(tool.input_schema)
            if problem:
                self._link.notice(f"(MCP server {self.name}: {tool.name[:64]!r} is left out: {problem})")
                continue
            function = self._function(tool.name, tool.description or "", tool.input_schema)
            self.listed[function.name] = tool
            found.append(function)
        if len(listed) > _MOST_TOOLS:
            self._link.notice(
                f"(MCP server {self.name}: only the first {_MOST_TOOLS} of {len(listed)} tools are taken)"
            )
        return found

    def _readers(self) -> list[Function]:
        """What reads the server's resources, if it has any."""
        resources = self._listed("list_resources", "resources")[:_MOST_RESOURCES]
        names = "; ".join(f"{resource.uri} ({resource.name})" for resource in resources)
        described = f"Reads a resource. There are: {names}"
        return [self._function(_READ, described, _URI)] if resources else []

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
            return self._link.list_all(method, field)
        except LocalossError:
            return []

    def _read(self, uri: str, stop: Stop) -> Result:
        answer = self._link.ask(lambda client: client.read_resource(uri), stop)
        return Result(self._as_data(_text_of(answer.contents)))

    def _as_data(self, text: str) -> str:
        return f"{mark_of(self.name)}{text[:_MOST_RESULT_CHARS]}"


def open_servers(path: Path, notice: Notice, taken: Collection[str] = ()) -> "tuple[McpLoop, list[McpTools]]":
    """The servers of a file, started side by side; those that don't start are told of and left out.

    Raises: UsageError for a file that is none.
    """
    servers = read_servers(path)
    loop = McpLoop()

    def start(server: McpServer) -> McpTools | str:
        try:
            return opened(McpLink(server, loop, notice))
        except LocalossError as error:
            return f"({error}; it is left out)"

    with ThreadPoolExecutor(max(len(servers), 1)) as pool:
        started = list(pool.map(start, servers))
    for problem in started:
        if isinstance(problem, str):
            notice(problem)
    return loop, [tools for tools in started if isinstance(tools, McpTools)]


def mark_of(server: str) -> str:
    """What stands before all that a server gives, for the model to read."""
    return f"[data from MCP server {server}]\n"


def opened(link: McpLink) -> McpTools:
    """The tools at the end of a link, which is closed if they can't be had. Raises: LocalossError."""
    try:
        return McpTools(link)
    except BaseException:
        link.close()
        raise


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
