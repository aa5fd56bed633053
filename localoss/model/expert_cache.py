"""A bounded number of expert records in memory, read from the model's files when the router asks for them.

One slab of slots; `table[layer, expert]` is the address of an expert's record, 0 where it is not in memory.
A slot is given to another expert by least recent use. Readers are threads: a read and a kernel both run
without the GIL, so what is there is computed while what is missing comes. Only the thread that computes
chooses slots, and always before it goes on, so which experts are in memory does not depend on the disk's
mood.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from localoss.errors import Cancelled
from localoss.model.expert_counts import Counts
from localoss.model.slab import Slab
from localoss.plan.sizes import READERS

_AT_ONCE = 16  # experts computed in one call where others wait for their slots
_CANCEL_S = 0.1  # how often a wait looks whether it is to stop
_NEXT = 1  # the stamp of what is given away first

Key = tuple[int, int]  # layer, expert


class Records(Protocol):
    """What a cache reads from."""

    is_direct: bool  # whether past the system's page cache

    def read(self, layer: int, expert: int, view: memoryview) -> None:
        """Fill `view` with an expert's record, on any thread. Raises: QuantError."""

    def close(self) -> None: ...


class ExpertCache:
    """`slots` expert records. `table` (layers, experts) i64 has their addresses.

    fetch, look_ahead, begin_pass and forget_queued belong to one thread, the one that computes.
    """

    def __init__(
        self,
        table: NDArray[np.int64],
        slots: int,
        record_bytes: int,
        records: Records,
        readers: int = READERS,
    ) -> None:
        """table: zeros. Raises: MemoryError."""
        self.table, self.slots, self.record_bytes = table, slots, record_bytes
        self.decoding, self.prompts = Counts(), Counts()
        self.counts = self.decoding  # those of the two that the pass under way counts for
        self.records = records
        self._slab = Slab(slots, record_bytes)
        layers, experts = table.shape
        self._slot = np.full((layers, experts), -1, np.int32)  # of each expert, being read included
        self._owner: list[Key | None] = [None] * slots
        self._stamp = np.zeros(slots, np.int64)  # 0: free
        self._held = np.zeros(slots, bool)  # being read, waited for or in use: not to be given away
        self._is_there = np.zeros(slots, bool)
        self._clock = _NEXT + 1
        self._floor = self._clock  # stamps of a pass that goes round: see _ranked
        self._wanted: deque[int] = deque()  # slots to read, and those to read if nothing is wanted
        self._guessed: deque[int] = deque()
        self._ahead: deque[Key] = deque()  # what has no slot yet
        self._waiting: set[Key] = set()  # what the open visit wants
        self._errors: dict[Key, Exception] = {}
        self._reading, self._reading_since = 0, 0.0
        lock = threading.RLock()
        self._work, self._done = threading.Condition(lock), threading.Condition(lock)
        self._is_closing = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"experts {i}", daemon=True) for i in range(readers)
        ]
        for thread in self._threads:
            thread.start()

    # What the computing thread does

    def begin_pass(self, is_prompt: bool = False, number: int | None = None) -> int:
        """Say that a pass begins at the first layer, or, by the number that it got then, that it goes on."""
        with self._work:
            self.counts = self.prompts if is_prompt else self.decoding
            if number is None:
                number = self._clock
                self._clock += self._slot.size + self.table.shape[0]
            self._floor = number
            return number

    def fetch(
        self,
        layer: int,
        experts: Sequence[int],
        cancelled: Callable[[], bool],
        used: NDArray[np.int64] | None = None,
    ) -> Generator[list[int]]:
        """Give all of `experts`, different ones, in groups that are in memory until the next is asked for.

        used: (experts,) how often the newest tokens chose each, if this is the pass's last call for the
        layer; where a pass goes round in more experts than there are slots for, it decides what stays.
        Raises: what a read raised; Cancelled. Close the iterator if it isn't run to its end.
        """
        visit = _Visit(self, layer, list(experts), used)
        try:
            while not visit.is_over:
                if not visit.here:
                    visit.wait(cancelled)
                group = visit.next_group()
                yield group
                visit.release(group)
        finally:
            visit.close()

    def look_ahead(self, layer: int, experts: Sequence[int]) -> None:
        """Read those of `experts` that aren't there, when nothing wanted is left to read, as far as there are
        slots that this pass didn't use, or that its layers gave up.
        """
        with self._work:
            self._ahead = deque((layer, e) for e in experts if self._slot[layer, e] < 0)
            self._give_ahead()

    def forget_queued(self) -> None:
        """Read nothing more of what was asked for, as after a cancelled pass; what is under way is read."""
        with self._work:
            self._ahead.clear()
            for queue in (self._wanted, self._guessed):
                while queue:
                    self._free(queue.pop())

    def figures(self) -> dict[str, Any]:
        """For reports."""
        decoding, prompts = self.decoding.figures(), self.prompts.figures()
        hits, waiting = decoding["hit_rate"], decoding["waiting_share"]
        megabytes, rate = decoding["read_bytes_per_token"] / 1e6, decoding["read_bytes_per_s"] / 1e9
        return {
            "slots": self.slots,
            "experts": self.table.size,
            "memory_bytes": self.slots * self.record_bytes,
            "is_direct": self.records.is_direct,
            "decoding": decoding,
            "prompts": prompts,
            "summary": f"experts from the disk: {self.slots:,} of {self.table.size:,} have room in memory; "
            f"a token found {hits:.0%} of its own there, read {megabytes:,.1f} MB at {rate:.2f} GB/s, and "
            f"waited {waiting:.0%} of its time",
        }

    def close(self) -> None:
        """End the readers, after the reads under way. What `table` points to lasts as long as the cache."""
        with self._work:
            self._is_closing = True
            self._work.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self.records.close()

    # With the lock held

    def _take(self, key: Key, stamp: int, below: int | None = None) -> int | None:
        """The slot that was used least recently, now `key`'s; None if all are held, or stamped `below` or
        later.
        """
        stamps = np.where(self._held, np.iinfo(np.int64).max, self._stamp)
        slot = int(stamps.argmin())
        if self._held[slot] or (below is not None and self._stamp[slot] >= below):
            return None
        self._free(slot)
        self._owner[slot], self._slot[key] = key, slot
        self._stamp[slot], self._held[slot] = stamp, True
        return slot

    def _free(self, slot: int) -> None:
        owner = self._owner[slot]
        if owner is not None:
            self.table[owner], self._slot[owner] = 0, -1
        self._owner[slot], self._stamp[slot] = None, 0
        self._held[slot] = self._is_there[slot] = False

    def _give_ahead(self) -> None:
        """Give slots to what is to be read ahead, as far as there are any."""
        while self._ahead:
            layer, expert = self._ahead[0]
            if self._slot[layer, expert] < 0:
                slot = self._take((layer, expert), self._clock, self._floor)
                if slot is None:
                    break
                self._clock += 1
                self.counts.ahead += 1
                self._guessed.append(slot)
            self._ahead.popleft()
        self._work.notify_all()

    def _ranked(self, layer: int, used: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
        """Stamps of a layer's experts, of which so many are `wanted`, where a pass goes round in more than
        there are slots for.

        Least recent use would give away just what comes next. So each layer keeps the same share of the
        slots for those that the newest tokens used most; its others go first, and then, of all layers, those
        of the lowest rank.
        """
        layers, experts = self._slot.shape
        # After a prompt all slots are to be of use. From token to token the layer that is run has to find its
        # slots without taking the next one's.
        room = 0 if self.counts is self.prompts else wanted
        slots = self._slot[layer]
        before = np.where(slots >= 0, self._stamp[slots], 0)
        order = np.lexsort((-before, -used))
        rank = np.empty(experts, np.int64)
        rank[order] = np.arange(experts)
        kept = self._floor + (experts - rank) * layers + layer
        return np.where(rank < (self.slots - room) // layers, kept, _NEXT)

    # What the readers do

    def _serve(self) -> None:
        while True:
            with self._work:
                while not (self._wanted or self._guessed or self._is_closing):
                    self._work.wait()
                if self._is_closing:
                    return
                slot = (self._wanted or self._guessed).popleft()
                key = self._owner[slot]
                assert key is not None
                if not self._reading:
                    self._reading_since = time.perf_counter()
                self._reading += 1
            error: Exception | None = None
            try:
                self.records.read(*key, self._slab.views[slot])
            except Exception as raised:
                error = raised
            with self._done:
                self._finish(slot, key, error)

    def _finish(self, slot: int, key: Key, error: Exception | None) -> None:
        self._reading -= 1
        if not self._reading:
            self.counts.reading_s += time.perf_counter() - self._reading_since
        if error is None:
            self.counts.read_bytes += self.record_bytes
            self._is_there[slot], self._held[slot] = True, key in self._waiting
            self.table[key] = self._slab.addresses[slot]
        else:
            if key in self._waiting:
                self._errors[key] = error
            self._free(slot)
        self._done.notify_all()


class _Visit:
    """What a call of `fetch` wants: `here` may be computed, `_coming` is read, `_absent` has no slot yet."""

    def __init__(
        self, cache: ExpertCache, layer: int, experts: list[int], used: NDArray[np.int64] | None
    ) -> None:
        self._cache, self._layer = cache, layer
        self.here: list[int] = []
        self._coming: list[int] = []
        self._absent: deque[int] = deque()
        with cache._work:
            self._stamps = self._choose_stamps(experts, used)
            if cache._ahead and cache._ahead[0][0] == layer:
                cache._ahead.clear()
            cache._waiting = {(layer, e) for e in experts}
            for expert in experts:
                self._look_up(expert)
            self._assign()

    @property
    def is_over(self) -> bool:
        return not (self.here or self._coming or self._absent)

    def next_group(self) -> list[int]:
        """Those to compute at once: few where their slots are waited for."""
        most = _AT_ONCE if self._absent or self._cache._ahead else len(self.here)
        group, self.here = self.here[:most], self.here[most:]
        return group

    def release(self, group: list[int]) -> None:
        """Say that `group` was computed."""
        cache = self._cache
        with cache._work:
            for expert in group:
                cache._held[cache._slot[self._layer, expert]] = False
                cache._waiting.discard((self._layer, expert))
            self._assign()
            if cache._ahead:
                cache._give_ahead()
            self._collect()

    def wait(self, cancelled: Callable[[], bool]) -> None:
        """Return as soon as there is something to compute. Raises: what a read raised; Cancelled."""
        cache, start = self._cache, time.perf_counter()
        with cache._done:
            self._collect()
            while not self.here:
                cache._done.wait(_CANCEL_S)
                if cancelled():
                    raise Cancelled("stopped")
                self._assign()
                self._collect()
            cache.counts.waited_s += time.perf_counter() - start

    def close(self) -> None:
        """Give back what is held still; reads that have not begun are not wanted any more."""
        cache = self._cache
        with cache._work:
            cache._waiting.clear()
            cache._errors.clear()
            while cache._wanted:
                cache._free(cache._wanted.pop())
            for expert in [*self.here, *self._coming]:
                slot = cache._slot[self._layer, expert]
                if slot >= 0 and cache._is_there[slot]:
                    cache._held[slot] = False

    # With the lock held

    def _choose_stamps(self, experts: list[int], used: NDArray[np.int64] | None) -> dict[int, int]:
        """How recently each of `experts` will have been used; others of the layer may be marked to go."""
        cache, layers = self._cache, len(self._cache.table)
        if used is None or 2 * len(experts) * layers <= cache.slots:
            first = cache._clock
            cache._clock += len(experts)
            return {expert: first + i for i, expert in enumerate(experts)}
        ranked = cache._ranked(self._layer, used, len(experts))
        slots = cache._slot[self._layer]
        cache._stamp[slots[slots >= 0]] = ranked[slots >= 0]
        return {expert: int(ranked[expert]) for expert in experts}

    def _look_up(self, expert: int) -> None:
        cache = self._cache
        slot = cache._slot[self._layer, expert]
        if slot < 0:
            cache.counts.misses += 1
            self._absent.append(expert)
            return
        cache.counts.hits += 1
        cache._stamp[slot], cache._held[slot] = self._stamps[expert], True
        if cache._is_there[slot]:
            self.here.append(expert)
            return
        self._coming.append(expert)
        if slot in cache._guessed:  # not begun: it is no guess any more
            cache._guessed.remove(slot)
            cache._wanted.append(slot)

    def _assign(self) -> None:
        """Take slots for what has none, and have it read."""
        cache = self._cache
        while self._absent:
            key = self._layer, self._absent[0]
            slot = cache._take(key, self._stamps[key[1]])
            if slot is None and cache._guessed:
                cache.counts.ahead -= 1
                cache._free(cache._guessed.pop())
                continue
            if slot is None:
                break
            cache._wanted.append(slot)
            self._coming.append(self._absent.popleft())
        if cache._wanted:
            cache._work.notify_all()

    def _collect(self) -> None:
        """Move what has come to `here`. Raises: the error of a read."""
        cache, coming = self._cache, self._coming
        for expert in coming:
            if error := cache._errors.pop((self._layer, expert), None):
                raise error
        self._coming = []
        for expert in coming:
            is_there = cache._is_there[cache._slot[self._layer, expert]]
            (self.here if is_there else self._coming).append(expert)
