"""Memory of a known size that is taken at once: a slab of slots, and buffers for what is read from files."""

import mmap
import sys
import threading
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

_PAGE_BYTES = 4096
_TOUCHERS = 4  # threads that have the system clear its pages


def own_memory(size: int) -> memoryview:
    """`size` writable bytes from a page's beginning, in huge pages where the system has them, all given by
    the system already. They live as long as a view of them. Raises: MemoryError.

    Private, not shared as mmap's default is, which gets no huge pages. Touched after that was asked for.
    """
    try:
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if sys.platform != "win32" else {}
        memory = mmap.mmap(-1, size, **flags)
    except (OSError, ValueError):
        raise MemoryError(f"{size / 1e9:.1f} GB of memory can't be had; ask for less") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    pages = np.frombuffer(memory, np.uint8)[::_PAGE_BYTES]
    step = -(-len(pages) // _TOUCHERS)
    threads = [
        threading.Thread(target=pages[i * step : (i + 1) * step].fill, args=(0,)) for i in range(_TOUCHERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return memoryview(memory)


class Slab:
    """`slots` slots of `slot_bytes` each: `views` to write them, `addresses` (slots,) i64 for kernels."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        memory = own_memory(slots * slot_bytes)
        self.views = [memory[i * slot_bytes : (i + 1) * slot_bytes] for i in range(slots)]
        base = np.frombuffer(memory, np.uint8).ctypes.data
        self.addresses: NDArray[np.int64] = base + slot_bytes * np.arange(slots, dtype=np.int64)
