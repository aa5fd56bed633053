"""Stop sequences in a text that comes in pieces."""

from collections.abc import Sequence


class StopFinder:
    """Passes text on until one of `stops` stands in it; what may be the beginning of one is held back.

    found: the one that did.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """More text: what may be passed on, and whether a stop was found, which ends it."""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            first, self.found = min(found, key=lambda pair: pair[0])
            return self._take(first), True
        return self._take(len(self._held) - self._may_begin_a_stop()), False

    def finish(self) -> str:
        """What was held back, once there is no more text."""
        return self._take(len(self._held))

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _may_begin_a_stop(self) -> int:
        """The length of the longest end of the text that is the beginning of a stop."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
