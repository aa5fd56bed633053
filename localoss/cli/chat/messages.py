"""What a user's lines mean: a command, a message, a message of several lines between triple quotes."""

import codecs
import io
import itertools
import re
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from localoss.cli.terminal import printable, stdin_bytes

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


class FirstMessage:
    """A message from the command line, and then `others`. echo: whether it is shown as if it were typed."""

    def __init__(self, text: str, others: Input, echo: bool) -> None:
        self._text: str | None = text
        self._others, self._echo = others, echo

    def read(self) -> str | None:
        text, self._text = self._text, None
        if text is None:
            return self._others.read()
        if self._echo:
            print(f"> {printable(text)}", flush=True)
        return text if as_command(text) is None else f" {text}"  # as it is, whatever it begins with


class PipedInput:
    """Lines of stdin, each a message; several between triple quotes are one. All its input is bytes.

    A first line with the mark of UTF-16 has the rest read at once: only a decoder finds its lines.
    """

    def __init__(self) -> None:
        self._lines = self._read_lines(stdin_bytes())

    def read(self) -> str | None:
        """Raises: UsageError if the input isn't text."""
        text = next(self._lines, "")
        while is_open(text) and (line := next(self._lines, "")):
            text += line
        return text.removesuffix("\n") if text else None

    @staticmethod
    def _read_lines(source: BinaryIO) -> Iterator[str]:
        from localoss.chat.documents import decode_text

        first = source.readline()
        if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            yield from io.StringIO(decode_text(first + source.read(), "stdin"))
        elif first:
            for line in itertools.chain([first], iter(source.readline, b"")):
                yield decode_text(line, "stdin")
