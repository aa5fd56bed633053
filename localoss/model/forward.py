"""gpt-oss's forward pass: the residual stream of some tokens through all layers, to logits.

T tokens, D hidden, H heads, K key/value heads, E experts, A active experts per token, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localoss.errors import DeviceLost
from localoss.kernels import layer as kernels
from localoss.kernels import use_threads
from localoss.kernels.products import BF16
from localoss.model.adapters import AdapterSet
from localoss.model.buffers import Buffers
from localoss.model.cpu_layers import CpuLayers
from localoss.model.kv_cache import KVCache
from localoss.model.rope import Rope
from localoss.model.stack import F32Array, LayerStack, Rows
from localoss.model.streamed_layers import StreamedExperts, StreamedLayers
from localoss.model.weights import Weights, address
from quant.format.config import ModelConfig


@dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence to run: tokens[i] is at position + i of the sequence whose cache this is."""

    tokens: Sequence[int]
    position: int
    cache: KVCache
    adapter: AdapterSet | None = None


class Model:
    """The weights, and the forward pass over them. One at a time: it owns its buffers.

    `stacks` run the layers, one after the other: the CPU's first, then `others`, which begin where it ends.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        threads: int,
        exact: bool,
        max_tokens: int,
        others: Sequence[LayerStack] = (),
        experts: StreamedExperts | None = None,
    ):
        """exact: activations stay float32. max_tokens: of a forward pass, of all its sequences together.
        experts: where they come from if they aren't mapped, and of how many tokens passes are then.
        """
        self.kernels: Any = kernels  # profiling puts a timed namespace here
        self.config, self.weights = config, weights
        self.threads, self.exact = threads, exact
        self.rope = Rope(config)
        exact_experts = exact or weights.gate_up[0] == BF16
        self.pass_tokens = max(max_tokens, experts.pass_tokens) if experts else max_tokens
        self.buffers = Buffers(config, max_tokens, threads, exact, exact_experts, self.pass_tokens)
        self.waiting = 0
        self._eps = np.float32(config.rms_norm_eps)
        self.experts = experts.cache if experts else None
        on_cpu = others[0].first if others else config.layers
        cpu: list[LayerStack] = [self._cpu_layers(0, on_cpu)] if on_cpu else []
        if experts:
            assert not others
            cpu = [StreamedLayers(config, weights, self.rope, self.buffers, experts.cache)]
        for stack in others:
            stack.lend(self._cpu_layers(stack.first, stack.count))
        self.stacks: tuple[LayerStack, ...] = (*cpu, *others)

    def _cpu_layers(self, first: int, count: int) -> CpuLayers:
        return CpuLayers(self.config, self.weights, self.rope, self.buffers, first, count)

    def forward(self, chunks: Sequence[Chunk], cancelled: Callable[[], bool] = lambda: False) -> F32Array:
        """Run all tokens of `chunks` through the layers and write their caches.

        Gives the residual stream after the last layer, (T, D) f32, chunk after chunk: a view that the next
        call overwrites. Raises: Cancelled between two layers; DeviceLost.
        """
        x, rows = self._begin(chunks)
        for stack in self.stacks:
            stack.forward(x, rows, cancelled)
        return x

    def in_layers(
        self, chunks: Sequence[Chunk], stream: int, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[F32Array | None]:
        """As forward, in steps: None after each layer of the CPU's, or other stack, and at last the result.

        Between two steps other passes may run. stream: 1 to `waiting`, this pass's own until its result is
        used. Raises: as forward.
        """
        x, rows = self._begin(chunks, stream)
        for stack in self._in_steps():
            use_threads(self.threads)
            self.buffers.use_stream(stream)
            try:
                stack.forward(x, rows, cancelled)
            finally:
                self.buffers.use_stream(0)
            yield None
        yield x

    def let_wait(self, passes: int) -> None:
        """Take the memory for so many passes that may wait between two layers; see in_layers."""
        self.waiting = passes
        self.buffers.add_streams(passes)

    def tell(self, passed: Callable[[int], None] | None) -> None:
        """Have `passed` told of how many layers a pass is through, where they are run one by one."""
        for stack in self.stacks:
            if isinstance(stack, CpuLayers):
                stack.passed = passed

    def _in_steps(self) -> Iterator[LayerStack]:
        """The stacks, those of the CPU layer by layer."""
        for stack in self.stacks:
            if isinstance(stack, CpuLayers):
                for layer in range(stack.first, stack.first + stack.count):
                    one = copy(stack)
                    one.first, one.count = layer, 1
                    yield one
            else:
                yield stack

    def _begin(self, chunks: Sequence[Chunk], stream: int = 0) -> tuple[F32Array, list[Rows]]:
        """The embeddings of all tokens, (T, D), and which rows are whose."""
        use_threads(self.threads)
        self.buffers.use_stream(stream)
        tokens = [token for chunk in chunks for token in chunk.tokens]
        x = self.buffers.x[: len(tokens)]
        self._embed(x, tokens)
        rows, first = [], 0
        for chunk in chunks:
            count = len(chunk.tokens)
            cos, sin = self.rope.at(chunk.position, count)
            rows.append(Rows(first, count, chunk.position, cos, sin, chunk.cache, chunk.adapter))
            first += count
        return x, rows

    def next_logits(
        self, chunk: Chunk, cancelled: Callable[[], bool] = lambda: False, out: F32Array | None = None
    ) -> F32Array:
        """Run the tokens of `chunk`; give the logits (1, V) f32 after the last. `out`: as for logits.

        Raises: as forward.
        """
        *before, last = self.stacks
        if not last.unembeds:
            return self.logits(self.forward([chunk], cancelled)[-1:], out, [chunk.adapter])
        x, (rows,) = self._begin([chunk])
        for stack in before:
            stack.forward(x, [rows], cancelled)
        return last.next_logits(x, rows, cancelled)

    def logits(
        self, x: F32Array, out: F32Array | None = None, adapters: Sequence[AdapterSet | None] = ()
    ) -> F32Array:
        """Final norm and unembedding of rows x (n, D) of a forward pass: (n, V) f32.

        adapters: of each row, or one for all; none at all where no row has any.

        A view of `out` (n, ≥ V rounded up to 8) if given: fresh memory costs a token 0.2 ms of page faults.
        Raises: DeviceLost.
        """
        unembedding = self.weights.unembedding
        x = np.ascontiguousarray(x)
        if out is None:
            out = np.empty((len(x), unembedding.rows), np.float32)
        if self.stacks[-1].unembeds:
            self.stacks[-1].logits(x, out)
            return out[:, : self.config.vocab]
        use_threads(self.threads)
        step = self.buffers.tokens
        for first in range(0, len(x), step):
            rows = x[first : first + step]
            self.kernels.norm_and_multiply(
                address(out[first : first + step]),
                address(rows),
                self.weights.final_norm,
                self._eps,
                unembedding.tiles,
                len(rows),
                self.buffers.work,
            )
            if any(adapters):
                its = adapters if len(adapters) == 1 else adapters[first : first + step]
                self._adapt_logits(out[first : first + step], its)
        return out[:, : self.config.vocab]

    def _adapt_logits(self, out: F32Array, adapters: Sequence[AdapterSet | None]) -> None:
        """Add to logits (n, rows of the unembedding) what adapters add, whose input is in the buffers."""
        rows = [(0, len(out))] if len(adapters) == 1 else [(row, 1) for row in range(len(out))]
        for (first, count), adapter in zip(rows, adapters, strict=True):
            if adapter and adapter.unembedding:
                assert self.weights.adapters
                self.kernels.add_low_rank(
                    address(out),
                    out.strides[0],
                    adapter.unembedding,
                    self.buffers.at.blocks,
                    (first, count, len(out)),
                    self.weights.adapters.at_between,
                )

    def figures(self) -> dict[str, Any] | None:
        """What runs layers elsewhere than on the CPU, for reports; None if nothing does."""
        return next((found for stack in self.stacks if (found := stack.figures())), None)

    def count_experts(self) -> NDArray[np.int64]:
        """An array (layers, experts) of zeros in which tokens are counted from now on, each with its experts.

        Layers on a device aren't counted.
        """
        counts = np.zeros((self.config.layers, self.config.experts), np.int64)
        for stack in self.stacks:
            if isinstance(stack, CpuLayers):
                stack.expert_counts = counts
        return counts

    @property
    def kernel_callers(self) -> list[Any]:
        """What calls compiled kernels, each by its attribute `kernels`: there a profile listens in."""
        return [self, *(stack for stack in self.stacks if isinstance(stack, CpuLayers))]

    def replace_lost(self, error: DeviceLost) -> None:
        """Have what stands in for it, or the CPU, run the layers of a device that was lost.

        Raises: `error` if none was in use.
        """
        lost = [stack for stack in self.stacks if not isinstance(stack, CpuLayers)]
        if not lost:
            raise error
        self.stacks = tuple(
            stack.replacement() or self._cpu_layers(stack.first, stack.count) if stack in lost else stack
            for stack in self.stacks
        )
        for stack in lost:
            stack.close()

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
