"""From a model's name to a loaded engine: compiled kernels are found or made, options checked."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from localoss import kernels, settings
from localoss.errors import GpuError, UsageError
from localoss.gpu.choice import asked_for, fit_gpu, open_gpu
from localoss.hub.registry import find_model
from localoss.options import Listener, LoadOptions
from localoss.plan.disk import known
from localoss.plan.experts import notice, with_cache
from localoss.plan.machine import this_machine, usual_threads
from localoss.plan.memory import Plan, check, chosen
from quant.format.config import ModelConfig, read_config
from quant.format.manifest import Dtypes, read_manifest

if TYPE_CHECKING:
    from localoss.engine.engine import Engine
    from localoss.gpu.device import Device
    from localoss.gpu.layers import GpuLayers
    from localoss.model.adapters import Adapters
    from localoss.model.stack import LayerStack
    from localoss.model.weights import Weights

_TINY = 1 << 20  # weights of a matrix: with fewer, threads take longer to meet than to multiply


def usable_threads(asked: int | None, config: ModelConfig | None = None) -> int:
    """How many threads to run kernels on; by default one per core, or as many as a container's processor
    quota is for if that is less, and one for a tiny model.

    Raises: UsageError for too many.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = min(cpus, kernels.most_threads())
    if asked is None and config and config.hidden * config.intermediate < _TINY:
        return 1
    if asked is None:
        return min(usual_threads(), most)
    if not 1 <= asked <= most:
        raise UsageError(f"threads is {asked}; this machine can run 1 to {most}")
    return asked


def load_engine(model: str | Path, options: LoadOptions, listener: Listener) -> "Engine":
    """See localoss.load."""
    folder = find_model(str(model))
    settings.let_threads_sleep()

    dtypes = read_manifest(folder).dtypes  # first: it tells a folder that is no model at all
    config = read_config(folder / "config.json")
    asked = options.context_tokens
    if asked is not None and not 0 < asked <= config.context:
        raise UsageError(f"context_tokens is {asked:,}; this model takes 1 to {config.context:,}")
    options = replace(options, threads=usable_threads(options.threads, config))
    on_gpu = asked_for(Plan.of(config, dtypes, options), options)
    machine = this_machine()
    limits = machine.limit_bytes, machine.cache_limit_bytes
    if options.memory_limit is not None:
        limits = options.memory_limit, options.memory_limit
    adapters = _adapters(folder, options) if options.adapters else None
    loading = _Loading(folder, config, dtypes, limits, options, listener, adapters)
    engine = loading.on_gpu(on_gpu) if options.uses_a_device else None
    plan = Plan.of(config, dtypes, options)
    if adapters:
        plan = replace(plan, adapter_bytes=adapters.nbytes)
    return engine or loading.engine(loading.sized(plan))


def _adapters(folder: Path, options: LoadOptions) -> "Adapters":
    from localoss.model.adapters import open_adapters

    return open_adapters(options.adapters, folder, options.chunk_tokens)


@dataclass(frozen=True)
class _Loading:
    """What is known of a model once its folder was read."""

    folder: Path
    config: ModelConfig
    dtypes: Dtypes
    limits: tuple[int, int]  # bytes that the model may take, and with a cache of experts
    options: LoadOptions
    listener: Listener
    adapters: "Adapters | None"

    @property
    def limit_bytes(self) -> int:
        return self.limits[0]

    def sized(self, plan: Plan) -> Plan:
        """`plan` with the slots and the context that were asked for, or those to choose."""
        return chosen(plan, self.limit_bytes, self.options)

    def engine(self, plan: Plan, device: "Device | None" = None) -> "Engine":
        """Take the memory of `plan`. Raises: UsageError if it can't be had, GpuError."""
        from localoss.engine.engine import Engine
        from localoss.engine.warmup import KernelForm, warm_up
        from localoss.model.weights import load_weights

        slow = check(plan, self.limit_bytes, self.options)
        # First, and with a notice: buffers ask for addresses of kernels, and layers on a GPU try the cores.
        form = KernelForm(self.options.kv_dtype, self.options.is_exact, self.adapters is not None)
        warm_up(form, self.options.threads or 1, self.listener.compiling)
        options = replace(self.options, context_tokens=plan.context_tokens, slots=plan.slots)
        if cached := self._cached(plan, slow is not None):
            return self._streaming(cached, options)
        if slow:
            self.listener.notice(slow)
        weights = replace(load_weights(self.folder, self.config, self.dtypes), adapters=self.adapters)
        others: list[LayerStack] = [self._layers(device, plan, weights)] if device else []
        return Engine(self.config, self.dtypes, weights, options, others, self.listener)

    def _cached(self, plan: Plan, is_slow: bool) -> Plan | None:
        """`plan` with a cache of experts, if it is to have one. Raises: UsageError."""
        asked = self.options.expert_memory
        if plan.gpu_layers or asked == 0 or not (asked or is_slow):
            return None
        return with_cache(plan, self.limits[0 if asked else 1], asked)

    def _streaming(self, plan: Plan, options: LoadOptions) -> "Engine":
        """Take the memory of `plan`, which has a cache of experts."""
        import numpy as np

        from localoss.engine.engine import Engine
        from localoss.model.expert_cache import ExpertCache
        from localoss.model.streamed_layers import ExpertFiles, StreamedExperts
        from localoss.model.weights import read_dense_weights

        self.listener.notice(notice(plan, known(self.folder)))
        if options.lookup:
            self.listener.notice("--lookup is off: more tokens at once would want more experts from the disk")
        table = np.zeros((self.config.layers, self.config.experts), np.int64)
        try:
            weights = read_dense_weights(self.folder, self.config, self.dtypes, table)
            weights = replace(weights, adapters=self.adapters)
            files = ExpertFiles(self.folder, self.config.layers)
            cache = ExpertCache(table, plan.expert_slots, weights.expert_bytes, files)
        except MemoryError as error:
            raise UsageError(str(error)) from None
        options = replace(options, lookup=False)
        experts = StreamedExperts(cache, plan.pass_tokens)
        return Engine(self.config, self.dtypes, weights, options, (), self.listener, experts)

    def _layers(self, device: "Device", plan: Plan, weights: "Weights") -> "GpuLayers":
        from localoss.gpu.layers import GpuLayers

        return GpuLayers(
            device,
            self.config,
            self.dtypes,
            weights.tensors,
            (plan.gpu_layers, plan.gpu_expert_layers),
            replace(self.options, context_tokens=plan.context_tokens),
            self.listener.uploading,
        )

    def on_gpu(self, plan: Plan) -> "Engine | None":
        """An engine with the layers of `plan` on a GPU; None, and a line that says so, if there is none."""
        try:
            device = open_gpu()
            # Fitted twice: what the GPU holds leaves memory for slots and context; it has their caches, too.
            fitted = self.sized(fit_gpu(plan, self.options, device.adapter))
            return self.engine(fit_gpu(fitted, self.options, device.adapter), device)
        except GpuError as error:
            self.listener.notice(f"no layers on a GPU: {error}; the CPU runs them all")
            return None
