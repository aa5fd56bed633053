"""Layers that this machine's cores run, out of weights that are mapped into memory."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localoss.errors import Cancelled
from localoss.kernels import layer as kernels
from localoss.model.buffers import Buffers
from localoss.model.kv_cache import LayerCache
from localoss.model.stack import F32Array, LayerCaching, Rows
from localoss.model.weights import Layer, Weights
from quant.format.config import SWIGLU_ALPHA, ModelConfig


class CpuLayers:
    """Layers `first` to first + count - 1 on the CPU: a LayerStack. One at a time: it works in `buffers`."""

    unembeds = False  # Model does it, on the CPU as well

    def __init__(self, config: ModelConfig, weights: Weights, buffers: Buffers, first: int, count: int):
        self.kernels: Any = kernels  # profiling puts a timed namespace here
        self.config, self.weights, self.buffers = config, weights, buffers
        self.first, self.count = first, count
        b = buffers
        self._work = b.work
        self._expert_buffers = tuple(
            kernels.ExpertBuffers(
                logits=b.router_logits,
                ids=b.expert_ids,
                weights=b.expert_weights,
                starts=b.starts,
                sources=b.sources,
                places=b.places,
                active=b.active,
                gathered=b.at.gathered,
                h=b.at.h,
                h_scales=b.at.h_scales,
                y=b.at.y,
            )
        )
        self._eps = np.float32(config.rms_norm_eps)
        self._swiglu = np.float32(SWIGLU_ALPHA), np.float32(config.swiglu_limit)

    def new_caches(self, slots: Sequence[int], kv_dtype: str) -> list[LayerCache]:
        return [LayerCache(self.config, count, kv_dtype) for count in slots]

    def try_out(self, caches: Sequence[LayerCaching]) -> None:
        """Its kernels were compiled and called before: see engine/warmup.py."""

    def forward(self, x: F32Array, rows: Sequence[Rows], cancelled: Callable[[], bool]) -> None:
        """See LayerStack; `x` is the first rows of buffers.x."""
        tokens = len(x)
        out = self.buffers.blocks[: tokens * self.config.q_rows].reshape(-1, tokens, 32)
        qkv = [self.buffers.qkv[part.first : part.first + part.tokens] for part in rows]
        for index in range(self.first, self.first + self.count):
            if cancelled():
                raise Cancelled("stopped")
            self._attention(index, rows, qkv, out)
            self._run_experts(index, tokens, self._route(index, tokens))

    def figures(self) -> dict[str, Any] | None:
        return None

    def close(self) -> None:
        """Nothing to give back: the weights are mapped files, and the buffers are the model's."""

    def next_logits(self, x: F32Array, rows: Rows, cancelled: Callable[[], bool]) -> F32Array:
        raise AssertionError("it has no unembedding")

    def logits(self, x: F32Array, out: F32Array) -> None:
        raise AssertionError("it has no unembedding")

    def _attention(self, index: int, rows: Sequence[Rows], qkv: list[F32Array], out: NDArray[Any]) -> None:
        """x += output(attention(qkv(norm(x)))); each sequence attends to its own cache.

        qkv: of each of `rows`. out (H * head_dim / 32, all tokens, 32) f32: what attention gives.
        """
        b, work, layer = self.buffers, self._work, self.weights.layers[index]
        tokens = out.shape[1]
        self.kernels.norm_and_multiply(
            b.at.qkv, b.at.x, layer.attention_norm, self._eps, layer.qkv.tiles, tokens, work
        )
        window = self.config.sliding_window if self.config.is_sliding[index] else 0
        for part, its_qkv in zip(rows, qkv, strict=True):
            self.kernels.attend(
                out,
                part.first,
                its_qkv,
                part.cache.layers[index].arrays,  # type: ignore[attr-defined]  # made by new_caches
                part.cos,
                part.sin,
                layer.sinks,
                part.position,
                window,
                b.attention_scratch,
                b.at.counter,
            )
        self.kernels.multiply(b.at.x, layer.output.tiles, tokens, True, work)

    def _route(self, index: int, tokens: int) -> int:
        """Choose each token's experts; gives how many have tokens: the first of buffers.active.

        What needs to know the experts before they run, such as a cache of them, goes between this and
        _run_experts.
        """
        layer: Layer = self.weights.layers[index]
        count: int = self.kernels.route(
            self.buffers.at.x,
            (layer.mlp_norm, self._eps),
            layer.router.tiles,
            layer.router_bias,
            self._expert_buffers,
            tokens,
            self._work,
        )
        return count

    def _run_experts(self, index: int, tokens: int, count: int) -> None:
        """x += Σ weight * expert(norm(x)) over each token's experts, `count` different ones: see _route."""
        runs = self.weights.layers[index].expert_runs
        experts = (self.weights.gate_up, self.weights.down, runs, *self._swiglu)
        self.kernels.run_experts(self.buffers.at.x, experts, self._expert_buffers, count, tokens, self._work)
