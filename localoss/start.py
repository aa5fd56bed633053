"""From a model's name to a loaded engine: compiled kernels are found or made, options checked."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from localoss import kernels, settings
from localoss.errors import UsageError
from localoss.registry import find_model

if TYPE_CHECKING:
    from localoss.engine import Engine


def usable_threads(asked: int | None) -> int:
    """How many threads to run kernels on, by default one per core. Raises: UsageError for too many."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = min(cpus, kernels.most_threads())
    if asked is None:
        return min(psutil.cpu_count(logical=False) or most, most)
    if not 1 <= asked <= most:
        raise UsageError(f"threads is {asked}; this machine can run 1 to {most}")
    return asked


def start_engine(
    model: str | Path,
    *,
    context_tokens: int,
    threads: int | None,
    kv_dtype: str,
    activations: str,
    memory_limit: int | None,
    gpu_layers: int,
    chunk_tokens: int,
    compiling: Callable[[str], None] | None,
) -> "Engine":
    """See localoss.load."""
    if gpu_layers:
        raise UsageError(f"gpu_layers is {gpu_layers}; this version runs on the CPU only: leave it at 0")
    folder = find_model(str(model))
    kernels.keep_compiled_in(settings.kernel_cache(), settings.simd() or "best")
    from localoss.engine import Engine  # only now: Numba reads its cache folder when it sees a kernel
    from localoss.warmup import warm_up

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
    with kernels.telling_compiled(compiling or (lambda name: None)):
        warm_up(kv_dtype, activations == "f32", engine.threads)
    return engine
