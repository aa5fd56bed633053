"""An answer whose words show how certain the model was of them."""

import math
import os
from collections.abc import Callable
from typing import TextIO

from localoss import settings
from localoss.cli.terminal import AnswerPrinter, printable

_CERTAIN = 0.9  # from here on words are left as they are
_SHADES = ((0.7, "32", "70 to 90 %"), (0.4, "33", "40 to 70 %"), (0.0, "31", "less"))
_PLAIN = "\x1b[0m"


class ShadedPrinter(AnswerPrinter):
    """Colours each piece of the final message by its token's probability.

    logprob: gives that of the token that came last. Where colours aren't wanted, or go to no terminal, an
    uncertain piece is followed by its percents.
    """

    def __init__(self, out: TextIO, thoughts: TextIO | None, logprob: Callable[[], float]) -> None:
        super().__init__(out, thoughts)
        self._logprob = logprob
        self._colors = out.isatty() and settings.color()

    def _write(self, text: str) -> None:
        if not self._is_final:
            super()._write(text)
            return
        text, probability = printable(text) if self._out.isatty() else text, math.exp(self._logprob())
        if text:
            self._last = text
            self._put(self._out, self._shaded(text, probability))

    def _shaded(self, text: str, probability: float) -> str:
        if probability >= _CERTAIN or not text.strip():
            return text
        if not self._colors:
            return f"{text}[{probability:.0%}]"
        code = next(code for least, code, _ in _SHADES if probability >= least)
        return f"\x1b[{code}m{text}{_PLAIN}"

    def close(self) -> None:
        super().close()
        if self._colors and self._thoughts is not None:
            legend = "  ".join(f"\x1b[{code}m{name}{_PLAIN}" for _, code, name in _SHADES)
            self._put(self._thoughts, f"{os.linesep}certain to 90 % and more  {legend}\n")
