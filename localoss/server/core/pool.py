"""The conversations whose KV caches are kept from request to request."""

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from localoss.engine.sequence import common_prefix

if TYPE_CHECKING:
    from localoss.engine.engine import Engine
    from localoss.engine.sequence import Sequence

_WORTH_KEEPING = 0.5  # of a conversation: less in common, and it is kept for its own next turn


class SequencePool:
    """Up to `capacity` sequences, least recently used first. Used on the engine's thread alone."""

    def __init__(self, engine: "Engine", capacity: int) -> None:
        self._engine, self._capacity = engine, capacity
        self._kept: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, tokens: Seq[int]) -> "Sequence":
        """The sequence to continue with `tokens`: the one that holds most of them already.

        One that would lose more than half of what it holds is left alone while there is room for another.
        """
        best, common = None, 0
        for sequence in self._kept:
            length = common_prefix(sequence.tokens, tokens)
            if length > common:
                best, common = sequence, length
        if best is None or common < _WORTH_KEEPING * len(best.tokens):
            best = self._another()
        self._kept = [sequence for sequence in self._kept if sequence is not best] + [best]
        return best

    def _another(self) -> "Sequence":
        if len(self._kept) < self._capacity:
            return self._engine.sequence()
        return self._kept[0]
