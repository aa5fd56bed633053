"""The KV cache of one conversation, preallocated. kernels/attention.py says how a layer's arrays lie."""

import numpy as np
from numpy.typing import NDArray

from localoss.gpu.cache import GpuLayerCache
from localoss.gpu.span import GpuSpan
from localoss.plan.sizes import KEY_LANES, layer_cache_sizes, layer_slots
from quant.format.config import ModelConfig

Array = NDArray[np.generic]


class LayerCache:
    """`arrays`: keys (K, S/16, head_dim, 16), values (K, S, head_dim), and the float32 scales of each, (K, S)
    for int8 and (K, 0) for others. S slots; position p has slot p % S.
    """

    def __init__(self, config: ModelConfig, slots: int, kv_dtype: str):
        # Written here, not np.zeros: the system gives memory at the first write, and none may come later.
        arrays = [np.full(shape, 0, dtype) for shape, dtype in layer_cache_sizes(config, slots, kv_dtype)]
        self.arrays: tuple[Array, Array, Array, Array] = (arrays[0], arrays[1], arrays[2], arrays[3])
        self.slots = slots
        self.nbytes = sum(array.nbytes for array in self.arrays)

    def read(self, first: int, end: int) -> list[Array]:
        """Copies of what is kept for positions first to end - 1: keys and values (n, K, head_dim), scales
        (n, K) for int8 and (0, K) for others.
        """
        slots = np.arange(first, end) % self.slots
        keys, values, *scales = self.arrays
        return [
            keys[:, slots // KEY_LANES, :, slots % KEY_LANES],
            values[:, slots].swapaxes(0, 1).copy(),
            *(array[:, slots if array.size else slots[:0]].T.copy() for array in scales),
        ]

    def write(self, first: int, saved: list[Array]) -> None:
        """Put back what `read` gave, from position `first` on."""
        slots = np.arange(first, first + len(saved[0])) % self.slots
        keys, values, *scales = self.arrays
        keys[:, slots // KEY_LANES, :, slots % KEY_LANES] = saved[0]
        values[:, slots] = saved[1].swapaxes(0, 1)
        for array, its in zip(scales, saved[2:], strict=True):
            if array.size:
                array[:, slots] = its.T


class KVCache:
    """One cache per layer: rings for the sliding layers, the whole context for the others.

    `layers` are on the CPU; `gpu_layers`, those after them, on `gpu`.
    """

    def __init__(
        self,
        config: ModelConfig,
        context_tokens: int,
        chunk_tokens: int,
        kv_dtype: str,
        gpu: GpuSpan | None = None,
    ):
        self._config, self._kv_dtype = config, kv_dtype
        self._slots = layer_slots(config, context_tokens, chunk_tokens)
        first = gpu.first if gpu else config.layers
        self.layers = [LayerCache(config, count, kv_dtype) for count in self._slots[:first]]
        self.gpu_layers = [gpu.layer_cache(count) for count in self._slots[first:]] if gpu else []
        self.window = config.sliding_window
        self.ring_slots = min(self._slots)

    @property
    def rings(self) -> list[LayerCache | GpuLayerCache]:
        return self._of_kind(True)

    @property
    def full(self) -> list[LayerCache | GpuLayerCache]:
        return self._of_kind(False)

    def leave_gpu(self) -> None:
        """Have empty caches on the CPU instead of those on the GPU, which is gone."""
        lost = self._slots[len(self.layers) :]
        self.gpu_layers = []
        self.layers += [LayerCache(self._config, count, self._kv_dtype) for count in lost]

    def read_rings(self, first: int, end: int) -> list[list[Array]]:
        """Copies of what the rings keep for positions first to end - 1: LayerCache.read of each."""
        return [ring.read(first, end) for ring in self.rings]

    def write_rings(self, first: int, saved: list[list[Array]]) -> None:
        """Put back what `read_rings` gave, from position `first` on."""
        for ring, arrays in zip(self.rings, saved, strict=True):
            ring.write(first, arrays)

    def _of_kind(self, sliding: bool) -> list[LayerCache | GpuLayerCache]:
        layers: list[LayerCache | GpuLayerCache] = [*self.layers, *self.gpu_layers]
        return [layer for layer, ring in zip(layers, self._config.is_sliding, strict=True) if ring == sliding]
