"""Which tools a command was asked for, and opening them. Nothing heavy: help comes without it."""

import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localoss.errors import UsageError

if TYPE_CHECKING:
    from localoss.tools.approval import Approvals
    from localoss.tools.toolset import Tool, Toolset

_NAMES = ("python", "cpython", "browser")


@dataclass(frozen=True)
class ToolOptions:
    """tools: python, cpython, browser, or files of functions. docs: folders that the browser searches;
    none for all that were added. web: whether it fetches pages; web_search: see web_search.provider_of;
    web_allow: hosts, though they aren't public. folder: whose files are read, and if write changed. mcp: a
    file of MCP servers.
    """

    tools: tuple[str, ...] = ()
    docs: tuple[Path, ...] = ()
    web: bool = False
    web_search: str | None = None
    web_allow: tuple[str, ...] = ()
    folder: Path | None = None
    write: bool = False
    mcp: Path | None = None

    @property
    def wants_any(self) -> bool:
        return bool(self.tools or self.docs or self.web or self.folder or self.mcp)

    def check(self) -> None:
        """Raises: UsageError for an option that does nothing without another."""
        if self.write and self.folder is None:
            raise UsageError("--write changes files of a folder: give --folder, too")
        if self.web_search and not self.web:
            raise UsageError("--web-search searches the web: give --web, too")
        if self.web_allow and not (self.web or self.mcp):
            raise UsageError("--web-allow is of the web: give --web, too")

    @property
    def names(self) -> tuple[str, ...]:
        """The tools, with the browser where only what it reads was named."""
        has_more = bool(self.docs or self.web) and "browser" not in self.tools
        return (*self.tools, "browser") if has_more else self.tools


NO_TOOLS = ToolOptions()


def open_tools(
    options: ToolOptions,
    approvals: "Approvals",
    ask: Callable[[str], str | None] | None = None,
    notice: Callable[[str], None] = lambda line: None,
) -> "Toolset":
    """The tools that are asked for. ask: see CommandTools. notice: told lines for the user.

    Raises: UsageError, LocalossError.
    """
    from localoss.tools.toolset import Toolset

    options.check()
    opened: list[Tool] = []
    with ExitStack() as stack:
        for name in options.names:
            opened.append(_open(name, options, ask))
            stack.callback(opened[-1].close)
        if options.folder is not None:
            from localoss.tools.files import Files

            opened.append(Files(options.folder, options.write))
        if options.mcp is not None:
            from localoss.tools.mcp_tools import open_servers

            loop, servers = open_servers(options.mcp, notice)
            stack.callback(loop.close)
            opened += servers
        toolset = Toolset(opened, approvals)
        stack.pop_all()  # from now on the toolset closes them
    return toolset


def missing(name: str) -> str | None:
    """What a tool lacks here, by its name in `localoss tools list`. Raises: UsageError, saying so."""
    needs = {
        "python": ("pydantic_monty",),
        "browser": ("trafilatura",),
        "mcp": ("mcp",),
        "functions": ("llguidance",),
    }
    gone = [module for module in needs.get(name, ()) if importlib.util.find_spec(module) is None]
    if gone:
        return "pip install 'localoss[tools]'"
    if name == "cpython":
        from localoss.tools.sandbox import SandboxedPython

        SandboxedPython().close()
    return None


def _open(name: str, options: ToolOptions, ask: Callable[[str], str | None] | None) -> "Tool":
    if name == "python":
        from localoss.tools.monty import MontyPython
        from localoss.tools.python_tool import PythonTool

        return PythonTool(MontyPython())
    if name == "cpython":
        from localoss.tools.python_tool import PythonTool
        from localoss.tools.sandbox import SandboxedPython

        return PythonTool(SandboxedPython())
    if name == "browser":
        return _open_browser(options)
    path = Path(name).expanduser()
    if path.suffix or path.exists() or len(path.parts) > 1:
        from localoss.tools.commands import CommandTools

        return CommandTools(path, ask)
    raise UsageError(
        f"--tools: there is no tool {name!r}; there are {', '.join(_NAMES)}, and files of functions"
    )


def _open_browser(options: ToolOptions) -> "Tool":
    from localoss.tools.browser import Browser, Source
    from localoss.tools.documents_index import DocumentsIndex, resolved
    from localoss.tools.documents_source import DocumentsSource

    sources: list[Source] = []
    index = DocumentsIndex()
    folders = [resolved(folder) for folder in options.docs]
    for folder in folders:
        index.add(folder)
    if folders or index.folders:
        sources.append(DocumentsSource(index, folders))
    if options.web:
        from localoss.tools.addresses import allowed_host
        from localoss.tools.web import WebSource
        from localoss.tools.web_search import provider_of

        allowed = [allowed_host(host) for host in options.web_allow]
        sources.append(WebSource(provider_of(options.web_search), allowed))
    return Browser(sources)
