"""Whose turn it is: what each owner of sequences has taken of the cores."""

import threading
import time
from collections.abc import Collection, Hashable

_LATELY_S = 30.0


class Accounts:
    """What the sequences of each owner have cost, in seconds of the cores' time.

    One that comes back after a while begins with as much as the least of those that are there: nobody saves
    up. Source: virtual token counters, https://arxiv.org/abs/2401.00588.
    """

    def __init__(self) -> None:
        self._cost_s: dict[Hashable, float] = {}
        self._asked_s: dict[Hashable, float] = {}  # when each asked last
        self._lock = threading.Lock()  # who asks does so on another thread than the engine's

    def join(self, owner: Hashable, others: Collection[Hashable]) -> None:
        """Note that `owner` asks for something while `others` have something that waits or runs."""
        now = time.monotonic()
        with self._lock:
            self._asked_s = {one: at for one, at in self._asked_s.items() if now - at < _LATELY_S}
            self._asked_s[owner] = now
            if owner in others:
                return
            cost_s = self._cost_s if others else {}
            least = min((cost_s.get(other, 0.0) for other in others), default=0.0)
            mine = cost_s.get(owner, 0.0)
            self._cost_s = {one: cost for one, cost in cost_s.items() if one in others or cost > least}
            self._cost_s[owner] = max(mine, least)

    def charge(self, owner: Hashable, seconds: float) -> None:
        with self._lock:
            self._cost_s[owner] = self._cost_s.get(owner, 0.0) + seconds

    def cost(self, owner: Hashable) -> float:
        return self._cost_s.get(owner, 0.0)

    def lately(self) -> set[Hashable]:
        """Those that asked in the last half minute."""
        return set(self._asked_s)
