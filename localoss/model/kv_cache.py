"""The KV cache of one sequence, preallocated. kernels/attention.py says how a layer's arrays lie."""

from collections.abc import Sequence

import numpy as np

from localoss.kernels.layers import CACHE_FIELDS
from localoss.model.stack import Array, LayerCaching, LayerStack
from localoss.model.weights import address
from localoss.plan.sizes import KEY_LANES, KV_NUMPY_DTYPES, layer_cache_sizes, layer_slots
from quant.format.config import ModelConfig

_COPIED_AT_ONCE = 256  # positions


class LayerCache:
    """`arrays`: a layer's keys and values as attention.py has them. S slots; position p has slot p % S."""

    def __init__(self, config: ModelConfig, slots: int, kv_dtype: str):
        # Written here, not np.zeros: the system gives memory at the first write, and none may come later.
        arrays = [np.full(shape, 0, dtype) for shape, dtype in layer_cache_sizes(config, slots, kv_dtype)]
        self.arrays: tuple[Array, ...] = tuple(arrays)
        self.slots = slots
        self.nbytes = sum(array.nbytes for array in self.arrays)

    def read(self, first: int, end: int) -> list[Array]:
        """Copies of what is kept for positions first to end - 1, position after position: keys and values
        (n, K, head_dim); for int8 the keys' low bits (n, K, head_dim/4), and the scales of keys and values
        (n, K, G); for others none of these: (0, …).
        """
        slots = np.arange(first, end) % self.slots
        keys, values, low, key_scales, value_scales = self.arrays
        coded = slots if low.size else slots[:0]
        return [
            keys[:, slots // KEY_LANES, :, slots % KEY_LANES],
            values[:, slots].swapaxes(0, 1).copy(),
            low[:, coded // KEY_LANES, :, coded % KEY_LANES],
            key_scales[:, coded // KEY_LANES, :, coded % KEY_LANES],
            value_scales[:, coded].swapaxes(0, 1).copy(),
        ]

    def write(self, first: int, saved: list[Array]) -> None:
        """Put back what `read` gave, from position `first` on."""
        slots = np.arange(first, first + len(saved[0])) % self.slots
        keys, values, low, key_scales, value_scales = self.arrays
        keys[:, slots // KEY_LANES, :, slots % KEY_LANES] = saved[0]
        values[:, slots] = saved[1].swapaxes(0, 1)
        if low.size:
            low[:, slots // KEY_LANES, :, slots % KEY_LANES] = saved[2]
            key_scales[:, slots // KEY_LANES, :, slots % KEY_LANES] = saved[3]
            value_scales[:, slots] = saved[4].swapaxes(0, 1)

    def copy(self, other: "LayerCache", end: int) -> None:
        """Hold what `other` keeps in its slots before `end`, in a ring of all positions."""
        mine, theirs = self.arrays, other.arrays
        groups = -(-end // KEY_LANES)
        mine[0][:, :groups] = theirs[0][:, :groups]
        for own, its in zip(mine[1:], theirs[1:], strict=True):
            own[:, :end] = its[:, :end]


class LayerCaches:
    """The caches of a sequence's layers, and where they lie.

    numbers: an empty array of the type that keys and values have. places: see list_places.
    """

    def __init__(self, layers: list[LayerCaching], kv_dtype: str) -> None:
        self.layers, self.kv_dtype = layers, kv_dtype
        self.numbers: Array = np.empty(0, KV_NUMPY_DTYPES[kv_dtype])
        self.list_places()

    def list_places(self) -> None:
        """Have `places` (layers, CACHE_FIELDS) i64 say where each layer's arrays lie, and its slots: what
        kernels/layers.py reads. A row of zeros stands for what lies elsewhere.
        """
        rows = [
            [*map(address, layer.arrays), layer.slots]
            if isinstance(layer, LayerCache)
            else [0] * CACHE_FIELDS
            for layer in self.layers
        ]
        self.places = np.array(rows, np.int64)
        self.at_places = address(self.places)


class KVCache(LayerCaches):
    """One cache per layer: rings for the sliding layers, the whole context for the others.

    `layers` has them all, in order; each stack of the model made those of its own layers.
    """

    def __init__(
        self,
        config: ModelConfig,
        context_tokens: int,
        chunk_tokens: int,
        kv_dtype: str,
        stacks: Sequence[LayerStack] = (),
    ):
        """stacks: the model's; none for a cache that lies in this machine's memory. Raises: DeviceLost."""
        self._config, self.kv_dtype = config, kv_dtype
        self._slots = layer_slots(config, context_tokens, chunk_tokens)
        self.window = config.sliding_window
        self.ring_slots = min(self._slots)
        self.stacks = tuple(stacks)
        self.keep_at: Sequence[int] = ()  # positions whose windows a pass that goes beyond them is to keep
        self.kept: dict[int, list[list[Array]]] = {}  # by position, of each ring that was run
        layers: list[LayerCaching] = []
        for stack in stacks:
            layers += self._of(stack)
        if not stacks:
            layers += [LayerCache(config, count, kv_dtype) for count in self._slots]
        super().__init__(layers, kv_dtype)

    @property
    def rings(self) -> list[LayerCaching]:
        return self._of_kind(True)

    @property
    def full(self) -> list[LayerCaching]:
        return self._of_kind(False)

    def renew(self, stacks: Sequence[LayerStack]) -> None:
        """Have empty caches for the layers of those of `stacks` that are new. Raises: DeviceLost."""
        for stack in stacks:
            if stack not in self.stacks:
                self.layers[stack.first : stack.first + stack.count] = self._of(stack)
        self.stacks = tuple(stacks)
        self.list_places()

    def _of(self, stack: LayerStack) -> Sequence[LayerCaching]:
        return stack.new_caches(self._slots[stack.first : stack.first + stack.count], self.kv_dtype)

    def copy(self, other: "KVCache", end: int) -> None:
        """Hold what `other`, a cache of the same kind, holds of the positions before `end`; of rings all."""
        for mine, theirs, is_ring in zip(self.layers, other.layers, self._config.is_sliding, strict=True):
            last = mine.slots if is_ring else end
            if hasattr(mine, "copy") and type(mine) is type(theirs):
                mine.copy(theirs, last)
                continue
            for first in range(0, last, _COPIED_AT_ONCE):  # by way of this machine's memory
                here = min(first + _COPIED_AT_ONCE, last)
                mine.write(first, theirs.read(first, here))

    def keep_windows(self, layer: int, first: int, end: int) -> None:
        """Keep what sliding `layer` holds of the windows before those of `keep_at` after first, up to end."""
        for position in self.keep_at:
            if first < position <= end:
                window = self.layers[layer].read(max(position - self.window, 0), position)
                self.kept.setdefault(position, []).append(window)

    def read_rings(self, first: int, end: int) -> list[list[Array]]:
        """Copies of what the rings keep for positions first to end - 1: LayerCache.read of each."""
        return [ring.read(first, end) for ring in self.rings]

    def write_rings(self, first: int, saved: list[list[Array]]) -> None:
        """Put back what `read_rings` gave, from position `first` on."""
        for ring, arrays in zip(self.rings, saved, strict=True):
            ring.write(first, arrays)

    def _of_kind(self, sliding: bool) -> list[LayerCaching]:
        layers = zip(self.layers, self._config.is_sliding, strict=True)
        return [layer for layer, ring in layers if ring == sliding]
