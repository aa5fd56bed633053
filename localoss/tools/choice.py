"""Which tools a command was asked for, and opening them. Nothing heavy: help comes without it."""

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
    """tools: python, cpython, browser, or files of functions."""

    tools: tuple[str, ...] = ()

    @property
    def wants_any(self) -> bool:
        return bool(self.tools)


def open_tools(
    options: ToolOptions, approvals: "Approvals", ask: Callable[[str], str | None] | None = None
) -> "Toolset":
    """The tools that are asked for. ask: see CommandTools. Raises: UsageError, LocalossError."""
    from localoss.tools.toolset import Toolset

    opened: list[Tool] = []
    with ExitStack() as stack:
        for name in options.tools:
            opened.append(_open(name, ask))
            stack.callback(opened[-1].close)
        toolset = Toolset(opened, approvals)
        stack.pop_all()  # from now on the toolset closes them
    return toolset


def _open(name: str, ask: Callable[[str], str | None] | None) -> "Tool":
    if name == "python":
        from localoss.tools.monty import MontyPython
        from localoss.tools.python_tool import PythonTool

        return PythonTool(MontyPython())
    path = Path(name).expanduser()
    if path.suffix or path.exists() or len(path.parts) > 1:
        from localoss.tools.commands import CommandTools

        return CommandTools(path, ask)
    raise UsageError(
        f"--tools: there is no tool {name!r}; there are {', '.join(_NAMES)}, and files of functions"
    )
