"""JSON as it goes over the wire."""

import json
from typing import Any


def printable(value: Any) -> Any:
    """`value`, of JSON's types, with only such text in it as UTF-8 can carry."""
    return json.loads(dumps(value))


def dumps(value: Any) -> str:
    """Compact JSON that UTF-8 can carry: text of a model or client may hold lone surrogates."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace").decode("utf-8")
