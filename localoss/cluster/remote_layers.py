"""Layers on other machines, as the machine with the conversation sees them.

The residual stream goes from machine to machine: each call is given what the one before promised. So chunks
of a prompt, and groups of sequences, follow one another, and no machine waits for the last to be done.
"""

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from localoss.errors import Cancelled, DeviceLost
from localoss.model.stack import Array, ExpertRunner, F32Array, LayerCaching, LayerStack, Rows
from localoss.plan.sizes import layer_cache_bytes
from quant.format.config import ModelConfig

CHUNK_TOKENS = 128  # of a prompt that a machine runs at a time
_LOOK_S = 0.1  # how often a wait looks whether it is to stop


class MachineLost(DeviceLost):
    """A machine that ran layers doesn't answer any more."""

    goes_on = "its layers are placed anew, and the conversation is read again"

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.names = list(names)
        self.device = ", ".join(names)


class Link(Protocol):
    """A machine with some of the layers: a PartMachine somewhere, whose methods are called by name."""

    name: str

    def call(self, method: str, *arguments: Any) -> Any:
        """Call without a wait: gives a promise, which other calls may be given for its value."""

    def is_ready(self, promise: Any, within_s: float) -> bool:
        """Whether `result` has something to say; looks for so long."""

    def result(self, promise: Any) -> Any:
        """What was promised. Raises: MachineLost if it won't come; what the method raised."""

    def is_alive(self) -> bool:
        """Whether the machine answers."""

    def close(self) -> None:
        """End what runs there. Never raises."""


@dataclass(frozen=True)
class Part:
    """Layers first to first + count - 1 of the model, on the machine behind `link`."""

    link: Link
    first: int
    count: int


class PartRows(NamedTuple):
    """Rows of a call: of which sequence, how many, from which position on, and rope's angles for these."""

    key: int
    tokens: int
    position: int
    cos: F32Array
    sin: F32Array


@dataclass(eq=False)
class _Held:
    """A sequence's caches on all machines, for as long as somebody has one of them."""

    key: int


class RemoteCache:
    """One layer's keys and values of one sequence on another machine: a LayerCaching."""

    def __init__(self, stack: "RemoteLayers", held: _Held, part: Part, layer: int, sizes: tuple[int, int]):
        """layer: counted from the part's first. sizes: slots and bytes."""
        self._stack, self._held, self._part, self._layer = stack, held, part, layer
        self.slots, self.nbytes = sizes

    @property
    def key(self) -> int:
        return self._held.key

    def read(self, first: int, end: int) -> list[Array]:
        found: list[Array] = self._stack.ask(self._part, "read", self.key, self._layer, first, end)
        return found

    def write(self, first: int, saved: list[Array]) -> None:
        self._stack.ask(self._part, "write", self.key, self._layer, first, saved)

    def copy(self, other: "RemoteCache", end: int) -> None:
        """Hold what `other`, of the same layer, has in its slots before `end`."""
        self._stack.ask(self._part, "copy", self.key, other.key, self._layer, end)


class RemoteLayers:
    """All layers of a model, in parts on several machines: a LayerStack.

    again: makes another one of the machines that are left, which keep their links, without those of the names
    it is given; None if it can't.
    """

    unembeds = False

    def __init__(
        self,
        config: ModelConfig,
        parts: Sequence[Part],
        again: Callable[[Sequence[str]], LayerStack | None] = lambda lost: None,
    ) -> None:
        self.config, self.parts = config, list(parts)
        self.first, self.count = parts[0].first, sum(part.count for part in parts)
        self._again, self._keys = again, itertools.count()
        self._free: deque[int] = deque()  # keys of sequences that are gone; told when something else is

    def new_caches(self, slots: Sequence[int], kv_dtype: str) -> Sequence[LayerCaching]:
        self._free_caches()
        held = _Held(next(self._keys))
        weakref.finalize(held, self._free.append, held.key)
        asked, caches = [], []
        for part in self.parts:
            its = list(slots[part.first - self.first :][: part.count])
            asked.append(part.link.call("new_caches", held.key, its, kv_dtype))
            for layer, count in enumerate(its):
                sizes = count, layer_cache_bytes(self.config, count, kv_dtype)
                caches.append(RemoteCache(self, held, part, layer, sizes))
        for part, promise in zip(self.parts, asked, strict=True):
            self._result(part.link, promise)
        return caches

    def try_out(self, caches: Sequence[LayerCaching]) -> None:
        """Kernels were compiled and called when each machine loaded its layers."""

    def forward(self, x: F32Array, rows: Sequence[Rows], cancelled: Callable[[], bool]) -> None:
        self._free_caches()
        promised = []
        for unit in units(rows, len(self.parts)):
            first = unit[0].first
            end = unit[-1].first + unit[-1].tokens
            sent = [self._part_rows(row) for row in unit]
            y: Any = x[first:end]
            for part in self.parts:
                y = part.link.call("run", y, sent)
            promised.append((first, end, y))
        for first, end, promise in promised:
            x[first:end] = self._result(self.parts[-1].link, promise, cancelled)

    def next_logits(self, x: F32Array, rows: Rows, cancelled: Callable[[], bool]) -> F32Array:
        raise AssertionError("it has no unembedding")

    def logits(self, x: F32Array, out: F32Array) -> None:
        raise AssertionError("it has no unembedding")

    def lend(self, cores: ExpertRunner) -> None:
        """Its machines run their experts themselves."""

    def figures(self) -> dict[str, Any]:
        """For reports: which machine has how many layers."""
        layers = {part.link.name: part.count for part in self.parts}
        told = ", ".join(f"{count} on {name}" for name, count in layers.items())
        return {"layers": self.count, "machines": layers, "summary": f"{self.count} layers: {told}"}

    def replacement(self) -> LayerStack | None:
        lost = [part.link.name for part in self.parts if not part.link.is_alive()]
        self.parts = []  # the machines that are left go on for the one that comes
        return self._again(lost)

    def close(self) -> None:
        for part in self.parts:
            part.link.close()

    def ask(self, part: Part, method: str, *arguments: Any) -> Any:
        """Call a method of a part, and wait for what it gives. Raises: MachineLost."""
        return self._result(part.link, part.link.call(method, *arguments))

    def _part_rows(self, rows: Rows) -> PartRows:
        cache: Any = rows.cache.layers[self.first]
        return PartRows(cache.key, rows.tokens, rows.position, rows.cos, rows.sin)

    def _result(self, link: Link, promise: Any, cancelled: Callable[[], bool] = lambda: False) -> Any:
        while not link.is_ready(promise, _LOOK_S):
            if cancelled():
                raise Cancelled("stopped")  # what is under way writes where the next pass will, and before it
        try:
            return link.result(promise)
        except MachineLost as error:
            lost = [part.link.name for part in self.parts if not part.link.is_alive()]
            raise MachineLost(str(error), lost or error.names) from None

    def _free_caches(self) -> None:
        while self._free:
            key = self._free.popleft()
            for part in self.parts:
                part.link.call("free", key)


def units(rows: Sequence[Rows], machines: int) -> list[list[Rows]]:
    """`rows` of a pass in parts that follow one another: chunks of a prompt, or groups of sequences.

    A prompt is cut every CHUNK_TOKENS; sequences with a token or two are dealt out so that each machine can
    have some of them.
    """
    total = sum(part.tokens for part in rows)
    most = min(CHUNK_TOKENS, max(1, -(-total // machines))) if len(rows) > 1 else CHUNK_TOKENS
    found: list[list[Rows]] = [[]]
    room = most
    for part in rows:
        done = 0
        while done < part.tokens:
            if not room:
                found.append([])
                room = most
            here = min(room, part.tokens - done)
            angles = part.cos[done : done + here], part.sin[done : done + here]
            found[-1].append(Rows(part.first + done, here, part.position + done, *angles, part.cache))
            done, room = done + here, room - here
    return found
