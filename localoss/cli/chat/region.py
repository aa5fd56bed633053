"""The last lines of a terminal, drawn again and again, below text that stays."""

import os
import shutil
from collections.abc import Sequence
from typing import TextIO

from rich.ansi import AnsiDecoder
from rich.cells import cell_len

from localoss import settings

_SYNC, _END_SYNC = "\x1b[?2026h", "\x1b[?2026l"  # a terminal that knows them shows a frame as a whole
_TO_LINE_END, _TO_SCREEN_END = "\x1b[K", "\x1b[J"


class Region:
    """Draws lines at the cursor and replaces them; what is printed appears above them and scrolls away.

    Lines must be narrower than the terminal, `width` columns at most; those that are printed may be longer.
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
        shown = list(lines)[-self.height :]
        if not printed and shown == self._shown:
            return
        written = [_SYNC, self._to_start()]
        written += [f"{line}{self._line_end(line)}\n" for line in printed]
        written.append(f"{_TO_LINE_END}\n".join(shown))
        written += [_TO_SCREEN_END, _END_SYNC]
        self._out.write("".join(written))
        self._out.flush()
        self._shown, self._columns = shown, self._size().columns

    def clear(self) -> None:
        """Take the lines away."""
        self.update([])

    def _line_end(self, line: str) -> str:
        """What clears the rest of a row, unless `line` fills its last row: then its end would be cleared."""
        if "\x1b" not in line and len(line) < self.width // 2:
            return _TO_LINE_END
        cells = _cells(line)
        return "" if cells and cells % self._size().columns == 0 else _TO_LINE_END

    def _to_start(self) -> str:
        """Move the cursor from the end of what is shown to its start."""
        rows = self._rows()
        return f"\x1b[{rows - 1}A\r" if rows > 1 else "\r"

    def _rows(self) -> int:
        """How many rows the lines take now: more than they were, if the terminal became narrower."""
        columns = self._size().columns
        if columns >= self._columns or not settings.terminal_reflows():
            return len(self._shown)
        return sum(max(-(-_cells(line) // columns), 1) for line in self._shown)

    def _size(self) -> os.terminal_size:
        try:
            return os.get_terminal_size(self._out.fileno())
        except (OSError, ValueError):
            return shutil.get_terminal_size()


def _cells(line: str) -> int:
    return sum(cell_len(text.plain) for text in AnsiDecoder().decode(line))
