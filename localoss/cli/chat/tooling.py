"""/tools and /prompt: what the model may call, what it called, and the prompts of MCP servers."""

import shlex
from typing import TYPE_CHECKING

from localoss.cli.terminal import printable, say
from localoss.errors import UsageError
from localoss.tools.approval import POLICIES, Policy

if TYPE_CHECKING:
    from localoss.cli.chat.repl import Chat
    from localoss.tools.mcp_tools import McpTools, Prompt
    from localoss.tools.toolset import Toolset


def tools(chat: "Chat", argument: str) -> None:
    """List the tools, show the last calls in full, or say what runs without a question."""
    toolset = chat.toolset
    if toolset is None:
        say("(no tools; --tools python,browser, --folder, --mcp give the model some)")
    elif argument == "last":
        _show_calls(chat)
    elif argument:
        _set_policy(toolset, argument)
    else:
        _list(toolset)


def prompt(chat: "Chat", argument: str) -> None:
    """List the prompts of MCP servers, or send one."""
    offered = _prompts(chat.toolset)
    words = (
        shlex.split(argument) if argument.count('"') % 2 == 0 and "'" not in argument else argument.split()
    )
    if not words:
        for name, (_, one) in offered.items():
            wanted = " ".join(f"{a}=…" if a in one.required else f"[{a}=…]" for a in one.arguments)
            say(printable(f"{name} {wanted}  {one.description}".strip()))
        if not offered:
            say("(no MCP server here offers prompts)")
        return
    if words[0] not in offered:
        raise UsageError(f"there is no prompt {words[0]!r}; /prompt lists them")
    server, one = offered[words[0]]
    given = dict(word.partition("=")[::2] for word in words[1:])
    missing = [name for name in one.required if name not in given]
    if missing:
        raise UsageError(f"/prompt {words[0]} needs {', '.join(f'{name}=…' for name in missing)}")
    chat.ask(server.prompt(one.name, given))


def names(chat: "Chat | None" = None) -> list[str]:
    """For completion."""
    return ["last"]


def _list(toolset: "Toolset") -> None:
    for tool in toolset.tools:
        say(printable(f"{tool.name}: {tool.reach}"))
        keys = tool.approval_keys()
        for function in tool.functions:
            known = _names_of(tool.name, function.name, keys)
            policy = toolset.approvals.policy(keys[known[0]]) if known else ""
            say(f"  {function.name}{f' ({policy})' if policy else ''}")
    say("(/tools NAME ask, always or never: whether a call is asked about; /tools last: the last calls)")


def _names_of(tool: str, function: str, keys: dict[str, str]) -> list[str]:
    """The names in `keys` that stand for a function."""
    return [name for name in keys if name == function or name == f"{tool}/{function.partition('__')[2]}"]


def _show_calls(chat: "Chat") -> None:
    for done in chat.last_calls:
        say(f"── {(done.call.recipient or '').removeprefix('functions.')} ──")
        say(printable(done.call.text))
        say(f"── gave, after {done.seconds:.1f} s ──")
        say(printable(done.result.text))
    if not chat.last_calls:
        say("(the last answer called nothing)")


def _set_policy(toolset: "Toolset", argument: str) -> None:
    name, _, policy = argument.rpartition(" ")
    keys = {known: key for tool in toolset.tools for known, key in tool.approval_keys().items()}
    if policy not in POLICIES or not name:
        raise UsageError("/tools NAME ask, /tools NAME always or /tools NAME never; /tools lists the names")
    if name not in keys:
        known = ", ".join(keys) or "nothing here is asked about"
        raise UsageError(f"there is no {name!r} that is asked about; there are: {printable(known)}")
    chosen: Policy = next(one for one in POLICIES if one == policy)
    toolset.approvals.set(keys[name], chosen)
    say(f"({printable(name)}: {policy}, from now on)")


def _prompts(toolset: "Toolset | None") -> "dict[str, tuple[McpTools, Prompt]]":
    from localoss.tools.mcp_tools import McpTools

    servers = [tool for tool in toolset.tools if isinstance(tool, McpTools)] if toolset else []
    return {f"{server.name}:{one.name}": (server, one) for server in servers for one in server.prompts}
