"""Which replica has read a conversation's beginning already, and so need not read it again."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

_MOST_KEYS = 200_000  # of beginnings that are remembered
_BLOCK_CHARS = 1024  # of a raw prompt, which has no messages to cut it at
_COMMON = ("model", "instructions", "system", "tools")  # what many conversations have alike
_INSTRUCTING = ("system", "developer")


class Beginnings(NamedTuple):
    """Keys of a request's beginnings, the shortest first; each stands for all that came before it, too."""

    keys: Sequence[str]


def beginnings(client: str, body: Any) -> Beginnings:
    """Of a request of any of the APIs with this JSON body; none for what isn't one.

    client: the name of its key: caches are each key's own. What many conversations begin with, instructions
    and tools, is no beginning by itself: else they would all go to the same replica.
    """
    if not isinstance(body, dict):
        return Beginnings(())
    common: list[Any] = [client, *(body.get(name) for name in _COMMON)]
    own: list[Any] = []
    previous = body.get("previous_response_id")
    if isinstance(previous, str):
        return Beginnings([response_key(previous)])
    for name in ("messages", "input", "prompt"):
        value = body.get(name)
        if isinstance(value, str):
            own += [value[at : at + _BLOCK_CHARS] for at in range(0, len(value), _BLOCK_CHARS)]
        elif isinstance(value, list):
            for item in value:
                role = item.get("role") if isinstance(item, dict) else None
                (common if not own and role in _INSTRUCTING else own).append(item)
    state = hashlib.sha256(_text(common))
    keys = []
    for item in own:
        state.update(_text(item))
        keys.append(state.hexdigest()[:32])
    return Beginnings(keys)


def response_key(response_id: str) -> str:
    """Of the conversation that ends with a stored response."""
    return f"response {response_id[:80]}"


def _text(value: Any) -> bytes:
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    except (ValueError, TypeError, RecursionError):
        return b"?\n"


class PrefixTable:
    """Remembers which replica got which beginnings, the newest ones."""

    def __init__(self, most_keys: int = _MOST_KEYS) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()
        self._most_keys = most_keys

    def find(self, asked: Beginnings) -> str | None:
        """The replica that has the longest of these beginnings."""
        for key in reversed(asked.keys):
            if name := self._names.get(key):
                return name
        return None

    def note(self, asked: Beginnings, name: str) -> None:
        for key in asked.keys:
            self._names[key] = name
            self._names.move_to_end(key)
        while len(self._names) > self._most_keys:
            self._names.popitem(last=False)

    def forget(self, name: str) -> None:
        """A replica began anew: it has nothing."""
        for key in [key for key, one in self._names.items() if one == name]:
            del self._names[key]
