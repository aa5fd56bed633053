"""Functions of the user's own, by `--tools FILE`: each may have a command that carries it out."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from localoss.chat.agent import Result, Stop
from localoss.chat.grammar import ANY_OBJECT, Grammar
from localoss.chat.harmony import Message
from localoss.chat.tools import called_name, read_tool_file
from localoss.errors import UsageError
from localoss.tools.approval import REFUSED, Question
from localoss.tools.quoting import escaped, shell_command, shell_word
from localoss.tools.toolset import Tool

_MOST_BYTES = 4_000_000  # of what a command writes
AskText = Callable[[str], str | None]


class CommandTools(Tool):
    """The functions of a tool file. A function without a command is answered by the user, who is asked."""

    def __init__(self, path: Path, ask: AskText | None) -> None:
        """ask: puts a question, and gives the line that is typed; None if there is nobody.

        Raises: UsageError for a file that can't be used, or a schema that can't be followed: the file is the
        user's, who can mend it, while a client's tools are followed as far as they go.
        """
        file = read_tool_file(path)
        for function in file.functions:
            try:
                Grammar(function.parameters or ANY_OBJECT, strict=function.name in file.strict)
            except UsageError as error:
                raise UsageError(f"function {function.name!r}: {error}") from None
        self.name, self.functions, self.strict = str(path), file.functions, file.strict
        self._commands, self._ask = file.commands, ask
        self._typed = ""
        self.reach = (
            "all that the user's own commands reach" if file.commands else "nothing: the user answers"
        )

    def approval_keys(self) -> dict[str, str]:
        return {name: f"command:{shell_command(command)}" for name, command in self._commands.items()}

    def question(self, recipient: str, arguments: str) -> Question | None:
        command = self._commands.get(called_name(recipient))
        if command is not None:
            shown = shell_command(command)
            return Question(f"command:{shown}", f"{shown} <<<{shell_word(arguments)}")
        said = f"{called_name(recipient)}({escaped(arguments)}), its result: "
        self._typed = (
            self._ask(said) if self._ask else None
        ) or REFUSED  # here: the terminal is this thread's
        return None

    def run(self, call: Message, stop: Stop) -> Result:
        command = self._commands.get(called_name(call.recipient or ""))
        if command is None:
            return Result(self._typed)
        return run_command(command, call.text, stop)


def run_command(command: tuple[str, ...], given: str, stop: Stop) -> Result:
    """What `command` writes when it gets `given`; what went wrong, if it did, for the model to read."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        return Result(f"The command could not be started: {error.strerror or error}", ok=False)
    with _ended(process, stop):
        out, err = process.communicate(given.encode("utf-8", "replace"))
    if stop.reason == "time":
        return Result(f"The command took longer than {CommandTools.limit_s:.0f} s and was stopped.", ok=False)
    text, error_text = _text(out), _text(err)
    if process.returncode == 0:
        return Result(text)
    return Result(f"The command failed with exit code {process.returncode}.\n{error_text or text}", ok=False)


def _text(data: bytes) -> str:
    return data[:_MOST_BYTES].decode("utf-8", "replace")


@contextmanager
def _ended(process: "subprocess.Popen[bytes]", stop: Stop) -> Iterator[None]:
    with process, stop.ending(process.kill):
        yield
