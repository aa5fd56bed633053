"""From a model's name to a loaded engine: compiled kernels are found or made, options checked."""

import hashlib
import os
import tempfile
from pathlib import Path

import numba
import psutil

from localoss import settings
from localoss.errors import UsageError
from localoss.registry import find_model

_KERNELS = Path(__file__).parent / "kernels"


def use_kernel_cache() -> Path:
    """Have Numba keep compiled kernels in a folder named by a hash of their sources, and give that folder.

    Numba itself sees an edit in a function's own file only, and would go on using callers of what was edited.
    """
    digest = hashlib.sha256((settings.simd() or "auto").encode())
    for source in sorted(_KERNELS.rglob("*.py")):
        digest.update(source.read_bytes())
    folder = settings.kernel_cache() / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except OSError:  # compiled anew each time, but running
        folder = Path(tempfile.mkdtemp(prefix="localoss-kernels-"))
    numba.config.CACHE_DIR = str(folder)
    return folder


def usable_threads(asked: int | None) -> int:
    """How many threads to run kernels on. Raises: UsageError for less than 1 or more than there are CPUs."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if asked is None:
        return min(psutil.cpu_count(logical=False) or cpus, cpus, numba.config.NUMBA_NUM_THREADS)
    if not 1 <= asked <= min(cpus, numba.config.NUMBA_NUM_THREADS):
        raise UsageError(f"threads is {asked}; this machine has {cpus}")
    return asked


def start_engine(
    model: str | Path,
    context_tokens: int,
    threads: int | None,
    kv_dtype: str,
    activations: str,
    memory_limit: int | None,
    gpu_layers: int,
    chunk_tokens: int,
):  # type: ignore[no-untyped-def]  # Engine may be imported only once the cache is set
    """localoss.load, with Numba imported."""
    if gpu_layers:
        raise UsageError(f"gpu_layers is {gpu_layers}; this version runs on the CPU only, leave it at 0")
    if chunk_tokens < 1:
        raise UsageError(f"chunk_tokens is {chunk_tokens}; use 1 or more")
    folder = find_model(str(model))
    use_kernel_cache()
    from localoss.engine import Engine

    engine = Engine(
        folder,
        context_tokens=context_tokens,
        threads=usable_threads(threads),
        kv_dtype=kv_dtype,
        activations=activations,
        chunk_tokens=chunk_tokens,
    )
    if memory_limit is not None and engine.memory_bytes > memory_limit:
        raise UsageError(
            f"{folder} needs {engine.memory_bytes / 1e9:.1f} GB with a context of {context_tokens:,} tokens, "
            f"more than the limit of {memory_limit / 1e9:.1f} GB; ask for a smaller context"
        )
    return engine
