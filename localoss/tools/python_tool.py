"""The python tool that gpt-oss was trained with: code on the analysis channel, stateful for a conversation.

Source: openai-harmony's declaration of it, and openai/gpt-oss for what comes back: what was printed, then the
last expression's value, or a traceback.
"""

import ast
import json
from typing import Protocol

from localoss.chat.agent import Result, Stop
from localoss.chat.harmony import Message
from localoss.tools.toolset import Tool

LIMIT_S = 120.0  # as harmony's declaration says
NO_OUTPUT = "[no output: print something, or end with an expression]"
RESTARTED = "[python was restarted: variables and imports of earlier calls are gone]"
# Sentences of harmony's declaration, in whose place what holds here is said.
DRIVE = " The drive at '/mnt/data' can be used to save and persist user files."
INTERNET = "Internet access for this session is UNKNOWN. Depends on the cluster."


class Backend(Protocol):
    """Runs code, keeping its variables. Starts when it is first used."""

    reach: str

    def notes(self) -> tuple[tuple[str, str], ...]:
        """See ChatSetup.tool_notes."""

    def run(self, code: str, stop: Stop) -> Result:
        """Run one piece of code. Raises: LocalossError if nothing can be run."""

    def close(self) -> None: ...


class PythonTool(Tool):
    """Nothing that it runs can reach anything, so nobody is asked."""

    name = builtin = "python"
    limit_s = LIMIT_S

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.reach, self.notes = backend.reach, backend.notes()

    def run(self, call: Message, stop: Stop) -> Result:
        return self._backend.run(code_of(call), stop)

    def close(self) -> None:
        self._backend.close()


def after_output(output: object, line: str) -> str:
    """What was printed, and `line` below it."""
    printed = str(output)
    return f"{printed}\n{line}" if printed and not printed.endswith("\n") else printed + line


def code_of(call: Message) -> str:
    """The code of a call: its text, or what stands in it as JSON {"code": …}, which models write, too."""
    if call.text.lstrip().startswith("{"):
        try:
            values = json.loads(call.text)
        except (ValueError, RecursionError):
            return call.text
        if (
            isinstance(values, dict)
            and len(values) == 1
            and isinstance(code := next(iter(values.values())), str)
        ):
            return code
    return call.text


def showing_last(code: str) -> str:
    """`code` that prints the value of its last expression, as a notebook shows it, unless that is None."""
    try:
        tree = compile(code, "python", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code  # whoever runs it says so better
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or last.end_lineno is None or last.end_col_offset is None:
        return code
    lines = code.encode("utf-8", "replace").split(b"\n")
    after = b"\n".join([lines[last.end_lineno - 1][last.end_col_offset :], *lines[last.end_lineno :]])
    if after.lstrip().startswith(b";"):  # as in a notebook, that hides it
        return code
    first = lines[last.lineno - 1]
    lines[last.lineno - 1] = first[: last.col_offset] + b"_ = " + first[last.col_offset :]
    shown = b"\n".join(lines).decode("utf-8", "replace")
    return f"{shown}\nif _ is not None: print(repr(_))"
