"""How many columns a text may take: terminals, Rich and wcwidth differ about most of the world's scripts."""

import re
import unicodedata
from functools import lru_cache

from rich.cells import get_character_cell_size
from wcwidth import wcwidth

_ESCAPES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]|\x1b\]8;[^\x1b]*\x1b\\")
_EMOJI_STYLE = 0xFE0F  # makes the character before it two columns wide, where it is known
_HANGUL_PARTS = range(0x1160, 0x1200)  # vowels and finals: drawn into the cell before, or not
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)
_JOINER = 0x200D


def most_columns(text: str) -> int:
    """The columns that `text` takes in the terminal that gives it most. Styles and links take none."""
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    return len(text) if text.isascii() else sum(map(_most, text))


@lru_cache(maxsize=4096)
def _most(character: str) -> int:
    code = ord(character)
    if code < 0x300:
        return 1
    if code in _FLAG_LETTERS:
        return 2
    if code == _EMOJI_STYLE or code in _HANGUL_PARTS or unicodedata.category(character) == "Mc":
        return 1
    if code == _JOINER:
        return 0
    return max(wcwidth(character), get_character_cell_size(character))
