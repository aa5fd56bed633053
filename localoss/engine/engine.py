"""The engine: a loaded model, the slots for sequences on it, and what is asked of them."""

import weakref
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localoss.engine.accounts import Accounts
from localoss.engine.batch import Batch
from localoss.engine.company import Company
from localoss.engine.passes import Passes
from localoss.engine.prompt_lookup import PromptLookup
from localoss.engine.sampler import Samplers, Token
from localoss.engine.sequence import Sequence
from localoss.engine.slot import Mask, Progress, Slot
from localoss.errors import UsageError
from localoss.model.adapters import AdapterSet
from localoss.model.forward import Model
from localoss.model.kv_cache import KVCache
from localoss.model.stack import F32Array, LayerStack
from localoss.model.streamed_layers import StreamedExperts
from localoss.model.weights import Weights
from localoss.options import Listener, LoadOptions, SamplingParams, changed
from localoss.plan.sizes import samplers, waiting_passes
from quant.format.config import ModelConfig
from quant.format.manifest import Dtypes


class Engine:
    """A model in memory. `localoss.load` makes one; it serves one caller at a time.

    config, dtypes: the architecture and the number formats. context_tokens: room of each slot. threads,
    kv_dtype, chunk_tokens: as it was loaded. slots: sequences whose memory was taken. pass_tokens: of a
    prompt that are run at once. lookup: whether tokens are drafted from what was said before.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtypes: Dtypes,
        weights: Weights,
        options: LoadOptions,
        others: Seq[LayerStack] = (),
        listener: Listener | None = None,
        experts: StreamedExperts | None = None,
    ) -> None:
        """Take the memory for `options`, which the loader has checked and completed.

        others: what runs the last layers, where it isn't the CPU. listener: hears if they come back to it.
        experts: where these come from if they aren't mapped.
        Raises: DeviceLost.
        """
        assert options.context_tokens and options.threads and options.slots
        self.config, self.dtypes, self.weights = config, dtypes, weights
        self.context_tokens, self.threads = options.context_tokens, options.threads
        self.kv_dtype, self.lookup, self.slots = options.kv_dtype, options.lookup, options.slots
        self.chunk_tokens = min(options.chunk_tokens, self.context_tokens)
        self.model = Model(
            config, weights, self.threads, options.is_exact, self.chunk_tokens, others, experts
        )
        self.pass_tokens = self.model.pass_tokens
        self.model.let_wait(waiting_passes(options.slots))
        self._passes = Passes(self.model, self.context_tokens, (listener or Listener()).notice)
        if options.gentle:
            self._passes.rest = Company().rest
        self._samplers = Samplers(config.vocab, samplers(options.slots, self.threads))
        # Caches are allocated here, so that memory does not grow later. `_holders[i]` is a weak reference to
        # the Sequence that uses cache i, or None.
        self._caches = [self._new_cache() for _ in range(options.slots)]
        self._holders: list[weakref.ref[Sequence] | None] = [None] * options.slots
        for stack in self.model.stacks:
            stack.try_out(self._caches[0].layers[stack.first : stack.first + stack.count])
        self._rows = np.empty((options.slots, weights.unembedding.rows), np.float32)

    @property
    def kernel_callers(self) -> list[Any]:
        """What calls compiled kernels: see Model.kernel_callers."""
        return [*self.model.kernel_callers, *self._samplers.all]

    def count_experts(self) -> NDArray[np.int64]:
        """How often each expert is chosen from now on, (layers, experts): see Model.count_experts."""
        return self.model.count_experts()

    def device_figures(self) -> dict[str, Any] | None:
        """What runs layers elsewhere than on the CPU, and what a token takes of the bus; None if nothing."""
        return self.model.figures()

    def expert_figures(self) -> dict[str, Any] | None:
        """What came from the disk; None where all experts are mapped."""
        return self.model.experts.figures() if self.model.experts else None

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that a sequence can ask for."""
        loaded = self.weights.adapters
        return tuple(name for name in loaded.sets if name) if loaded else ()

    @property
    def adapter_bytes(self) -> int:
        """What all adapters take of memory."""
        return self.weights.adapters.nbytes if self.weights.adapters else 0

    def adapter(self, name: str | None = None) -> AdapterSet | None:
        """What a sequence runs with that asks for `name`, or for nothing. Raises: UsageError."""
        if self.weights.adapters:
            return self.weights.adapters.find(name)
        if name is not None:
            raise UsageError(f"there is no adapter {name}; load the model with adapters=['{name}=DIR']")
        return None

    def sequence(self, seed: int | None = None, adapter: str | None = None) -> Sequence:
        """A new, empty sequence, with a KV cache for `context_tokens`.

        It uses one of the caches that were allocated with the engine, and gives it back when it is gone.
        Only while all are in use it takes more memory.

        Args:
            seed: of its random state; None for one that nobody knows.
            adapter: the name of an adapter that was loaded with one; None for those without.
        Returns: the sequence, for `generate`, `prefill`, `stream_logits` and `score`.
        Raises: UsageError for an adapter that wasn't loaded.
        """
        its = self.adapter(adapter)
        for index, (cache, holder) in enumerate(zip(self._caches, self._holders, strict=True)):
            if holder is None or holder() is None:
                sequence = Sequence(cache, seed, its)
                self._holders[index] = weakref.ref(sequence)
                return sequence
        return Sequence(self._new_cache(), seed, its)

    def _new_cache(self) -> KVCache:
        return KVCache(self.config, self.context_tokens, self.chunk_tokens, self.kv_dtype, self.model.stacks)

    def batch(self, accounts: Accounts | None = None) -> Batch:
        """A new, empty batch: sequences that are run side by side. accounts: what their owners had so far."""
        return Batch(self._passes, self._samplers, self.pass_tokens, self._rows, accounts)

    def generate(
        self,
        tokens: Seq[int],
        params: SamplingParams | int | None = None,
        *,
        sequence: Sequence | None = None,
        mask: Mask | None = None,
        checkpoints: Seq[int] = (),
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        **changes: Any,
    ) -> Iterator[Token]:
        """Continue `tokens`, the whole text so far; what `sequence` holds of it is not run again.

        Args:
            tokens: ids, at least one.
            params: how tokens are drawn and when to end; a number stands for max_tokens alone.
            sequence: a sequence of this engine; None for a new one.
            mask: asked before each token which are allowed, (V,) u8, or None for all.
            checkpoints: positions at which a later prompt may part from this one: from there it can go on,
                however much was run since.
            progress: told how many tokens of the prompt are done, of how many.
            cancelled: asked between layers whether to stop.
            changes: fields of SamplingParams, by name.
        Returns: an iterator over the tokens, that of `params.stop_ids` which ended it included.
        Raises: UsageError; ContextFullError if `tokens` don't fit, or once the context is full; Cancelled.
        """
        base = SamplingParams(max_tokens=params) if isinstance(params, int) else params or SamplingParams()
        params = changed(base, changes)
        sequence = sequence or self.sequence()
        lookup = PromptLookup(tokens) if self.lookup else None
        slot = Slot(sequence, tokens, params, mask, checkpoints, progress, cancelled, lookup)
        return self._generate(slot)

    def _generate(self, slot: Slot) -> Iterator[Token]:
        batch = self.batch()
        batch.add(slot)
        while not slot.is_done:
            for _, token in batch.step():
                yield token
        if slot.error:
            raise slot.error

    def prefill(
        self,
        sequence: Sequence,
        tokens: Seq[int],
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        checkpoints: Seq[int] = (),
    ) -> F32Array:
        """Bring `sequence` to `tokens`; only what its cache does not hold already is run, in chunks.

        Args:
            sequence: a sequence of this engine.
            tokens: the whole text so far, ids, at least one.
            progress, cancelled, checkpoints: as for generate.
        Returns: the logits (V,) f32 after the last token, a copy.
        Raises: UsageError, ContextFullError; Cancelled, after which the sequence holds the chunks that were
            finished.
        """
        batch = self.batch()
        slot = batch.add(Slot(sequence, tokens, SamplingParams(), None, checkpoints, progress, cancelled))
        while slot.rows is None and not slot.is_done:
            batch.advance()
        if slot.rows is None:
            assert slot.error
            raise slot.error
        logits: F32Array = slot.rows[0].copy()  # later passes overwrite it
        return logits

    def logits(self, tokens: Seq[int], positions: Seq[int] | None = None) -> F32Array:
        """Run `tokens` in a fresh cache, and give the logits after some of them.

        Args:
            tokens: ids, at least one.
            positions: indices into `tokens`; None for all.
        Returns: (n, V) f32, a row for each of `positions`: logits before any temperature.
        Raises: UsageError for a position or token out of range, ContextFullError.
        """
        self._passes.check_prompt(tokens)
        wanted = range(len(tokens)) if positions is None else positions
        if any(not 0 <= p < len(tokens) for p in wanted):
            raise UsageError(f"positions must be within the {len(tokens)} tokens")
        hidden = np.empty((len(wanted), self.config.hidden), np.float32)
        sequence = self.sequence()
        for first in range(0, len(tokens), self.pass_tokens):
            x = self._run(sequence, tokens[first : first + self.pass_tokens])
            for row, position in enumerate(wanted):
                if first <= position < first + len(x):
                    hidden[row] = x[position - first]
        return self._passes.logits(hidden, [sequence])

    def stream_logits(
        self,
        tokens: Seq[int],
        first: int = 0,
        rows: int = 64,
        cancelled: Callable[[], bool] | None = None,
        sequence: Sequence | None = None,
    ) -> Iterator[F32Array]:
        """Logits after each of tokens[first:] in order; memory stays the same for any text.

        Args:
            tokens: ids, which are run from the start.
            first: the index of the first token after which logits are wanted.
            rows: how many logits are given at once, at most.
            cancelled: asked between layers whether to stop.
            sequence: it holds `tokens` afterwards and nothing else; None for a new one.
        Returns: an iterator over (n, V) f32, each a view that the next one overwrites.
        Raises: as logits does; Cancelled.
        """
        self._passes.check_prompt(tokens)
        sequence = sequence or self.sequence()
        sequence.reuse([])
        out = np.empty((rows, self.weights.unembedding.rows), np.float32)
        for start in range(0, len(tokens), self.pass_tokens):
            x = self._run(sequence, tokens[start : start + self.pass_tokens], cancelled)
            for row in range(max(first - start, 0), len(x), rows):
                block = x[row : row + rows]
                yield self._passes.logits(block, [sequence], out[: len(block)])

    def score(
        self,
        tokens: Seq[int],
        logprobs: int = 0,
        *,
        sequence: Sequence | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Token]:
        """Each of `tokens` after the first with its logprob given those before it, run from the start.

        Args:
            tokens: ids, at least one.
            logprobs: how many of the likeliest tokens come with each.
            sequence, cancelled: as for stream_logits.
        Returns: an iterator over tokens, whose logprob is a natural logarithm.
        Raises: UsageError, ContextFullError, Cancelled.
        """
        scored = 1
        for rows in self.stream_logits(tokens, rows=16, cancelled=cancelled, sequence=sequence):
            for token, logits in zip(tokens[scored:], rows, strict=False):
                yield self._samplers.first.score(logits, token, logprobs)
            scored += len(rows)

    def _run(
        self, sequence: Sequence, tokens: Seq[int], cancelled: Callable[[], bool] | None = None
    ) -> F32Array:
        """Run `tokens` as the next ones of `sequence`: the residual stream (T, D) after the last layer."""
        return self._passes.run([(sequence, tokens)], cancelled or (lambda: False))
