"""Functions that the model calls in `localoss chat --tools`: asked about, carried out, answered."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

from localoss.chat.grammar import ANY_OBJECT, Grammar
from localoss.chat.harmony import ChatSetup, Message
from localoss.chat.rules import AnswerRules, argument_grammars
from localoss.chat.tools import ToolCall, ToolFile, call_of, result_message
from localoss.cli.terminal import printable, say
from localoss.errors import UsageError

_COMMAND_S = 120.0
_MAX_RESULT_CHARS = 50_000
_REFUSED = "The user did not allow this call."


class Calls:
    """Answers calls at a terminal. Over pipes nobody can be asked, so nothing is run there."""

    def __init__(self, tools: ToolFile, ask: Callable[[str], str | None] | None) -> None:
        """ask: puts a question to the user and gives the line that is typed, None for none.

        Raises: UsageError for a schema that can't be followed: the file is the user's, who can mend it, while
        a client's tools are followed as far as they go.
        """
        for function in tools.functions:
            try:
                Grammar(function.parameters or ANY_OBJECT, strict=function.name in tools.strict)
            except UsageError as error:
                raise UsageError(f"function {function.name!r}: {error}") from None
        self._tools, self._ask = tools, ask
        self._always: set[str] = set()  # functions whose command may run without another question
        self.rules = AnswerRules(arguments=argument_grammars(tools.functions, tools.strict))

    def add_to(self, setup: ChatSetup) -> ChatSetup:
        """`setup` with the functions."""
        return replace(setup, functions=self._tools.functions)

    def answer(self, message: Message) -> Message:
        """The result of the call in `message`. Raises: KeyboardInterrupt if the user breaks off."""
        call = call_of(message)
        say(f"{call.name}({printable(call.arguments)})")
        return result_message(call.name, self._result(call)[:_MAX_RESULT_CHARS])

    def _result(self, call: ToolCall) -> str:
        if self._ask is None:
            say("(not carried out: there is nobody to ask)")
            return _REFUSED
        command = self._tools.commands.get(call.name)
        if command is None:
            return self._ask("its result: ") or _REFUSED
        if call.name not in self._always:
            typed = (
                (self._ask(f"run `{' '.join(command)}` with it? [y/N/a for always] ") or "").strip().lower()
            )
            if typed in ("a", "always"):
                self._always.add(call.name)
            elif typed not in ("y", "yes"):
                return _REFUSED
        return _run(command, call.arguments)


def _run(command: tuple[str, ...], arguments: str) -> str:
    """What `command` writes when it gets `arguments`; what went wrong, if it did, for the model to read."""
    try:
        done = subprocess.run(
            command,
            input=arguments,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_COMMAND_S,
        )
    except subprocess.TimeoutExpired:
        said = f"The command took longer than {_COMMAND_S:.0f} s and was stopped."
    except OSError as error:
        said = f"The command could not be started: {error.strerror or error}"
    else:
        if done.returncode == 0:
            return done.stdout
        said = f"The command failed with exit code {done.returncode}.\n{done.stderr or done.stdout}"
    say(f"({said.splitlines()[0]})")
    return said


def ask_at_terminal(question: str) -> str | None:
    """Put `question` to whoever sits at the terminal."""
    try:
        print(question, end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().removesuffix("\n") or None
    except UnicodeDecodeError:
        return None
