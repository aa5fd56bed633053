"""gpt-oss's forward pass: the residual stream of some tokens through all layers, to logits.

T tokens, D hidden, H heads, K key/value heads, E experts, A active experts per token, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from localoss.errors import Cancelled
from localoss.gpu.span import GpuSpan
from localoss.kernels import layer as kernels
from localoss.kernels import use_threads
from localoss.kernels.products import BF16
from localoss.model.kv_cache import KVCache
from localoss.model.rope import Rope
from localoss.model.weights import Layer, Weights, address
from localoss.plan.sizes import buffer_sizes
from quant.format.config import SWIGLU_ALPHA, ModelConfig

F32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence to run: tokens[i] is at position + i of the conversation whose cache this is."""

    tokens: Sequence[int]
    position: int
    cache: KVCache


class _Part(NamedTuple):
    """A chunk in a forward pass. Made once, not in each layer: Python's time is the memory's idle time."""

    out: F32Array  # (H * head_dim / 32, all tokens, 32): what attention gives
    first: int  # the chunk's first token in `out`
    qkv: F32Array  # of the chunk's tokens
    cos: F32Array
    sin: F32Array
    position: int
    cache: KVCache


class Buffers:
    """What a forward pass of up to `tokens` tokens writes on its way, allocated once: sizes.buffer_sizes.

    `at` has the address of each array: asking NumPy for one takes as long as calling a kernel.
    """

    x: F32Array  # (tokens, D): the residual stream
    qkv: F32Array
    blocks: F32Array
    router_logits: F32Array
    expert_ids: NDArray[np.int32]
    expert_weights: F32Array
    starts: NDArray[np.int64]
    active: NDArray[np.int32]
    sources: NDArray[np.int32]
    places: NDArray[np.int32]
    in_order: NDArray[np.int32]
    gathered: F32Array  # (D/32, pairs, 32) in exact arithmetic: what the experts are given
    h: NDArray[np.generic]  # (I/32, pairs, 32): float32 in exact arithmetic, else int8
    attention_scratch: F32Array

    def __init__(self, config: ModelConfig, tokens: int, threads: int, exact_experts: bool):
        sizes = buffer_sizes(config, tokens, threads, exact_experts)
        # Written to, not np.empty: the system gives memory at the first write, and none may come later.
        arrays = {name: np.full(size.shape, 0, size.dtype) for name, size in sizes.items()}
        vars(self).update(arrays)
        self.tokens = tokens
        self.in_order[:] = np.arange(tokens)
        self.nbytes = sum(array.nbytes for array in arrays.values())
        self.at = SimpleNamespace(**{name: address(array) for name, array in arrays.items()})


class Model:
    """The weights, and the forward pass over them. One at a time: it owns its buffers.

    `gpu` has the last layers, if there is one; take it away, and all of them run on the CPU.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        threads: int,
        exact: bool,
        max_tokens: int,
        gpu: GpuSpan | None = None,
    ):
        self.config, self.weights, self.gpu = config, weights, gpu
        self.threads, self.exact = threads, exact
        self.rope = Rope(config)
        self.buffers = Buffers(config, max_tokens, threads, exact or weights.gate_up[0] == BF16)
        b = self.buffers
        workers = (threads, b.at.scratch, b.at.counter)
        self._work = (workers, exact, b.at.blocks, b.at.codes, b.at.scales, b.in_order)
        self._expert_buffers = (
            b.router_logits,
            b.expert_ids,
            b.expert_weights,
            b.starts,
            b.sources,
            b.places,
            b.active,
            b.at.gathered,
            b.at.h,
            b.at.h_scales,
            b.at.y,
        )
        self._eps = np.float32(config.rms_norm_eps)
        self._swiglu = np.float32(SWIGLU_ALPHA), np.float32(config.swiglu_limit)

    def forward(self, chunks: Sequence[Chunk], cancelled: Callable[[], bool] = lambda: False) -> F32Array:
        """Run all tokens of `chunks` through the layers and write their caches.

        Gives the residual stream after the last layer, (T, D) f32, chunk after chunk: a view that the next
        call overwrites. Raises: Cancelled between two layers; GpuError.
        """
        use_threads(self.threads)
        tokens = sum(len(chunk.tokens) for chunk in chunks)
        x = self.buffers.x[:tokens]
        self._embed(x, [token for chunk in chunks for token in chunk.tokens])
        parts = self._parts(tokens, chunks)
        on_cpu = self.gpu.first if self.gpu else self.config.layers
        for index, layer in enumerate(self.weights.layers[:on_cpu]):
            if cancelled():
                raise Cancelled("stopped")
            self._attention(tokens, layer, index, parts)
            self._experts(tokens, layer)
        if self.gpu:
            for part in parts:
                rows, at = x[part.first : part.first + len(part.qkv)], (part.cos, part.sin)
                rows[:] = self.gpu.forward(rows, part.position, part.cache.gpu_layers, at, cancelled)
        return x

    def _parts(self, tokens: int, chunks: Sequence[Chunk]) -> list[_Part]:
        """Where each of `chunks`, with `tokens` tokens in all, lies in the buffers."""
        out = self.buffers.blocks[: tokens * self.config.q_rows].reshape(-1, tokens, 32)
        parts, first = [], 0
        for chunk in chunks:
            count = len(chunk.tokens)
            qkv, angles = self.buffers.qkv[first : first + count], self.rope.at(chunk.position, count)
            parts.append(_Part(out, first, qkv, *angles, chunk.position, chunk.cache))
            first += count
        return parts

    def next_logits(
        self, chunk: Chunk, cancelled: Callable[[], bool] = lambda: False, out: F32Array | None = None
    ) -> F32Array:
        """Run the tokens of `chunk`; give the logits (1, V) f32 after the last. `out`: as for logits.

        Raises: as forward.
        """
        if not self.gpu or not self.gpu.unembeds:
            return self.logits(self.forward([chunk], cancelled)[-1:], out)
        x = self.buffers.x[: len(chunk.tokens)]
        self._embed(x, list(chunk.tokens))
        at = self.rope.at(chunk.position, len(x))
        return self.gpu.forward(x, chunk.position, chunk.cache.gpu_layers, at, cancelled, wants_logits=True)

    def logits(self, x: F32Array, out: F32Array | None = None) -> F32Array:
        """Final norm and unembedding of rows x (n, D) of a forward pass: (n, V) f32.

        A view of `out` (n, ≥ V rounded up to 8) if given: fresh memory costs a token 0.2 ms of page faults.
        Raises: GpuError.
        """
        unembedding = self.weights.unembedding
        x = np.ascontiguousarray(x)
        if out is None:
            out = np.empty((len(x), unembedding.rows), np.float32)
        if self.gpu and self.gpu.unembeds:
            self.gpu.logits(x, out)
            return out[:, : self.config.vocab]
        step = self.buffers.tokens
        for first in range(0, len(x), step):
            rows = x[first : first + step]
            kernels.norm_and_multiply(
                address(out[first : first + step]),
                address(rows),
                self.weights.final_norm,
                self._eps,
                unembedding.tiles,
                len(rows),
                self._work,
            )
        return out[:, : self.config.vocab]

    def _embed(self, x: F32Array, tokens: list[int]) -> None:
        """Write the embedding of each token to x (T, D)."""
        rows = self.weights.embedding[tokens]
        if self.weights.embedding_scales is None:
            x.view(np.uint32)[:] = rows.astype(np.uint32) << 16
        else:
            scales = self.weights.embedding_scales[tokens].view(np.float16).astype(np.float32)
            np.multiply(
                rows.reshape(len(tokens), -1, 32), scales[:, :, None], out=x.reshape(len(tokens), -1, 32)
            )

    def _attention(
        self,
        tokens: int,
        layer: Layer,
        index: int,
        parts: list[_Part],
    ) -> None:
        """x += output(attention(qkv(norm(x)))); each chunk attends to its own cache."""
        b, work = self.buffers, self._work
        kernels.norm_and_multiply(
            b.at.qkv, b.at.x, layer.attention_norm, self._eps, layer.qkv.tiles, tokens, work
        )
        window = self.config.sliding_window if self.config.is_sliding[index] else 0
        for out, first, qkv, cos, sin, position, cache in parts:
            kernels.attend(
                out,
                first,
                qkv,
                cache.layers[index].arrays,
                cos,
                sin,
                layer.sinks,
                position,
                window,
                b.attention_scratch,
                b.at.counter,
            )
        kernels.multiply(b.at.x, layer.output.tiles, tokens, True, work)

    def _experts(self, tokens: int, layer: Layer) -> None:
        """x += Σ weight * expert(norm(x)) over each token's active experts."""
        norm = (layer.mlp_norm, self._eps)
        experts = (self.weights.gate_up, self.weights.down, layer.expert_runs, *self._swiglu)
        kernels.mixture_of_experts(
            self.buffers.at.x,
            norm,
            layer.router.tiles,
            layer.router_bias,
            experts,
            self._expert_buffers,
            tokens,
            self._work,
        )
