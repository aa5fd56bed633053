"""Layers that this machine's cores run, out of weights that are mapped into memory."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from localoss.errors import Cancelled
from localoss.kernels import attention
from localoss.kernels import layer as kernels
from localoss.model.at_once import AtOnce
from localoss.model.buffers import Buffers
from localoss.model.kv_cache import LayerCache
from localoss.model.rope import Rope
from localoss.model.stack import ExpertRunner, F32Array, LayerCaching, Rows
from localoss.model.weights import Layer, Weights, address
from quant.format.config import SWIGLU_ALPHA, ModelConfig


class RowChunk(NamedTuple):
    """As many rows of a pass's residual stream as the buffers take at once.

    x: address of the first. rows: of each sequence among them, `first` counted from there. qkv: a view for
    each of these. out (H * head_dim / 32, tokens, 32) f32: what attention gives. adapted: those of `rows`
    that have an adapter. sets (tokens,) i32: the number of each token's adapters or -1; None for none at all.
    """

    x: int
    tokens: int
    rows: Sequence[Rows]
    qkv: list[F32Array]
    out: NDArray[Any]
    adapted: Sequence[Rows]
    sets: NDArray[np.int32] | None


class CpuLayers:
    """Layers `first` to first + count - 1 on the CPU: a LayerStack. One at a time: it works in `buffers`."""

    unembeds = False  # Model does it, on the CPU as well
    attention_of = staticmethod(attention.routines)  # what `attend` calls, by the type of caches
    acts_between = False  # whether a class that inherits does something between the kernels of a layer
    # Told each layer's index, the row of the pass at which these begin, and (T, A) i32 ids of experts.
    routed: Callable[[int, int, NDArray[np.int32]], None] | None = None
    passed: Callable[[int], None] | None = None  # told of how many layers a pass is through, one by one

    def __init__(
        self, config: ModelConfig, weights: Weights, rope: Rope, buffers: Buffers, first: int, count: int
    ):
        self.kernels: Any = kernels  # profiling puts a timed namespace here
        self.config, self.weights, self.buffers = config, weights, buffers
        self.first, self.count = first, count
        self.expert_counts: NDArray[np.int64] | None = None  # (layers, experts), where somebody counts
        b = buffers
        self._work = b.work
        self._expert_buffers = tuple(
            kernels.ExpertBuffers(
                experts=config.experts,
                active_experts=config.active_experts,
                logits=b.at.router_logits,
                ids=b.at.expert_ids,
                weights=b.at.expert_weights,
                starts=b.at.starts,
                sources=b.at.sources,
                places=b.at.places,
                active=b.at.active,
                gathered=b.at.gathered,
                h=b.at.h,
                h_scales=b.at.h_scales,
                y=b.at.y,
            )
        )
        self._offsets = rope.offsets
        self._eps = np.float32(config.rms_norm_eps)
        self._swiglu = np.float32(SWIGLU_ALPHA), np.float32(config.swiglu_limit)
        numbers = (self._eps, *self._swiglu)
        self._at_once = AtOnce(config, weights, rope, buffers, numbers, self._expert_buffers)

    def new_caches(self, slots: Sequence[int], kv_dtype: str) -> list[LayerCache]:
        return [LayerCache(self.config, count, kv_dtype) for count in slots]

    def try_out(self, caches: Sequence[LayerCaching]) -> None:
        """Its kernels were compiled and called before: see engine/warmup.py."""

    def forward(self, x: F32Array, rows: Sequence[Rows], cancelled: Callable[[], bool]) -> None:
        """See LayerStack; `x` is the first rows of buffers.x. More rows than the other buffers take go
        through each layer in chunks.
        """
        chunks = self._chunks(rows)
        if len(chunks) == 1 and self._needs_no_look(chunks[0]):
            if self._at_once.is_ready(rows[0].cache):
                self._run_at_once(chunks[0], cancelled)
                return
            with self._at_once.listening(self, rows[0].cache):
                self._run_one_by_one(chunks, cancelled)
        else:
            self._run_one_by_one(chunks, cancelled)

    def _needs_no_look(self, chunk: RowChunk) -> bool:
        """Whether nothing has to be done between the kernels of a layer."""
        is_watched = self.routed is not None or self.expert_counts is not None or self.kernels is not kernels
        return not (self.acts_between or chunk.adapted or is_watched)

    def _run_at_once(self, chunk: RowChunk, cancelled: Callable[[], bool]) -> None:
        """All layers in one compiled call; one by one for a prompt, which takes long enough to be stopped."""
        step = self.count if chunk.tokens == len(chunk.rows) else 1
        sequences = self._at_once.sequences(chunk.rows)
        for index in range(self.first, self.first + self.count, step):
            if cancelled():
                raise Cancelled("stopped")
            span = index, min(index + step, self.first + self.count)
            self._at_once.run(chunk.x, chunk.tokens, span, sequences, chunk.rows[0].cache)

    def _run_one_by_one(self, chunks: list[RowChunk], cancelled: Callable[[], bool]) -> None:
        """Kernel after kernel, for what has to know of what happens between them, and for many chunks."""
        for index in range(self.first, self.first + self.count):
            for chunk in chunks:
                if cancelled():
                    raise Cancelled("stopped")
                self._attention(index, chunk)
                if len(chunks) > 1 and self.config.is_sliding[index]:
                    for part in chunk.rows:  # the next chunks take their rings' places
                        part.cache.keep_windows(index, part.position, part.position + part.tokens)
                count = self._route(index, chunk)
                if self.routed:
                    first = (chunk.x - self.buffers.at.x) // self.buffers.x.strides[0]
                    self.routed(index, first, self.buffers.expert_ids[: chunk.tokens])
                self._run_experts(index, chunk, count)
            if self.passed:
                self.passed(index + 1)

    def lend(self, cores: ExpertRunner) -> None:
        """It runs its experts itself."""

    def run_chosen(self, index: int, ids: NDArray[np.int32], weights: F32Array, x: F32Array) -> None:
        """See ExpertRunner; of no more tokens than the buffers take, and on threads that use_threads set."""
        b, tokens = self.buffers, len(x)
        b.expert_ids[:tokens], b.expert_weights[:tokens] = ids, weights
        layer, chunk = self.weights.layers[index], RowChunk(address(x), tokens, (), [], b.blocks, (), None)
        norm, columns = (layer.mlp_norm, self._eps), self.config.hidden
        count = self.kernels.take_choices(chunk.x, norm, columns, self._expert_buffers, tokens, self._work)
        self._run_experts(index, chunk, count)

    def figures(self) -> dict[str, Any] | None:
        return None

    def replacement(self) -> None:
        """It is never lost."""

    def close(self) -> None:
        """Nothing to give back: the weights are mapped files, and the buffers are the model's."""

    def next_logits(self, x: F32Array, rows: Rows, cancelled: Callable[[], bool]) -> F32Array:
        raise AssertionError("it has no unembedding")

    def logits(self, x: F32Array, out: F32Array) -> None:
        raise AssertionError("it has no unembedding")

    def _chunks(self, rows: Sequence[Rows]) -> list[RowChunk]:
        """`rows`, which begin at row 0, cut where the buffers end."""
        most, chunks, first = self.buffers.tokens, [], 0
        if rows[-1].first + rows[-1].tokens <= most:
            return [self._chunk(0, rows)]
        taken: list[Rows] = []
        for part in rows:
            done = 0
            while done < part.tokens:
                at = part.first + done - first  # in this chunk
                here = min(most - at, part.tokens - done)
                angles = part.cos[done : done + here], part.sin[done : done + here]
                taken.append(Rows(at, here, part.position + done, *angles, part.cache, part.adapter))
                done += here
                if at + here == most:
                    chunks.append(self._chunk(first, taken))
                    first, taken = first + most, []
        return [*chunks, self._chunk(first, taken)] if taken else chunks

    def _chunk(self, first: int, rows: Sequence[Rows]) -> RowChunk:
        """Rows `first` and following of the residual stream."""
        b, tokens = self.buffers, rows[-1].first + rows[-1].tokens
        qkv = [b.qkv[part.first : part.first + part.tokens] for part in rows]
        out = b.blocks[: tokens * self.config.q_rows].reshape(-1, tokens, 32)
        adapted = [part for part in rows if part.adapter]
        sets = None
        if adapted:
            sets = np.full(tokens, -1, np.int32)
            for part in adapted:
                assert part.adapter
                sets[part.first : part.first + part.tokens] = part.adapter.number
        return RowChunk(b.at.x + b.x.strides[0] * first, tokens, rows, qkv, out, adapted, sets)

    def _attention(self, index: int, chunk: RowChunk) -> None:
        """x += output(attention(qkv(norm(x)))); each sequence attends to its own cache."""
        b, work, layer = self.buffers, self._work, self.weights.layers[index]
        x, tokens = chunk.x, chunk.tokens
        self.kernels.norm_and_multiply(
            b.at.qkv, x, layer.attention_norm, self._eps, layer.qkv.tiles, tokens, work
        )
        if chunk.adapted:
            self._adapt("qkv", index, chunk, b.at.qkv, b.qkv.strides[0])
        window = self.config.sliding_window if self.config.is_sliding[index] else 0
        offsets = (layer.key_bias, *self._offsets)
        for part, its_qkv in zip(chunk.rows, chunk.qkv, strict=True):
            self.kernels.attend(
                chunk.out,
                part.first,
                its_qkv,
                part.cache.layers[index].arrays,  # type: ignore[attr-defined]  # made by new_caches
                (part.cos, part.sin),
                offsets,
                layer.sinks,
                part.position,
                window,
                b.attention_scratch,
                b.at.counter,
                self.attention_of(part.cache.kv_dtype),
            )
        self.kernels.multiply(x, layer.output.tiles, tokens, True, work)
        if chunk.adapted:
            self._adapt("output", index, chunk, x, b.x.strides[0])

    def _adapt(self, matrix: str, index: int, chunk: RowChunk, out: int, row_bytes: int) -> None:
        """Add what adapters add to a product with `matrix` of LayerFactors, whose input is in blocks."""
        for part in chunk.adapted:
            assert part.adapter and self.weights.adapters
            if factors := getattr(part.adapter.layers[index], matrix):
                rows = part.first, part.tokens, chunk.tokens
                between = self.weights.adapters.at_between
                self.kernels.add_low_rank(out, row_bytes, factors, self.buffers.at.blocks, rows, between)

    def _route(self, index: int, chunk: RowChunk) -> int:
        """Choose each token's experts; gives how many have tokens: the first of buffers.active.

        What needs to know the experts before they run, such as a cache of them, goes between this and
        _run_experts.
        """
        layer: Layer = self.weights.layers[index]
        norm, buffers, tokens = (layer.mlp_norm, self._eps), self._expert_buffers, chunk.tokens
        count: int
        if chunk.adapted and any(p.adapter and p.adapter.layers[index].router for p in chunk.adapted):
            logits = self.buffers.router_logits
            self.kernels.score_experts(chunk.x, norm, layer.router.tiles, buffers, tokens, self._work)
            self._adapt("router", index, chunk, self.buffers.at.router_logits, logits.strides[0])
            count = self.kernels.choose(layer.router.tiles[4], layer.router_bias, buffers, tokens)
        else:
            router = layer.router.tiles, layer.router_bias
            count = self.kernels.route(chunk.x, norm, *router, buffers, tokens, self._work)
        if self.expert_counts is not None:
            ids = self.buffers.expert_ids[: chunk.tokens].reshape(-1)
            self.expert_counts[index] += np.bincount(ids, minlength=self.config.experts)
        return count

    def _run_experts(self, index: int, chunk: RowChunk, count: int) -> None:
        """x += Σ weight * expert(norm(x)) over each token's experts, `count` different ones: see _route."""
        self._run_some(index, chunk, (0, count, count))

    def _run_some(self, index: int, chunk: RowChunk, which: tuple[int, int, int]) -> None:
        """A part of them, which: see kernels.run_experts."""
        runs = self.weights.layers[index].expert_runs
        experts = (self.weights.gate_up, self.weights.down, runs, *self._swiglu)
        factors = None
        if chunk.sets is not None:
            assert self.weights.adapters
            factors = self.weights.adapters.for_experts(index, chunk.sets)
        buffers = self._expert_buffers
        self.kernels.run_experts(chunk.x, experts, buffers, which, chunk.tokens, self._work, factors)
