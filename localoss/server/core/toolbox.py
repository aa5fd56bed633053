"""The tools of a request: functions for the model to call, and how a client knows each of them.

A namespace's functions are flattened, and a custom tool becomes a function with one text. What the server
would have to run itself, such as a web search, is left out.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from localoss.chat.harmony import Function
from localoss.chat.tools import ToolCall, parse_function
from localoss.errors import UsageError
from localoss.server.core.errors import ApiError
from localoss.server.core.json_text import printable
from localoss.server.core.mcp_links import ServedMcp
from localoss.tools.mcp_tools import model_name as mcp_name

_MAX_NAME_CHARS, _MAX_FUNCTIONS = 64, 1024
_HOSTED = {"code_interpreter": "python", "web_search": "browser"}  # what OpenAI runs, and who does here
_MODES = {"none": "none", "auto": "auto", "required": "required", "any": "required"}
_INPUT = "input"  # the field of the function that a custom tool becomes


def hosted_tool(kind: str) -> str | None:
    """The tool that is meant by a type such as web_search_preview_2025_03_11; None for none of these."""
    return next((tool for word, tool in _HOSTED.items() if kind.startswith(word)), None)


@dataclass(frozen=True)
class Offered:
    """A tool as its client calls it. is_custom: it takes text, not JSON.

    server: the client's label of the MCP server whose it is; asks: whether its user is asked before a call.
    """

    name: str
    namespace: str | None = None
    is_custom: bool = False
    server: str | None = None
    asks: bool = False

    def text_of(self, call: ToolCall) -> str:
        """What the tool is called with: JSON, or a custom tool's text."""
        if not self.is_custom:
            return call.arguments
        try:
            return str(json.loads(call.arguments)[_INPUT])
        except (ValueError, KeyError, TypeError):
            return call.arguments


@dataclass(frozen=True)
class Toolbox:
    """functions: as the model reads them. strict: the names of those held to every keyword of their schema.

    offered: by the functions' names. hosted: tools that this server runs itself. left_out: types of tools
    that can't be had. may_call: names; None for
    all. must_call: whether the answer has to be a call.
    """

    functions: tuple[Function, ...] = ()
    strict: tuple[str, ...] = ()
    offered: Mapping[str, Offered] = field(default_factory=dict)
    hosted: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    may_call: tuple[str, ...] | None = None
    must_call: bool = False

    def as_offered(self, name: str) -> Offered:
        return self.offered.get(name, Offered(name))

    @property
    def has_mcp(self) -> bool:
        return any(offered.server is not None for offered in self.offered.values())

    def with_mcp(self, served: Sequence[ServedMcp]) -> "Toolbox":
        """The toolbox with MCP servers' tools. Raises: ApiError for two tools of a name."""
        functions, offered = list(self.functions), dict(self.offered)
        for one in served:
            for function in one.functions:
                name = function.name
                if name in offered:
                    raise ApiError(f"two tools have the name {name!r}", param="tools")
                listed = one.tools.listed[name].name
                offered[name] = Offered(listed, server=one.label, asks=name in one.asking)
                functions.append(function)
        return replace(self, functions=tuple(functions), offered=offered)

    def function_of(self, server: str, tool: str) -> str:
        """The model's name of an MCP server's tool."""
        for name, offered in self.offered.items():
            if (offered.server, offered.name) == (server, tool):
                return name
        return mcp_name(server, tool, ())

    def choose(self, choice: Any) -> "Toolbox":
        """The toolbox with a request's tool_choice. Raises: ApiError for one that can't be met."""
        mode, names = self._chosen(choice)
        if mode not in ("none", "auto", "required"):
            raise ApiError(f"tool_choice {mode!r}: use none, auto, required or a tool", param="tool_choice")
        if mode == "required" and not ((self.functions or self.hosted) if names is None else names):
            raise ApiError("tool_choice is required, but there are no tools", param="tool_choice")
        return replace(self, may_call=() if mode == "none" else names, must_call=mode == "required")

    def _chosen(self, choice: Any) -> tuple[str, tuple[str, ...] | None]:
        """none, auto or required, and the tools that are meant; None for all."""
        if choice is None or isinstance(choice, str):
            if choice in self._names():
                return "required", self._named({"name": choice})
            return _MODES.get(choice or "auto", choice or "auto"), None
        if not isinstance(choice, Mapping):
            raise ApiError("tool_choice must be a word or an object", param="tool_choice")
        if choice.get("type") in _MODES:  # as Anthropic's API has it
            return _MODES[choice["type"]], None
        if choice.get("type") != "allowed_tools":
            return "required", self._named(choice)
        allowed = choice.get("allowed_tools", choice)
        tools = allowed.get("tools") if isinstance(allowed, Mapping) else None
        if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
            raise ApiError("tool_choice: allowed_tools needs a list of tools", param="tool_choice")
        kinds = ["function", "custom", *(["mcp"] * self.has_mcp)]
        known = [tool for tool in tools if tool.get("type", "function") in kinds]
        names = [name for tool in known for name in self._named(tool)]
        return str(allowed.get("mode", "auto")), tuple(dict.fromkeys(names))

    def _names(self) -> set[str]:
        """Those that a client may give for a function."""
        return {*self.offered, *(one.name for one in self.offered.values())}

    def _named(self, choice: Mapping[str, Any]) -> tuple[str, ...]:
        """The functions that are meant; of an MCP server all, unless one is named."""
        kind = choice.get("type", "function")
        if (hosted := hosted_tool(str(kind))) in self.hosted:
            return (str(hosted),)
        if kind == "mcp" and self.has_mcp:
            return self._of_server(choice)
        if kind not in ("function", "custom", "tool"):
            raise ApiError(
                f"tool_choice names a tool of type {str(kind)[:64]!r}, which this server can't run",
                param="tool_choice",
            )
        inner = choice.get(kind, choice)
        wanted = inner.get("name") if isinstance(inner, Mapping) else None
        if wanted is None:
            raise ApiError(
                "tool_choice: say the name of the tool, or none, auto or required", param="tool_choice"
            )
        namespace = choice.get("namespace")
        for name, offered in self.offered.items():
            is_named = wanted in (name, offered.name) and namespace in (None, offered.namespace)
            if is_named and offered.server is None:
                return (name,)
        raise _not_there(wanted)

    def _of_server(self, choice: Mapping[str, Any]) -> tuple[str, ...]:
        server, tool = choice.get("server_label"), choice.get("name")
        names = [
            name
            for name, offered in self.offered.items()
            if server is not None and offered.server == server and tool in (None, offered.name)
        ]
        if not names:
            raise _not_there(f"{server}/{tool}" if tool else server)
        return tuple(names)


def _not_there(name: Any) -> ApiError:
    return ApiError(f"tool_choice names {str(name)[:64]!r}, which isn't among the tools", param="tool_choice")


NO_TOOLS = Toolbox()


def open_toolbox(definitions: Sequence[Any], hosted: Sequence[str] = ()) -> Toolbox:
    """The tools of a request, in chat completions' form or responses'. Raises: ApiError.

    hosted: python, browser: tools that this server runs itself.
    """
    functions: dict[str, Function] = {}
    offered: dict[str, Offered] = {}
    strict: list[str] = []
    left_out: list[str] = []
    runs: list[str] = []
    for tool, namespace in _flattened(definitions):
        kind = tool.get("type") or _kind_of(tool)
        if kind not in ("function", "custom"):
            name = hosted_tool(str(kind))
            if name is not None and name in hosted:
                runs.append(name)
            else:
                left_out.append(f"tools:{kind}")
            continue
        function, is_strict, known = _parsed(tool, kind, namespace)
        if function.name in functions:
            raise ApiError(f"two tools have the name {function.name!r}", param="tools")
        functions[function.name], offered[function.name] = function, known
        strict += [function.name] * is_strict
        if len(functions) > _MAX_FUNCTIONS:
            raise ApiError(f"at most {_MAX_FUNCTIONS} functions are taken", param="tools")
    return Toolbox(
        tuple(functions.values()),
        tuple(strict),
        offered,
        tuple(dict.fromkeys(runs)),
        tuple(dict.fromkeys(left_out)),
    )


def _kind_of(tool: Mapping[str, Any]) -> str:
    """The type of a tool that says none: Gemini's have their type as their only field."""
    is_gemini = len(tool) == 1 and isinstance(next(iter(tool.values())), Mapping) and "function" not in tool
    return next(iter(tool)) if is_gemini else "function"


def model_name(name: str, namespace: str | None) -> str:
    """The name that the model calls a function by, which may be a namespace's or too long.

    Raises: ApiError for one that the model can't write.
    """
    flat = f"{namespace.rstrip('_')}__{name}" if namespace else name
    if len(flat) > _MAX_NAME_CHARS:  # a digest keeps two long names apart
        digest = hashlib.sha256(flat.encode("utf-8", "replace")).hexdigest()[:8]
        flat = f"{flat[: _MAX_NAME_CHARS - 9]}_{digest}"
    try:
        return Function(flat).name
    except UsageError as error:
        raise ApiError(str(error)) from None


def custom_arguments(text: str) -> str:
    """A custom tool's text as the arguments of its function."""
    return json.dumps({_INPUT: text}, ensure_ascii=False)


def _flattened(definitions: Sequence[Any]) -> Iterator[tuple[Mapping[str, Any], str | None]]:
    for tool in definitions:
        if not isinstance(tool, Mapping):
            raise ApiError("a tool must be an object", param="tools")
        if tool.get("type") != "namespace":
            yield tool, None
            continue
        inner, name = tool.get("tools"), tool.get("name")
        if not isinstance(name, str) or not isinstance(inner, list):
            raise ApiError("a tool of type namespace needs a name and tools", param="tools")
        for one in inner:
            if not isinstance(one, Mapping) or one.get("type") == "namespace":
                raise ApiError(f"namespace {name[:64]!r}: a tool must be a function", param="tools")
            yield one, name


def _parsed(tool: Mapping[str, Any], kind: str, namespace: str | None) -> tuple[Function, bool, Offered]:
    tool = printable(dict(tool))
    if kind == "custom":
        tool = _as_function(tool)
    inner = tool.get("function", tool)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if isinstance(name, str):
        tool = dict(inner) | {"type": "function", "parameters": _parameters(inner)}
        if namespace or len(name) > _MAX_NAME_CHARS:
            tool["name"] = model_name(name, namespace)
    try:
        function, is_strict = parse_function(tool)
    except UsageError as error:
        raise ApiError(str(error), param="tools") from None
    return function, is_strict, Offered(str(name), namespace, kind == "custom")


def _parameters(inner: Mapping[str, Any]) -> Any:
    """The schema of a function's arguments, by any of its names; PHP writes an empty object as []."""
    words = ("parameters", "input_schema", "inputSchema", "parametersJsonSchema")
    given = next((inner[word] for word in words if inner.get(word) is not None), None)
    return {} if given == [] else given


def _as_function(tool: Mapping[str, Any]) -> dict[str, Any]:
    inner = tool.get("custom", tool)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ApiError("a tool of type custom needs a name", param="tools")
    wanted = inner.get("format")
    wanted = wanted.get("grammar", wanted) if isinstance(wanted, Mapping) else {}
    told = "The text that the tool takes."
    if isinstance(wanted, Mapping) and isinstance(wanted.get("definition"), str):
        told += f" It follows this grammar:\n{wanted['definition']}"
    return {
        "type": "function",
        "name": inner["name"],
        "description": inner.get("description"),
        "parameters": {
            "type": "object",
            "properties": {_INPUT: {"type": "string", "description": told}},
            "required": [_INPUT],
            "additionalProperties": False,
        },
    }
