"""From a model's name to a loaded engine: compiled kernels are found or made, options checked."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from localoss import kernels, settings
from localoss.errors import GpuError, UsageError
from localoss.gpu.choice import fit_gpu, layer_number, open_gpu
from localoss.gpu.device import Device
from localoss.hub.registry import find_model
from localoss.plan.machine import this_machine
from localoss.plan.memory import Plan, check, choose_context
from localoss.plan.sizes import KV_DTYPES
from quant.format.config import ModelConfig, read_config
from quant.format.manifest import read_manifest

if TYPE_CHECKING:
    from localoss.engine.engine import Engine

_TINY = 1 << 20  # weights of a matrix: with fewer, threads take longer to meet than to multiply


def usable_threads(asked: int | None, config: ModelConfig | None = None) -> int:
    """How many threads to run kernels on, by default one per core, and one for a tiny model.

    Raises: UsageError for too many.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = min(cpus, kernels.most_threads())
    if asked is None and config and config.hidden * config.intermediate < _TINY:
        return 1
    if asked is None:
        return min(psutil.cpu_count(logical=False) or most, most)
    if not 1 <= asked <= most:
        raise UsageError(f"threads is {asked}; this machine can run 1 to {most}")
    return asked


def start_engine(
    model: str | Path,
    *,
    context_tokens: int | None,
    prompt_tokens: int,
    conversations: int,
    threads: int | None,
    kv_dtype: str,
    activations: str,
    memory_limit: int | None,
    must_fit: bool,
    lookup: bool,
    gpu_layers: int | str,
    gpu_memory: int | None,
    chunk_tokens: int,
    compiling: Callable[[str], None] | None,
    uploading: Callable[[int, int], None] | None,
    notice: Callable[[str], None] | None,
) -> "Engine":
    """See localoss.load."""
    folder = find_model(str(model))
    prepare_kernels()
    from localoss.engine.engine import Engine  # only now: Numba reads its cache folder when it sees a kernel
    from localoss.engine.warmup import warm_up

    dtypes, config = read_manifest(folder).dtypes, read_config(folder / "config.json")
    _check_options(config, context_tokens, kv_dtype, activations, chunk_tokens)
    on_gpu = layer_number(gpu_layers, config)
    exact, threads = activations == "f32", usable_threads(threads, config)
    plan = Plan(
        config,
        dtypes,
        kv_dtype=kv_dtype,
        conversations=conversations,
        threads=threads,
        chunk_tokens=chunk_tokens,
        exact=exact,
        lookup=lookup,
    )
    limit_bytes = this_machine().limit_bytes if memory_limit is None else memory_limit
    tell = notice or (lambda line: None)

    def sized(plan: Plan) -> Plan:
        if context_tokens is not None:
            return replace(plan, context_tokens=context_tokens)
        return choose_context(plan, limit_bytes, prompt_tokens, must_fit)

    def start(plan: Plan, device: Device | None = None) -> "Engine":
        slow = check(plan, limit_bytes, must_fit)
        if slow:
            tell(slow)
        return Engine(
            folder,
            context_tokens=plan.context_tokens,
            threads=threads,
            kv_dtype=kv_dtype,
            activations=activations,
            chunk_tokens=chunk_tokens,
            conversations=conversations,
            gpu=(device, plan.gpu_layers) if device else None,
            uploaded=uploading or (lambda done, total: None),
            notice=tell,
        )

    engine = None
    if gpu_layers:
        try:
            device = open_gpu()
            wanted = sized(replace(plan, gpu_layers=on_gpu))
            engine = start(fit_gpu(wanted, gpu_layers, gpu_memory, device.adapter), device)
        except GpuError as error:
            tell(f"no layers on a GPU: {error}; the CPU runs them all")
    engine = engine or start(sized(plan))
    engine.lookup = lookup
    with kernels.telling_compiled(compiling or (lambda name: None)):
        warm_up(kv_dtype, exact, engine.threads)
    return engine


def prepare_kernels() -> None:
    settings.let_threads_sleep()
    kernels.keep_compiled_in(settings.kernel_cache(), settings.simd() or "best")


def _check_options(
    config: ModelConfig, context_tokens: int | None, kv_dtype: str, activations: str, chunk_tokens: int
) -> None:
    if activations not in ("int8", "f32"):
        raise UsageError(f"activations is {activations!r}; use int8 (fast) or f32 (exact, slower)")
    if kv_dtype not in KV_DTYPES:
        raise UsageError(f"kv_dtype is {kv_dtype!r}; use {', '.join(KV_DTYPES)}")
    if chunk_tokens < 1:
        raise UsageError(f"chunk_tokens is {chunk_tokens}; use 1 or more")
    if context_tokens is not None and not 0 < context_tokens <= config.context:
        raise UsageError(f"context_tokens is {context_tokens:,}; this model takes 1 to {config.context:,}")
