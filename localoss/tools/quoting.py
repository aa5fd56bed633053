"""Words as a shell needs them, so that what a user reads before a call is what runs, to the character."""

import shlex
from collections.abc import Sequence

_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "'": "\\'", "\\": "\\\\"}


def shell_word(text: str) -> str:
    """`text` as one word of a shell. What a terminal would obey, or not show, stands as an escape."""
    return shlex.quote(text) if text.isprintable() else f"$'{escaped(text)}'"


def shell_command(words: Sequence[str]) -> str:
    return " ".join(map(shell_word, words))


def escaped(text: str) -> str:
    """`text` in one line of printable characters; the others, quotes and backslashes are escaped."""
    return "".join(_NAMED.get(c) or (c if c.isprintable() else _code(c)) for c in text)


def visible(text: str) -> str:
    """`text` with its lines, and escapes in the place of what a terminal would obey or not show."""
    return "".join(c if c.isprintable() or c in "\n\t" else _code(c) for c in text)


def _code(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
