"""Layers of the CPU in one compiled call: what kernels.layers takes, put together once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from localoss.kernels import attention
from localoss.kernels import layers as kernels
from localoss.kernels.calls import entry_point
from localoss.kernels.layers import EntryPoints, Places, Shape
from localoss.model.buffers import Buffers
from localoss.model.kv_cache import KVCache
from localoss.model.rope import Rope
from localoss.model.stack import Rows
from localoss.model.weights import Layer, Weights, address
from localoss.plan.sizes import KEYS_AT_ONCE
from quant.format.config import ModelConfig


class KernelCaller(Protocol):
    """What calls kernels by its attribute."""

    kernels: Any


class AtOnce:
    """Tables of a model's layers, and its kernels by address.

    A kernel has an address for each form of its arguments, which is there once it was called with them: so a
    first pass over caches of a type is run kernel by kernel, while this listens.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        rope: Rope,
        buffers: Buffers,
        numbers: tuple[np.float32, ...],
        expert_buffers: tuple[int, ...],
    ) -> None:
        """numbers: the norms' eps, SwiGLU's alpha and limit."""
        self._entries: dict[str, tuple[int, ...]] = {}  # EntryPoints by the type of caches
        self._layers = np.array(
            [
                _layer_fields(layer, config.sliding_window if is_sliding else 0)
                for layer, is_sliding in zip(weights.layers, config.is_sliding, strict=True)
            ],
            np.int64,
        )
        firsts, within = rope.offsets
        scratch = buffers.attention_scratch
        self._fixed = (
            tuple(
                Shape(
                    heads=config.heads,
                    kv_heads=config.kv_heads,
                    head_dim=config.head_dim,
                    experts=config.experts,
                    blocks=len(firsts),
                    block=KEYS_AT_ONCE,
                    threads=len(scratch),
                    scratch=scratch.shape[1],
                )
            ),
            tuple(
                Places(
                    qkv=buffers.at.qkv,
                    qkv_bytes=buffers.qkv.strides[0],
                    out=buffers.at.blocks,
                    first_angles=address(firsts),
                    within=address(within),
                    scratch=address(scratch),
                    counter=buffers.at.counter,
                )
            ),
            (weights.gate_up, weights.down),
            numbers,
            expert_buffers,
            buffers.work,
        )

    def is_ready(self, cache: KVCache) -> bool:
        return cache.kv_dtype in self._entries

    @contextmanager
    def listening(self, caller: KernelCaller, cache: KVCache) -> Iterator[None]:
        """Meanwhile note what `caller` gives its kernels; afterwards this is ready for such caches."""
        called, before = dict[str, tuple[Any, ...]](), caller.kernels

        def noted(name: str) -> Any:
            def call(*arguments: Any) -> Any:
                called[name] = arguments
                return getattr(before, name)(*arguments)

            return call

        caller.kernels = SimpleNamespace(**{name: noted(name) for name in EntryPoints._fields})
        try:
            yield
        finally:
            caller.kernels = before
        entries = {name: entry_point(getattr(before, name), given) for name, given in called.items()}
        self._entries[cache.kv_dtype] = tuple(EntryPoints(**entries))

    def sequences(self, rows: Sequence[Rows]) -> NDArray[np.int64]:
        """What kernels.layers wants to know of each sequence; good for as long as `rows` are there."""
        return np.array(
            [
                (r.first, r.tokens, r.position, address(r.cos), address(r.sin), r.cache.at_places)
                for r in rows
            ],
            np.int64,
        )

    def run(
        self, x: int, tokens: int, span: tuple[int, int], sequences: NDArray[np.int64], cache: KVCache
    ) -> None:
        """Bring the rows from address `x` on through layers span[0] to span[1] - 1. cache: one of theirs."""
        entries, attending = self._entries[cache.kv_dtype], attention.routines(cache.kv_dtype)
        kernels.run_layers(
            entries, attending, x, tokens, span, self._layers, sequences, cache.numbers, *self._fixed
        )


def _layer_fields(layer: Layer, window: int) -> tuple[int, ...]:
    """A row of kernels.layers' table."""
    return (
        layer.attention_norm,
        *layer.qkv.tiles,
        address(layer.key_bias),
        address(layer.sinks),
        *layer.output.tiles,
        layer.mlp_norm,
        *layer.router.tiles,
        address(layer.router_bias),
        address(layer.expert_runs),
        window,
    )
