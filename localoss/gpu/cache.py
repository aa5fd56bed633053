"""The KV cache of one layer in the GPU's memory, with the numbers that the CPU's would hold."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from localoss.gpu.device import Device
from localoss.plan.sizes import KV_NUMPY_DTYPES
from quant.format.config import ModelConfig

Array = NDArray[np.generic]


class GpuLayerCache:
    """Keys and values (S, K, head_dim), and for int8 the float32 scales of each, (S, K).

    S slots; position p has slot p % S. As localoss.model.kv_cache.LayerCache has them, in another order.
    """

    def __init__(self, device: Device, config: ModelConfig, slots: int, kv_dtype: str):
        self._device, self.slots = device, slots
        numbers, heads = np.dtype(KV_NUMPY_DTYPES[kv_dtype]), config.kv_heads
        scales = 4 * heads if kv_dtype == "int8" else 0
        row = heads * config.head_dim * numbers.itemsize
        self._row_bytes = (row, row, scales, scales)
        self._shapes = ((heads, config.head_dim), (heads, config.head_dim), (heads,), (heads,))
        self._dtypes = (numbers, numbers, np.dtype(np.float32), np.dtype(np.float32))
        self.buffers: list[Any] = [device.buffer(slots * size) for size in self._row_bytes]
        self.nbytes = sum(buffer.size for buffer in self.buffers)

    def read(self, first: int, end: int) -> list[Array]:
        """Copies of what is kept for positions first to end - 1: as LayerCache.read. Raises: GpuError."""
        wanted = [
            (buffer, slot * size, count * size)
            for buffer, size in zip(self.buffers, self._row_bytes, strict=True)
            for slot, count in self._stretches(first, end - first)
            if size
        ]
        stretches = iter(self._device.run([], wanted))
        arrays = []
        for size, shape, dtype in zip(self._row_bytes, self._shapes, self._dtypes, strict=True):
            parts = [next(stretches) for _ in self._stretches(first, end - first)] if size else []
            arrays.append(np.frombuffer(b"".join(parts), dtype).reshape(-1, *shape))
        return arrays

    def write(self, first: int, saved: list[Array]) -> None:
        """Put back what `read` gave, from position `first` on. Raises: GpuError."""
        for buffer, size, array in zip(self.buffers, self._row_bytes, saved, strict=True):
            at = 0
            for slot, count in self._stretches(first, len(saved[0]) if size else 0):
                self._device.write(buffer, array[at : at + count], slot * size)
                at += count

    def _stretches(self, first: int, count: int) -> list[tuple[int, int]]:
        """(slot, how many) of neighbouring slots that hold `count` positions from `first` on."""
        found = []
        while count > 0:
            slot = first % self.slots
            here = min(count, self.slots - slot)
            found.append((slot, here))
            first, count = first + here, count - here
        return found
