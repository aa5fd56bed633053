"""The conversations whose KV caches are kept from request to request."""

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from localoss.engine.sequence import common_prefix
from localoss.server.core.parked import LEAST_GAIN

if TYPE_CHECKING:
    from localoss.engine.engine import Engine
    from localoss.engine.sequence import Sequence
    from localoss.server.core.parked import ParkedCaches

_WORTH_KEEPING = 0.5  # of a conversation: less in common, and it is kept for its own next turn
_WORTH_COPYING_TOKENS = 16  # more than a sequence of its own has: a copy takes a millisecond


class SequencePool:
    """Up to `capacity` sequences, least recently used first; those that are held belong to an answer.

    What a sequence holds is gone on with, and copied, for the key alone that it came with: how much of a
    prompt was there would tell another what was asked. And with the same adapter alone: another makes other
    keys and values of the same tokens. Used on the engine's thread alone, but for `len`.

    parked: where what has to make room goes, and is looked for; None: nowhere.
    """

    def __init__(self, engine: "Engine", capacity: int, parked: "ParkedCaches | None" = None) -> None:
        self._engine, self._capacity, self._parked = engine, capacity, parked
        self._kept: list[Sequence] = []
        self._whose: dict[int, tuple[str, str | None]] = {}  # key and adapter, by a kept sequence's id
        self._held: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, tokens: Seq[int], key: str = "", adapter: str | None = None) -> "Sequence":
        """The sequence to continue with `tokens`: of those that nobody holds the one that has most of them.

        One that would lose more than half of what it has is left alone while there is room for another.
        Where one that is held, or left alone, has more of them, this is copied.
        """
        whose = key, adapter
        mine = [sequence for sequence in self._kept if self._whose[id(sequence)] == whose]
        common = {id(sequence): common_prefix(sequence.tokens, tokens) for sequence in mine}
        idle = [sequence for sequence in self._kept if not self._is_held(sequence)]
        best = max((one for one in mine if one in idle), key=lambda one: common[id(one)], default=None)
        if best is None or common[id(best)] < max(_WORTH_KEEPING * len(best.tokens), 1):
            best = self._another(idle, adapter)
            self._park(best)
            if id(best) not in common:
                best.reuse([])
                if self._whose.get(id(best), whose)[1] != adapter:
                    best.use(self._engine.adapter(adapter))
        donor = max(mine, key=lambda sequence: common[id(sequence)], default=best)
        gain = common.get(id(donor), 0) - common.get(id(best), 0)
        if donor is not best and gain >= _WORTH_COPYING_TOKENS:
            best.copy(donor, common[id(donor)])
        self._load(best, tokens, whose)
        self._kept = [sequence for sequence in self._kept if sequence is not best] + [best]
        self._whose[id(best)] = whose
        return best

    def reserve(self, tokens: Seq[int], key: str = "", adapter: str | None = None) -> "Sequence":
        """Take a sequence, and keep it from others until it is given back."""
        sequence = self.take(tokens, key, adapter)
        self._held.append(sequence)
        return sequence

    def give_back(self, sequence: "Sequence") -> None:
        """Let others have it."""
        self._held = [held for held in self._held if held is not sequence]

    def close(self) -> None:
        """Remove what is parked."""
        if self._parked:
            self._parked.close()

    def _park(self, sequence: "Sequence") -> None:
        """Keep what `sequence` holds before it makes room."""
        if self._parked and id(sequence) in self._whose:
            self._parked.park(sequence, self._whose[id(sequence)])

    def _load(self, sequence: "Sequence", tokens: Seq[int], whose: tuple[str, str | None]) -> None:
        """Fill `sequence` with what was parked, where that has more of `tokens` than it has."""
        if self._parked is None:
            return
        most, parked = self._parked.shared(tokens, whose)
        if parked and most - common_prefix(sequence.tokens, tokens) >= LEAST_GAIN:
            self._parked.load(parked, sequence, self._engine.context_tokens)

    def _is_held(self, sequence: "Sequence") -> bool:
        return any(held is sequence for held in self._held)

    def _another(self, idle: "list[Sequence]", adapter: str | None) -> "Sequence":
        """A new one while there is room, else the idle one that was used longest ago."""
        if len(self._kept) < self._capacity or not idle:
            return self._engine.sequence(adapter=adapter) if adapter else self._engine.sequence()
        return idle[0]
