"""The KV cache of one conversation, preallocated. kernels/attention.py says how a layer's arrays lie."""

import numpy as np
from numpy.typing import NDArray

from localoss.kernels.attention import KEYS_AT_ONCE
from quant.config import ModelConfig
from quant.layout import round_up

# What a number is kept as; float16 as its bits: Numba has no half type.
KV_DTYPES: dict[str, type[np.generic]] = {"f16": np.uint16, "f32": np.float32, "int8": np.int8}
Array = NDArray[np.generic]


class LayerCache:
    """`arrays`: keys (K, S/8, head_dim, 8), values (K, S, head_dim), and the float32 scales of each, (K, S)
    for int8 and (K, 0) for others. S slots; position p has slot p % S.
    """

    def __init__(self, config: ModelConfig, slots: int, kv_dtype: str):
        heads, dim, dtype = config.kv_heads, config.head_dim, KV_DTYPES[kv_dtype]
        scaled = slots if kv_dtype == "int8" else 0
        self.arrays: tuple[Array, Array, Array, Array] = (
            np.zeros((heads, slots // 8, dim, 8), dtype),
            np.zeros((heads, slots, dim), dtype),
            np.zeros((heads, scaled), np.float32),
            np.zeros((heads, scaled), np.float32),
        )
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


def layer_slots(config: ModelConfig, context_tokens: int, chunk_tokens: int) -> list[int]:
    """How many positions each layer's cache holds."""
    full = round_up(context_tokens, KEYS_AT_ONCE)
    # A chunk's first token still sees its window after the chunk's last token is written.
    ring = min(round_up(config.sliding_window + chunk_tokens, KEYS_AT_ONCE), full)
    return [ring if sliding else full for sliding in config.is_sliding]


def kv_cache_bytes(config: ModelConfig, context_tokens: int, chunk_tokens: int, kv_dtype: str) -> int:
    """Bytes of a KVCache."""
    head = config.head_dim * np.dtype(KV_DTYPES[kv_dtype]).itemsize + (4 if kv_dtype == "int8" else 0)
    return sum(layer_slots(config, context_tokens, chunk_tokens)) * 2 * config.kv_heads * head
