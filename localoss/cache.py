"""The KV cache of one conversation, preallocated. kernels/attention.py says how a layer's arrays lie."""

import numpy as np
from numpy.typing import NDArray

from localoss.sizes import layer_cache_sizes, layer_slots
from quant.config import ModelConfig

Array = NDArray[np.generic]


class LayerCache:
    """`arrays`: keys (K, S/8, head_dim, 8), values (K, S, head_dim), and the float32 scales of each, (K, S)
    for int8 and (K, 0) for others. S slots; position p has slot p % S.
    """

    def __init__(self, config: ModelConfig, slots: int, kv_dtype: str):
        # Written here, not np.zeros: the system gives memory at the first write, and none may come later.
        arrays = [np.full(shape, 0, dtype) for shape, dtype in layer_cache_sizes(config, slots, kv_dtype)]
        self.arrays: tuple[Array, Array, Array, Array] = (arrays[0], arrays[1], arrays[2], arrays[3])
        self.slots = slots
        self.nbytes = sum(array.nbytes for array in self.arrays)

    def at(self, slots: slice) -> list[Array]:
        """Views of what all arrays hold in `slots`, whose ends are multiples of 8: to copy, save, restore."""
        keys, values, key_scales, value_scales = self.arrays
        eighths = slice(slots.start // 8, slots.stop // 8)
        return [keys[:, eighths], values[:, slots], key_scales[:, slots], value_scales[:, slots]]


class KVCache:
    """One LayerCache per layer: rings for the sliding layers, the whole context for the others."""

    def __init__(self, config: ModelConfig, context_tokens: int, chunk_tokens: int, kv_dtype: str):
        slots = layer_slots(config, context_tokens, chunk_tokens)
        self.layers = [LayerCache(config, count, kv_dtype) for count in slots]
        self._window = config.sliding_window
        sliding = [count for count, ring in zip(slots, config.is_sliding, strict=True) if ring]
        self._ring_slots = min(sliding, default=None)

    def can_step_back(self, written: int, position: int) -> bool:
        """Whether, after `written` positions, the rings still hold what a token at `position` sees."""
        oldest = max(position - self._window + 1, 0)
        return self._ring_slots is None or written - oldest <= self._ring_slots
