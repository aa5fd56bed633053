"""JSON from files that may be damaged or hostile: small, not deep, nothing but ValueError."""

import json
from pathlib import Path
from typing import Any

# A header or an index of gpt-oss-120b has about 100 KB; parsing takes up to thirty times the text's memory.
MOST_BYTES = 1 << 20


def read_json(path: Path) -> Any:
    """The JSON value in file `path`. Raises: OSError, and ValueError for all that isn't JSON, or too much."""
    with open(path, "rb") as file:
        return parse_json(file.read(MOST_BYTES + 1))


def parse_json(text: bytes) -> Any:
    """The JSON value in `text`, UTF-8, a mark before it or not. Raises: ValueError."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES:,} bytes")
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16; save it as UTF-8")
    try:
        return json.loads(text.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
