"""What a user's lines mean: a command, a message, a message of several lines between triple quotes."""

import re
import sys
from typing import Protocol

from localoss.errors import UsageError

_QUOTES = '"""'
_COMMAND = re.compile(r"/(?P<name>[A-Za-z?]+)(?:\s+(?P<argument>.*))?")


class Input(Protocol):
    """Gives message after message."""

    def read(self) -> str | None:
        """The next message as it was typed; None at the end."""


def is_open(text: str) -> bool:
    """Whether `text` begins with triple quotes that are not closed yet."""
    return text.lstrip().startswith(_QUOTES) and text.count(_QUOTES) == 1


def unquoted(text: str) -> str:
    """The message itself: no triple quotes around it, no blank lines before or after it."""
    quoted = text.strip()
    if quoted.startswith(_QUOTES):
        quoted = quoted.removeprefix(_QUOTES).removesuffix(_QUOTES)
        return quoted.strip("\n").rstrip()
    return text.strip("\n").rstrip()


def as_command(text: str) -> tuple[str, str] | None:
    """Name and argument of a command; None for a message, as /usr/bin or a line that begins with a blank."""
    match = _COMMAND.fullmatch(text.rstrip())
    return (match["name"].lower(), (match["argument"] or "").strip()) if match else None


class PipedInput:
    """Lines of stdin, each a message; several between triple quotes are one."""

    def read(self) -> str | None:
        """Raises: UsageError if the input isn't UTF-8."""
        try:
            text = sys.stdin.readline()
            while is_open(text):
                line = sys.stdin.readline()
                if not line:
                    break
                text += line
        except UnicodeDecodeError:
            raise UsageError("stdin is not UTF-8 text") from None
        return text.removesuffix("\n") if text else None
