"""What the commands write, and Ctrl-C while they write it."""

import io
import os
import re
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from localoss import settings

if TYPE_CHECKING:
    from localoss.chat.parser import Event

_NO_WRAP, _WRAP, _TO_SCREEN_END = "\x1b[?7l", "\x1b[?7h", "\x1b[J"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
# C0 and C1 but tab and newline; what turns the direction of text, so that it reads as other than it is.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_PASTES_MARKED, _PASTES_PLAIN = "\x1b[?2004h", "\x1b[?2004l"  # so that a prompt tells pasted from typed
_PROGRESS_AFTER_S = 1.0
_IMPATIENT_AFTER_S = 1.0


def printable(text: str) -> str:
    """`text` without control characters, which a terminal would obey."""
    return _CONTROL.sub("", text)


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Write a line to stdout, or stderr: all that commands say, names from files and from hubs among it.

    What a terminal would obey is left out: an escape sequence in a file's name can write the clipboard.
    """
    print(printable(text), end="\n" if nl else "", file=sys.stderr if err else sys.stdout, flush=True)


def printable_at_terminal(text: str) -> str:
    """`text` for stdout: as it is for a file or a pipe, and without control characters for a terminal."""
    return printable(text) if sys.stdout.isatty() else text


class AnswerPrinter:
    """Writes a turn as it comes: the final message to `out`, everything before it to `thoughts`, dimmed.

    thoughts None shows the final message alone. Where no styles are taken each part gets a label before it.
    """

    def __init__(self, out: TextIO, thoughts: TextIO | None, dims: bool | None = None) -> None:
        """dims: whether `thoughts` may be sent styles; None asks the settings."""
        self._out, self._thoughts = out, thoughts
        self._dims = thoughts is not None and (settings.escape_codes() if dims is None else dims)
        self._is_final = True  # a raw answer has no header to say so
        self._last = ""  # what was written last to the open message

    def show(self, event: "Event") -> None:
        from localoss.chat.parser import MessageStart, TextDelta

        if isinstance(event, MessageStart):
            self._start(event.channel == "final", event.recipient)
        elif isinstance(event, TextDelta):
            self._write(event.text)
        else:
            self._end()

    def close(self) -> None:
        """Leave the terminal tidy after an answer that broke off."""
        if self._last:
            self._end()

    def _start(self, is_final: bool, recipient: str | None) -> None:
        self._is_final, self._last = is_final, ""
        if self._thoughts is not None and not self._dims:
            self._put(
                self._thoughts,
                "answer:\n" if is_final else f"calling {recipient}:\n" if recipient else "thinking:\n",
            )

    def _write(self, text: str) -> None:
        stream = self._stream
        if stream is None:
            return
        if stream.isatty():
            text = printable(text)
        if text:
            self._last = text
            self._put(stream, f"{_DIM}{text}{_PLAIN}" if self._dims and not self._is_final else text)

    def _end(self) -> None:
        """Close the message with a newline, and one more to set thinking off from what follows."""
        if self._stream is not None and self._last:
            self._put(self._stream, "\n" * (not self._last.endswith("\n")) + "\n" * (not self._is_final))
        self._last = ""

    @property
    def _stream(self) -> TextIO | None:
        return self._out if self._is_final else self._thoughts

    @staticmethod
    def _put(stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()


class StatusLine:
    """A line on stderr that is written over and then taken away; nothing at all if that is no terminal."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, text: str) -> None:
        if not sys.stderr.isatty():
            return
        text = printable(text)[: _columns(sys.stderr)]  # a wrapped line couldn't be taken away
        before, self._shown = self._shown, len(text)  # before it is written: a Ctrl-C may come meanwhile
        if settings.escape_codes():
            # It can't wrap, and the cursor waits at its start, which a narrower window leaves where it is.
            written = f"\r{_NO_WRAP}{text}{_TO_SCREEN_END}{_WRAP}\r"
        else:
            written = f"\r{text.ljust(before)}"
        print(written, end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away, before anything else is written."""
        if self._shown:
            blank = f" {_TO_SCREEN_END}\r" if settings.escape_codes() else f"{' ' * self._shown}\r"
            print(f"\r{blank}", end="", file=sys.stderr, flush=True)
            self._shown = 0


class PrefillProgress(StatusLine):
    """Says how much of the prompt has been read, once that has taken a second."""

    def __init__(self) -> None:
        super().__init__()
        self._started = time.monotonic()

    def __call__(self, done_tokens: int, total_tokens: int) -> None:
        if done_tokens >= total_tokens:
            self.clear()
        elif time.monotonic() - self._started > _PROGRESS_AFTER_S:
            self.show(f"reading the prompt: {done_tokens:,} of {total_tokens:,} tokens")


def stdin_bytes() -> BinaryIO:
    """Standard input as bytes: what they mean as text doesn't depend on the locale."""
    if buffer := getattr(sys.stdin, "buffer", None):
        return cast(BinaryIO, buffer)
    return io.BytesIO(sys.stdin.read().encode())  # a notebook's, which is text


def say(text: str) -> None:
    """A line to the user that is no part of the answer; at a terminal a long one is broken between words."""
    print(printable(wrapped(text, sys.stderr)), file=sys.stderr, flush=True)


def wrapped(text: str, out: TextIO) -> str:
    """`text` with the lines that are too long for the terminal that `out` is broken between words."""
    if not out.isatty():
        return text
    columns = _columns(out)
    return "\n".join(
        line
        if len(line) <= columns
        else textwrap.fill(line, columns, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


def _columns(out: TextIO) -> int:
    """Columns of the terminal but one: in the last, terminals differ about wrapping."""
    try:
        return max(os.get_terminal_size(out.fileno()).columns - 1, 1)
    except (OSError, ValueError):
        return 79


def notify(text: str) -> None:
    """Ring, and have the terminal's desktop show `text` (OSC 9) where it can."""
    shown = f"\x1b]9;{printable(text)}\x07" if settings.links() else ""
    sys.stdout.write(f"{shown}\x07")
    sys.stdout.flush()


_pressed_at: list[float] | None = None  # of the outermost that is open, when Ctrl-C was pressed


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C makes the given function return True; pressed again a while later, it raises
    KeyboardInterrupt: then something doesn't heed it.

    Within another one it tells of that one's presses, too: between two steps of an answer nothing is raised,
    for in what the garbage collector calls just then nobody would hear it.
    """
    global _pressed_at
    if _pressed_at is not None:
        outer = _pressed_at
        yield lambda: bool(outer)
        return
    pressed_at: list[float] = []

    def note(_signal: int, _frame: FrameType | None) -> None:
        pressed_at.append(time.monotonic())
        if pressed_at[-1] - pressed_at[0] > _IMPATIENT_AFTER_S:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    _pressed_at = pressed_at
    try:
        yield lambda: bool(pressed_at)
    finally:
        _pressed_at = None
        signal.signal(signal.SIGINT, before)


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt at once: what waits for a line asks nobody."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


if sys.platform == "win32":

    @contextmanager
    def typing_waits() -> Iterator[None]:
        yield

    @contextmanager
    def typing_shows() -> Iterator[None]:
        yield

else:
    import termios

    @contextmanager
    def typing_waits() -> Iterator[None]:
        """Inside, what is typed or pasted is not echoed into the answer: it waits for the next prompt.

        So it does at Ctrl-C, at which a terminal would otherwise forget it.
        """
        try:
            descriptor = sys.stdin.fileno()
            before = termios.tcgetattr(descriptor)
        except (OSError, ValueError, termios.error):  # no terminal
            yield
            return
        marks = sys.stdout.isatty() and settings.escape_codes()
        quiet = list(before)
        quiet[3] = quiet[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH
        termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
        sys.stdout.write(_PASTES_MARKED if marks else "")
        sys.stdout.flush()
        try:
            yield
        finally:
            sys.stdout.write(_PASTES_PLAIN if marks else "")
            sys.stdout.flush()
            termios.tcsetattr(descriptor, termios.TCSANOW, before)

    @contextmanager
    def typing_shows() -> Iterator[None]:
        """Inside, a line can be typed as usual. What was typed before is forgotten: it answers no question
        that hadn't been asked.
        """
        try:
            descriptor = sys.stdin.fileno()
            before = termios.tcgetattr(descriptor)
        except (OSError, ValueError, termios.error):  # no terminal
            yield
            return
        usual = list(before)
        usual[3] |= termios.ECHO | termios.ICANON
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, usual)
        try:
            yield
        finally:
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
