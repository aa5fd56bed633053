"""Long text, cut where no token can span the cut.

The tokenizer's time grows with the square of the longest word, and nothing else in the process runs
meanwhile: 100,000 Chinese characters without a break take it minutes.
"""

import unicodedata
from collections.abc import Iterator

PIECE_CHARS = 1000


def pieces(text: str) -> Iterator[str]:
    """`text` in pieces of at most PIECE_CHARS, whose tokens one after the other are those of `text`.

    A word that is longer than a piece is cut all the same; it may get other tokens than it would as a whole.
    """
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = _last_break(text, start) or start + PIECE_CHARS
        yield text[start:end]
        start = end
    yield text[start:]


def has_endless_word(text: str) -> bool:
    """Whether some word of `text` is longer than a piece."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = _last_break(text, start)
        if end is None:
            return True
        start = end
    return False


def is_break(before: str, after: str) -> bool:
    """Whether o200k's words surely end between these two characters.

    They are runs of letters and marks, perhaps with one other character before and 's or the like after;
    up to three digits; or runs of what is none of these. A character that is newer than Python's tables
    tells nothing.
    """
    left, right = unicodedata.category(before), unicodedata.category(after)
    if left[0] == "L":
        return (right[0] in "NPSZ" and after != "'") or right == "Cc"
    return left[0] == "N" and (right[0] in "LMPSZ" or right == "Cc")


def _last_break(text: str, start: int) -> int | None:
    """The last break within PIECE_CHARS after `start`; None if there is none."""
    for end in range(start + PIECE_CHARS, start, -1):
        if is_break(text[end - 1], text[end]):
            return end
    return None
