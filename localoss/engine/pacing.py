"""How long passes take on this machine, and who runs next where prompts and answers want the same cores.

A pass over a few hundred tokens takes seconds, since it reads every expert. Cut into passes that are over in
a quarter of a second it would read them all for a few tokens each time. So a long prompt's pass stays whole
and waits between two layers, while answers get their next token; of one owner, both have about half of the
time.
"""

import time
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localoss.engine.slot import Slot
    from localoss.model.stack import F32Array

EXPRESS_TOKENS = 128  # of several short prompts in one pass: with more, the first would wait for the last
_EXPRESS_WEIGHT = 4.0  # a short prompt's share of the time, beside 1 of a long one
_SMOOTHING = 0.3
_UNKNOWN_TOKENS = 8  # what is tried while nothing is measured
_MOST_AHEAD_S = 1.0


class Pace:
    """Seconds of a pass by its tokens, smoothed, in steps of powers of two."""

    def __init__(self) -> None:
        self._measured: dict[int, tuple[float, float]] = {}  # tokens and seconds, by the tokens' bit length

    def note(self, tokens: int, seconds: float) -> None:
        """Note that a pass over so many tokens took so long."""
        known = self._measured.get(tokens.bit_length(), (float(tokens), seconds))
        mean_tokens, mean_s = known
        self._measured[tokens.bit_length()] = (
            mean_tokens + _SMOOTHING * (tokens - mean_tokens),
            mean_s + _SMOOTHING * (seconds - mean_s),
        )

    def seconds(self, tokens: int) -> float | None:
        """How long a pass over so many tokens will take; None if nothing is known."""
        below = [one for one in self._measured.values() if one[0] <= tokens]
        above = [one for one in self._measured.values() if one[0] > tokens]
        if not below:
            return min(above)[1] if above else None  # fewer tokens take no longer
        low_tokens, low_s = max(below)
        if not above:
            return low_s * tokens / low_tokens
        high_tokens, high_s = min(above)
        return low_s + (high_s - low_s) * (tokens - low_tokens) / (high_tokens - low_tokens)

    def room(self, within_s: float, decoding: int, most: int) -> int:
        """How many tokens of prompts fit beside `decoding` others into a pass of so many seconds."""
        fitting, tokens = 0, 1
        while tokens <= most:
            took_s = self.seconds(decoding + tokens)
            if (tokens > _UNKNOWN_TOKENS) if took_s is None else (took_s > within_s):
                break
            fitting, tokens = tokens, tokens * 2
        return fitting


@dataclass(eq=False)
class WaitingPass:
    """A pass that runs layer by layer. used_s: of the cores' time, weighed. ran_s: seconds in all."""

    runs: list[tuple["Slot", Sequence[int]]]
    steps: Iterator["F32Array | None"]
    is_long: bool
    used_s: float = 0.0
    ran_s: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(len(tokens) for _, tokens in self.runs)

    def run_on(self, for_s: float) -> "F32Array | None":
        """Run layers for so long, one at least; the result (T, D) if that was the last. Raises: Cancelled."""
        began, x = time.perf_counter(), None
        for x in self.steps:
            if x is not None or time.perf_counter() - began >= for_s:
                break
        took_s = time.perf_counter() - began
        self.ran_s += took_s
        self.used_s += took_s if self.is_long else took_s / _EXPRESS_WEIGHT
        return x


class Shares:
    """Whose turn it is: passes that run in one go, or those that wait.

    Each owner has an equal share of the time; one that wants both has half of its share for either.
    """

    def __init__(self) -> None:
        self._waitings = 0.5  # the share of the passes that wait
        self._ahead_s = 0.0  # how much longer those in one go ran, each weighed by the others' share
        self._lately_s = 0.0  # how long the last of them took

    def weigh(self, now: set[Hashable], waiting: Collection[set[Hashable]]) -> None:
        """Note the owners of what could run in one go, and those of each pass that waits."""
        waits = set[Hashable]().union(*waiting)
        if now and waits:
            self._waitings = (len(waits - now) + len(waits & now) / 2) / len(waits | now)

    def note_waiting(self, seconds: float, others_want: bool) -> None:
        seconds *= 2 * (1 - self._waitings)
        most_s = max(_MOST_AHEAD_S, seconds)  # a layer may take longer than that
        self._ahead_s = max(self._ahead_s - seconds, -most_s) if others_want else 0.0

    def note_in_one_go(self, seconds: float, others_want: bool) -> None:
        self._lately_s = seconds
        seconds *= 2 * self._waitings
        self._ahead_s = min(self._ahead_s + seconds, _MOST_AHEAD_S) if others_want else 0.0

    @property
    def is_waitings_turn(self) -> bool:
        return self._ahead_s >= 0

    def slice_s(self, within_s: float, others_want: bool) -> float:
        """For how long a pass that waits may run on: beside answers no longer than one of their steps."""
        return min(within_s, self._lately_s) if others_want else within_s
