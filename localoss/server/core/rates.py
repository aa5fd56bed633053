"""How much each key has asked for and been given in the last minute, and how much it may."""

import math
import time
from collections import deque
from dataclasses import dataclass

_WINDOW_S = 60.0


@dataclass(frozen=True)
class Limits:
    """What a key may have in a minute; None for any number."""

    requests: int | None = None
    tokens: int | None = None


@dataclass
class _Second:
    at_s: float
    requests: int = 0
    tokens: int = 0


class Rates:
    """Requests and tokens of the last minute, by the name of a key. Used on the event loop alone."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[_Second]] = {}

    def note(self, key: str, *, requests: int = 0, tokens: int = 0) -> None:
        """Count for a key; the server's own, without a name, isn't counted."""
        if not key:
            return
        seconds, now = self._of(key), time.monotonic()
        if not seconds or now - seconds[-1].at_s >= 1:
            seconds.append(_Second(now))
        seconds[-1].requests += requests
        seconds[-1].tokens += tokens

    def last_minute(self, key: str) -> tuple[int, int]:
        """Requests and tokens."""
        seconds = self._of(key)
        return sum(one.requests for one in seconds), sum(one.tokens for one in seconds)

    def keys(self) -> list[str]:
        return list(self._seconds)

    def refusal(self, key: str, limits: Limits) -> tuple[str, int] | None:
        """What a key has had enough of, and in how many seconds it may ask again; None if it may now."""
        had = dict(zip(("requests", "tokens"), self.last_minute(key), strict=True))
        for what, most in (("requests", limits.requests), ("tokens", limits.tokens)):
            if most is not None and (left := had[what]) >= most:
                for one in self._of(key):
                    left -= getattr(one, what)
                    if left < most:
                        wait_s = one.at_s + _WINDOW_S - time.monotonic()
                        return f"{most:,} {what}", max(1, math.ceil(wait_s))
        return None

    def _of(self, key: str) -> deque[_Second]:
        seconds = self._seconds.setdefault(key, deque())
        while seconds and time.monotonic() - seconds[0].at_s >= _WINDOW_S:
            seconds.popleft()
        return seconds
