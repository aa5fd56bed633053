"""What the commands write, and Ctrl-C while they write it."""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event as Flag
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from localoss import settings

if TYPE_CHECKING:
    from localoss.chat.parser import Event

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
_PROGRESS_AFTER_S = 1.0


class AnswerPrinter:
    """Writes a turn as it comes: the final message to `out`, everything before it to `aside`, dimmed.

    aside None shows the final message alone. A terminal that takes no styles gets a label before each part.
    """

    def __init__(self, out: TextIO, aside: TextIO | None) -> None:
        self._out, self._aside = out, aside
        self._dims = aside is not None and settings.color()
        self._is_final = True  # a raw answer has no header to say so
        self._last = ""  # what was written last to the open message

    def show(self, event: "Event") -> None:
        from localoss.chat.parser import MessageStart, TextDelta

        if isinstance(event, MessageStart):
            self._start(event.channel == "final")
        elif isinstance(event, TextDelta):
            self._write(event.text)
        else:
            self._end()

    def close(self) -> None:
        """Leave the terminal tidy after an answer that broke off."""
        if self._last:
            self._end()

    def _start(self, is_final: bool) -> None:
        self._is_final, self._last = is_final, ""
        if self._aside is not None and not self._dims:
            self._put(self._aside, "answer:\n" if is_final else "thinking:\n")

    def _write(self, text: str) -> None:
        stream = self._stream
        if stream is None:
            return
        if stream.isatty():
            text = _CONTROL.sub("", text)
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
        return self._out if self._is_final else self._aside

    @staticmethod
    def _put(stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()


class StatusLine:
    """A line on stderr that is written over and then taken away; nothing at all if that is no terminal."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{text.ljust(self._shown)}", end="", file=sys.stderr, flush=True)
            self._shown = len(text)

    def clear(self) -> None:
        """Take the line away, before anything else is written."""
        if self._shown:
            print(f"\r{' ' * self._shown}\r", end="", file=sys.stderr, flush=True)
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


def say(text: str) -> None:
    """A line to the user that is no part of the answer."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C makes the given function return True; a second raises KeyboardInterrupt."""
    pressed = Flag()

    def note(_signal: int, _frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
