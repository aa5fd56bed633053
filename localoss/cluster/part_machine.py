"""What a machine does for a model that is spread: it has some of the layers, and their KV caches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from localoss import __version__
from localoss.cluster.models import Source, located_part
from localoss.cluster.placement import Room
from localoss.cluster.remote_layers import CHUNK_TOKENS, PartRows
from localoss.cluster.worker import Loaded, fetching
from localoss.errors import LocalossError
from localoss.model.stack import Array, F32Array, Rows
from localoss.plan.memory import Plan


@dataclass(frozen=True)
class Offer:
    """What a machine has for layers. version: of localoss there."""

    version: str
    room: Room


class PartMachine:
    """An actor: some layers of a model. Calls come one at a time, in the order in which they were made."""

    def __init__(self, source: Source, files: str | None, memory_limit: int | None = None) -> None:
        """files: the name of the actor with the head's files. memory_limit: bytes; None for what is free."""
        self._source, self._fetch, self._limit = source, fetching(files), memory_limit
        self._caches: dict[int, Any] = {}
        self._stack: Any = None
        self._weights: Any = None
        self._buffers: Any = None

    def offer(self, name: str) -> Offer:
        from localoss.plan.machine import this_machine
        from localoss.plan.speed import known_bandwidth

        machine = this_machine()
        limits = machine.limit_bytes, machine.cache_limit_bytes
        if self._limit is not None:
            limits = self._limit, self._limit
        return Offer(__version__, Room(name, *limits, known_bandwidth()))

    def load(self, first: int, plan: Plan, threads: int | None) -> Loaded:
        """Load the layers from `first` on that `plan` is of."""
        try:
            self._load(first, plan, threads)
        except (LocalossError, OSError, MemoryError) as error:
            return Loaded(__version__, str(error) or type(error).__name__)
        return Loaded(__version__)

    def _load(self, first: int, plan: Plan, threads: int | None) -> None:
        from localoss import settings
        from localoss.engine.loader import usable_threads

        settings.let_threads_sleep()
        from localoss.engine.warmup import KernelForm, warm_up
        from localoss.kernels.products import BF16
        from localoss.model.buffers import Buffers

        self._caches.clear()
        self._stack = self._weights = self._buffers = None  # those of an earlier share
        folder = located_part(self._source, self._fetch, first, plan.config.layers)
        self._threads = usable_threads(threads, plan.config)
        warm_up(KernelForm(plan.kv_dtype, plan.exact), self._threads)
        stack, weights = self._layers(folder, first, plan), self._weights
        exact_experts = plan.exact or weights.gate_up[0] == BF16
        tokens = min(CHUNK_TOKENS, plan.context_tokens)
        buffers = Buffers(plan.config, tokens, self._threads, plan.exact, exact_experts)
        self._buffers, self._config = buffers, plan.config
        self._stack = stack(buffers)

    def _layers(self, folder: Path, first: int, plan: Plan) -> Any:
        """Map or read the weights; gives what makes the layers of them once there are buffers."""
        from localoss.model.cpu_layers import CpuLayers
        from localoss.model.expert_cache import ExpertCache
        from localoss.model.rope import Rope
        from localoss.model.streamed_layers import ExpertFiles, StreamedLayers
        from localoss.model.weights import load_weights, read_dense_weights

        config, dtypes = plan.config, plan.dtypes
        if not plan.expert_slots:
            self._weights = weights = load_weights(folder, config, dtypes, first)
            return lambda buffers: CpuLayers(config, weights, Rope(config), buffers, 0, config.layers)
        table = np.zeros((config.layers, config.experts), np.int64)
        self._weights = dense = read_dense_weights(folder, config, dtypes, table, first)
        files = ExpertFiles(folder, config.layers, first=first)
        cache = ExpertCache(table, plan.expert_slots, dense.expert_bytes, files)
        return lambda buffers: StreamedLayers(config, dense, Rope(config), buffers, cache)

    def new_caches(self, key: int, slots: Sequence[int], kv_dtype: str) -> None:
        from localoss.model.kv_cache import LayerCaches

        layers = [] if not slots else self._stack.new_caches(slots, kv_dtype)
        self._caches[key] = LayerCaches(layers, kv_dtype)

    def free(self, key: int) -> None:
        self._caches.pop(key, None)

    def run(self, x: F32Array, rows: Sequence[PartRows]) -> F32Array:
        """The residual stream x (T, D) of `rows` after these layers."""
        from localoss.kernels import use_threads

        use_threads(self._threads)
        mine = self._buffers.x[: len(x)]
        mine[:] = x
        first, parts = 0, []
        for row in rows:
            cache = cast(Any, self._caches[row.key])
            # Ray's arrays can't be written, for which kernels would be compiled anew.
            angles = np.array(row.cos), np.array(row.sin)
            parts.append(Rows(first, row.tokens, row.position, *angles, cache))
            first += row.tokens
        self._stack.forward(mine, parts, lambda: False)
        return np.array(mine)

    def read(self, key: int, layer: int, first: int, end: int) -> list[Array]:
        return list(self._caches[key].layers[layer].read(first, end))

    def write(self, key: int, layer: int, first: int, saved: list[Array]) -> None:
        self._caches[key].layers[layer].write(first, saved)

    def copy(self, key: int, other: int, layer: int, end: int) -> None:
        self._caches[key].layers[layer].copy(self._caches[other].layers[layer], end)

    def ping(self) -> bool:
        return True

    def echo(self, x: F32Array, rows: Sequence[PartRows]) -> F32Array:
        """What a call of `run` costs by itself: docs/cluster.md's measurement."""
        return np.array(x)
