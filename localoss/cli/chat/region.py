"""The last lines of a terminal, drawn again and again, below text that stays."""

import os
import shutil
from collections.abc import Sequence
from typing import TextIO

from localoss.cli.chat.width import most_columns

_SYNC, _END_SYNC = "\x1b[?2026h", "\x1b[?2026l"  # a terminal that knows them shows a frame as a whole
_TO_LINE_END, _TO_SCREEN_END = "\x1b[K", "\x1b[J"
_CLEAR = (
    f" {_TO_SCREEN_END}\r"  # without the blank, tmux keeps a copy of what it clears from its first row on
)
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Region:
    """Draws lines at the cursor and replaces them; what is printed appears above them and scrolls away.

    Terminals differ in how many columns a text takes, and in what becomes of lines when the window is
    narrowed. Neither matters here: lines that are drawn again can't wrap, and between two frames the cursor
    stands at the first of them, where the terminal itself keeps it when it lays its lines out anew.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown: list[str] = []
        self._columns = 0  # of the terminal when they were drawn

    @property
    def width(self) -> int:
        # One column is left free: a cursor past the last column stands elsewhere in each terminal.
        return max(self._size().columns - 1, 1)

    @property
    def height(self) -> int:
        return max(self._size().lines - 1, 1)

    def update(self, lines: Sequence[str], printed: Sequence[str] = ()) -> None:
        """Print `printed` for good, and show the last of `lines` that have room below."""
        shown, columns = list(lines)[-self.height :], self._size().columns
        if not printed and shown == self._shown and columns == self._columns:
            return
        written = [_SYNC, _HIDE_CURSOR, "\r"]
        if not all(_is_ascii(line) for line in printed):
            written.append(_CLEAR)  # nobody knows which cells they leave as they were
        written += [f"{line}{_line_end(line, columns)}\n" for line in printed]
        if shown:
            up = f"\x1b[{len(shown) - 1}A" if len(shown) > 1 else ""
            written += [_NO_WRAP, f"{_TO_LINE_END}\n".join(shown), _TO_SCREEN_END, _WRAP, up, "\r"]
        else:
            written += [_CLEAR, _SHOW_CURSOR]
        self._out.write("".join([*written, _END_SYNC]))
        self._out.flush()
        self._shown, self._columns = shown, columns

    def clear(self) -> None:
        """Take the lines away."""
        if self._shown:
            self.update([])

    def _size(self) -> os.terminal_size:
        try:
            return os.get_terminal_size(self._out.fileno())
        except (OSError, ValueError):
            return shutil.get_terminal_size()


def _is_ascii(line: str) -> bool:
    return line.isascii() and "\t" not in line


def _line_end(line: str, columns: int) -> str:
    """What clears the rest of a row, unless `line` may fill its last row: then its end would be cleared."""
    if not _is_ascii(line):
        return ""
    cells = most_columns(line)
    return "" if cells and cells % columns == 0 else _TO_LINE_END
