"""The KV cache of one conversation, preallocated. kernels/attention.py says how a layer's arrays lie."""

import numpy as np
from numpy.typing import NDArray

from localoss.kernels.attention import KEYS_AT_ONCE
from quant.config import ModelConfig
from quant.layout import round_up

KV_DTYPES = {"f16": np.uint16, "f32": np.float32}  # float16 as its bits: Numba has no half type


class LayerCache:
    """keys (K, S/8, head_dim, 8) and values (K, S, head_dim) for S slots; position p has slot p % S."""

    def __init__(self, config: ModelConfig, slots: int, kv_dtype: str):
        heads, dim = config.kv_heads, config.head_dim
        self.keys: NDArray[np.generic] = np.zeros((heads, slots // 8, dim, 8), KV_DTYPES[kv_dtype])
        self.values: NDArray[np.generic] = np.zeros((heads, slots, dim), KV_DTYPES[kv_dtype])


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
    item = np.dtype(KV_DTYPES[kv_dtype]).itemsize
    return sum(layer_slots(config, context_tokens, chunk_tokens)) * 2 * config.kv_rows * item
