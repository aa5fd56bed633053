"""The KV cache of one layer in the GPU's memory, with the numbers that the CPU's would hold."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localoss.gpu.device import Device
from localoss.plan.gpu_sizes import extra_words
from localoss.plan.sizes import CACHE_GROUP, KV_NUMPY_DTYPES
from quant.format.config import ModelConfig

Array = NDArray[np.generic]


class GpuLayerCache:
    """Keys and values (S, K, head_dim), and for int8 what it has besides, (S, K, words): see cache_int8.wgsl.

    S slots; position p has slot p % S. As localoss.model.kv_cache.LayerCache has them, in another order.
    """

    def __init__(self, device: Device, config: ModelConfig, slots: int, kv_dtype: str):
        self._device, self._config, self.slots = device, config, slots
        numbers, heads = np.dtype(KV_NUMPY_DTYPES[kv_dtype]), config.kv_heads
        self._shapes = (*2 * [(heads, config.head_dim)], (heads, 4 * sum(extra_words(config))))
        self._dtypes = (numbers, numbers, np.dtype(np.uint8))
        row, extra = heads * config.head_dim * numbers.itemsize, math.prod(self._shapes[2])
        self._row_bytes = (row, row, extra if kv_dtype == "int8" else 0)
        self.buffers: list[Any] = [device.buffer(slots * size) for size in self._row_bytes]
        self.nbytes = sum(buffer.size for buffer in self.buffers)
        self.bound: dict[Any, Any] = {}  # bind groups with it: see lane.py

    def read(self, first: int, end: int) -> list[Array]:
        """Copies of what is kept for positions first to end - 1: as LayerCache.read. Raises: GpuError."""
        wanted = [
            (buffer, slot * size, count * size)
            for buffer, size in zip(self.buffers, self._row_bytes, strict=True)
            for slot, count in self._stretches(first, end - first)
            if size
        ]
        stretches = iter(self._device.run([], wanted))
        arrays: list[Array] = []
        for size, shape, dtype in zip(self._row_bytes, self._shapes, self._dtypes, strict=True):
            parts = [next(stretches) for _ in self._stretches(first, end - first)] if size else []
            arrays.append(np.frombuffer(b"".join(parts), dtype).reshape(-1 if size else 0, *shape))
        keys, values, extra = arrays
        return [keys, values, *(extra[:, :, first:end].copy() for first, end in self._places())]

    def write(self, first: int, saved: list[Array]) -> None:
        """Put back what `read` gave, from position `first` on. Raises: GpuError."""
        keys, values, *besides = saved
        extra = np.zeros((len(besides[0]), *self._shapes[2]), np.uint8)
        for array, (begin, end) in zip(besides, self._places(), strict=True):
            extra[:, :, begin:end] = array
        for buffer, size, array in zip(self.buffers, self._row_bytes, (keys, values, extra), strict=True):
            at = 0
            for slot, count in self._stretches(first, len(keys) if size else 0):
                self._device.write(buffer, array[at : at + count], slot * size)
                at += count

    def _places(self) -> list[tuple[int, int]]:
        """Where in `extra` LayerCache's arrays are: the keys' low bits, the scales of keys and of values."""
        low, scales, _ = extra_words(self._config)
        groups = -(-self._config.head_dim // CACHE_GROUP)
        return [
            (0, self._config.head_dim // 4),
            (4 * low, 4 * low + groups),
            (4 * (low + scales), 4 * (low + scales) + groups),
        ]

    def _stretches(self, first: int, count: int) -> list[tuple[int, int]]:
        """(slot, how many) of neighbouring slots that hold `count` positions from `first` on."""
        found = []
        while count > 0:
            slot = first % self.slots
            here = min(count, self.slots - slot)
            found.append((slot, here))
            first, count = first + here, count - here
        return found
