"""One conversation on an engine: what its KV cache holds, and from where it can go on.

A full layer keeps every position, so any prefix of the conversation can be continued. A sliding layer's ring
forgets; snapshots of its window, taken where a later prompt may part from this one, bring it back there.
"""

import itertools
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from localoss.model.adapters import AdapterSet
from localoss.model.kv_cache import KVCache
from localoss.model.stack import Array, LayerStack
from localoss.plan.sizes import MOST_SNAPSHOTS

_NEWEST_KEPT = 4  # those of the last two exchanges are never thinned out


@dataclass(frozen=True)
class Snapshot:
    """What the rings held of the window before `position`, as KVCache.read_rings gives it."""

    position: int
    window: list[list[Array]]


class Sequence:
    """One conversation: its tokens so far, their KV cache, snapshots, its random state and its adapters."""

    def __init__(self, cache: KVCache, seed: int | None, adapter: AdapterSet | None = None):
        self.cache, self.adapter = cache, adapter
        self.tokens: list[int] = []  # what the cache holds
        self.snapshots: list[Snapshot] = []  # by position, none beyond the tokens
        self.random = np.random.default_rng(seed)
        self._oldest = 0  # the oldest position that all rings still hold

    def reuse(self, tokens: Seq[int]) -> int:
        """Keep the longest prefix of `tokens` that can be continued, drop the rest, give the prefix's length.

        The last token is never kept: its logits are what the caller wants.
        """
        kept = self._reach(common_prefix(self.tokens, tokens[:-1]))
        if not kept:
            self._oldest = 0  # all is written anew
        del self.tokens[kept:]
        self.snapshots = [snapshot for snapshot in self.snapshots if snapshot.position <= kept]
        return kept

    def restart(self, stacks: Seq[LayerStack]) -> None:
        """Begin anew, empty, on these stacks: one is gone that kept a part of the cache."""
        self.cache.renew(stacks)
        self.tokens, self.snapshots, self._oldest = [], [], 0

    def use(self, adapter: AdapterSet | None) -> None:
        """Run with `adapter` from now on: what another one had a part in is dropped."""
        if self.adapter is not adapter:
            self.adapter = adapter
            self.tokens, self.snapshots, self._oldest = [], [], 0

    def copy(self, other: "Sequence", tokens: int) -> None:
        """Hold the first `tokens` tokens of `other`, which may be running: `reuse` goes on from there.

        Nothing of one with other adapters, or on other stacks.
        """
        if self.adapter is not other.adapter or self.cache.stacks != other.cache.stacks:
            return
        self.cache.copy(other.cache, min(tokens, len(other.tokens)))
        self.tokens = other.tokens[:tokens]
        self.snapshots = [snapshot for snapshot in other.snapshots if snapshot.position <= tokens]
        self._oldest = other._oldest

    def begin(self, tokens: int) -> None:
        """Note that as many tokens are about to be written: even if that is cancelled, some rings lose
        their oldest positions to them.
        """
        self._oldest = max(self._oldest, len(self.tokens) + tokens - self.cache.ring_slots)
        self.cache.kept.clear()

    def checkpoint(self, position: int) -> None:
        """Take a snapshot at `position`, if the rings have its window or the pass that went on kept it."""
        if not 0 < position <= len(self.tokens):
            return
        first, window = max(position - self.cache.window, 0), self.cache.kept.pop(position, None)
        if window is None:
            if first < self._oldest:
                return
            window = self.cache.read_rings(first, position)
        others = [snapshot for snapshot in self.snapshots if snapshot.position != position]
        taken = Snapshot(position, window)
        self.snapshots = sorted([*others, taken], key=lambda snapshot: snapshot.position)
        if len(self.snapshots) > MOST_SNAPSHOTS:
            self._thin_out()

    def restore(self, tokens: Seq[int], snapshots: Seq[Snapshot]) -> None:
        """Take over what was saved: the full layers hold `tokens` already, the rings nothing."""
        self.tokens, self.snapshots = list(tokens), list(snapshots)
        self._oldest = len(tokens)  # beyond what any prompt could reuse

    def _reach(self, common: int) -> int:
        """The most of a `common` prefix that the rings allow, after going back to a snapshot if need be."""
        if max(common - self.cache.window + 1, 0) >= self._oldest:
            return common
        # One at common + 1 holds what the token at common sees: the prompt that was asked for once more.
        near = [snapshot for snapshot in self.snapshots if snapshot.position <= common + 1]
        if not near:
            return 0
        position = near[-1].position
        self._oldest = max(position - self.cache.window, 0)
        self.cache.write_rings(self._oldest, near[-1].window)
        return min(position, common)

    def _thin_out(self) -> None:
        """Drop the old snapshot whose predecessor is nearest: going back to that one costs least more."""
        positions = [0, *(snapshot.position for snapshot in self.snapshots)]
        steps = [after - before for before, after in itertools.pairwise(positions)]
        old = steps[:-_NEWEST_KEPT]
        del self.snapshots[old.index(min(old))]


def common_prefix(mine: Seq[int], theirs: Seq[int]) -> int:
    """How many tokens both begin with."""
    for common, (one, other) in enumerate(zip(mine, theirs, strict=False)):
        if one != other:
            return common
    return min(len(mine), len(theirs))
