"""The engine: a loaded model, the conversations that run on it, and the loop that generates."""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localoss.engine.prompt_lookup import Guesses
from localoss.engine.sampler import Sampler, SamplingOptions, Token
from localoss.engine.sequence import Sequence
from localoss.errors import ContextFullError, GpuError, UsageError
from localoss.gpu.device import Device
from localoss.gpu.span import GpuSpan
from localoss.model.forward import Chunk, Model
from localoss.model.kv_cache import KVCache
from localoss.model.weights import load_weights
from localoss.plan.sizes import MOST_GUESSED
from quant.format.config import ModelConfig, read_config
from quant.format.manifest import read_manifest

STOP_IDS = (200002, 200012)  # harmony's return and call

Mask = Callable[[], NDArray[np.uint8] | None]
Progress = Callable[[int, int], None]  # tokens done, tokens in all
F32Array = NDArray[np.float32]


class Engine:
    """A model in memory. `localoss.load` makes one; it serves one caller at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        context_tokens: int,
        threads: int,
        kv_dtype: str,
        activations: str,
        chunk_tokens: int,
        conversations: int = 1,
        gpu: tuple[Device, int] | None = None,
        uploaded: Progress = lambda done, total: None,
        notice: Callable[[str], None] | None = None,
    ):
        """Map the model in `folder`; loader.py checks the options.

        gpu: a device, and how many of the last layers it takes. uploaded: told how many it has, of how many.
        notice: told a line if they have to come back. Raises: QuantError, ModelError, GpuError.
        """
        self.dtypes = read_manifest(folder).dtypes
        self.config: ModelConfig = read_config(folder / "config.json")
        self.context_tokens, self.threads, self.kv_dtype = context_tokens, threads, kv_dtype
        self.chunk_tokens = min(chunk_tokens, context_tokens)
        self.weights = load_weights(folder, self.config, self.dtypes)
        span = None
        if gpu:
            device, layers = gpu
            tensors, most = self.weights.tensors, self.chunk_tokens
            span = GpuSpan(device, self.config, self.dtypes, tensors, layers, kv_dtype, most, uploaded)
        self._notice = notice or (lambda line: None)
        exact = activations == "f32"
        self.model = Model(self.config, self.weights, threads, exact, self.chunk_tokens, span)
        self._sampler = Sampler(self.config.vocab)
        # Taken now, so that nothing grows later; and who has each: a reference to nothing if nobody.
        self._caches = [self._new_cache() for _ in range(conversations)]
        if span:
            span.try_out(self._caches[0].gpu_layers)
        self._holders: list[weakref.ref[Sequence] | None] = [None] * conversations
        self._row = np.empty((1, self.weights.unembedding.rows), np.float32)
        self.lookup = False  # whether to guess that what was said comes again: see prompt_lookup.py

    def gpu_figures(self) -> dict[str, Any] | None:
        """What GPU has how many layers, and what a decoded token takes of the bus; None without a GPU."""
        return self.model.gpu.figures() if self.model.gpu else None

    def sequence(self, seed: int | None = None) -> Sequence:
        """A new, empty conversation, with a KV cache for `context_tokens`.

        It has one of the caches that were made with the engine, and gives it back when it is gone. Only
        while all are in use it takes more memory.
        """
        for index, (cache, holder) in enumerate(zip(self._caches, self._holders, strict=True)):
            if holder is None or holder() is None:
                sequence = Sequence(cache, seed)
                self._holders[index] = weakref.ref(sequence)
                return sequence
        return Sequence(self._new_cache(), seed)

    def _new_cache(self) -> KVCache:
        return KVCache(self.config, self.context_tokens, self.chunk_tokens, self.kv_dtype, self.model.gpu)

    def logits(self, tokens: Seq[int], positions: Seq[int] | None = None) -> F32Array:
        """Logits after each of `positions` (all, if None) of `tokens`: (n, V) f32, in a fresh cache.

        Raises: UsageError for a position or token out of range, ContextFullError.
        """
        self._check_tokens(tokens)
        wanted = range(len(tokens)) if positions is None else positions
        if any(not 0 <= p < len(tokens) for p in wanted):
            raise UsageError(f"positions must be within the {len(tokens)} tokens")
        hidden = np.empty((len(wanted), self.config.hidden), np.float32)
        sequence = self.sequence()
        for first in range(0, len(tokens), self.chunk_tokens):
            x = self._run(sequence, tokens[first : first + self.chunk_tokens])
            for row, position in enumerate(wanted):
                if first <= position < first + len(x):
                    hidden[row] = x[position - first]
        return self._logits(hidden)

    def stream_logits(
        self,
        tokens: Seq[int],
        first: int = 0,
        rows: int = 64,
        cancelled: Callable[[], bool] | None = None,
        sequence: Sequence | None = None,
    ) -> Iterator[F32Array]:
        """Logits after each of tokens[first:] in order, up to `rows` (n, V) f32 at once, run from the start.

        Each is a view that the next one overwrites, so memory stays the same for any text. `sequence`, a new
        one if None, holds `tokens` afterwards and nothing else. Raises: as logits does; Cancelled.
        """
        self._check_tokens(tokens)
        sequence = sequence or self.sequence()
        sequence.reuse([])
        out = np.empty((rows, self.weights.unembedding.rows), np.float32)
        for start in range(0, len(tokens), self.chunk_tokens):
            x = self._run(sequence, tokens[start : start + self.chunk_tokens], cancelled)
            for row in range(max(first - start, 0), len(x), rows):
                piece = x[row : row + rows]
                yield self._logits(piece, out[: len(piece)])

    def prefill(
        self,
        sequence: Sequence,
        tokens: Seq[int],
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        marks: Seq[int] = (),
    ) -> F32Array:
        """Bring `sequence` to `tokens`, the whole conversation; gives the logits (V,) f32 after the last.

        Only what the cache does not hold already is run, in chunks. `marks` are the positions at which a
        later prompt may part from this one: from there it can go on, however much was run since.
        Raises: UsageError, ContextFullError; Cancelled, after which the sequence holds the chunks that were
        finished.
        """
        self._check_tokens(tokens)
        done = self._reuse(sequence, tokens)
        tell = progress or (lambda done, total: None)
        tell(done, len(tokens))
        for first in range(done, len(tokens), self.chunk_tokens):
            chunk = tokens[first : first + self.chunk_tokens]
            end = first + len(chunk)
            if end < len(tokens):
                self._run(sequence, chunk, cancelled)
            else:
                logits = self._next_logits(sequence, chunk, cancelled)
            self._mark(sequence, [mark for mark in marks if first < mark <= end])
            tell(end, len(tokens))
        return logits

    def generate(
        self,
        tokens: Seq[int],
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int | None = None,
        *,
        sequence: Sequence | None = None,
        stop_ids: Seq[int] = STOP_IDS,
        mask: Mask | None = None,
        top_logprobs: int = 0,
        marks: Seq[int] = (),
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Token]:
        """Continue `tokens`, the whole conversation so far; what `sequence` holds of it is not run again.

        Ends after a token of `stop_ids`, which it gives too, or `max_tokens` tokens. `mask` is asked before
        each token which are allowed, None for all. A `seed` restarts the sequence's random state.
        `top_logprobs` is how many of the likeliest tokens each token comes with; `marks` are prefill's.
        Raises: UsageError; ContextFullError if `tokens` don't fit, or once the context is full; Cancelled.
        """
        options = SamplingOptions(temperature, top_k, top_p, min_p)
        if max_tokens is not None and max_tokens < 0:
            raise UsageError(f"max_tokens is {max_tokens}; use 0 or more, or none for no limit")
        if sequence is None:
            sequence = self.sequence(seed)
        elif seed is not None:
            sequence.random = np.random.default_rng(seed)
        rows = self.prefill(sequence, tokens, progress, cancelled, marks)[None]
        guesses = Guesses(tokens) if self.lookup else None
        out = np.empty((1 + MOST_GUESSED, self._row.shape[1]), np.float32) if guesses else self._row
        made = 0
        while max_tokens is None or made < max_tokens:
            allowed = mask() if mask else None
            token = self._sampler.choose(rows[0], options, sequence.random, allowed, top_logprobs)
            yield token
            made += 1
            if token.id in stop_ids or made == max_tokens:
                return
            if guesses and guesses.comes(token.id):  # it was run with the one before
                sequence.tokens.append(token.id)
                rows = rows[1:]
            elif guesses:
                rows = self._with_guesses(sequence, token.id, guesses, cancelled, out)
            else:
                rows = self._next_logits(sequence, [token.id], cancelled, out)[None]

    def judge(
        self,
        tokens: Seq[int],
        top_logprobs: int = 0,
        *,
        sequence: Sequence | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Token]:
        """Each of `tokens` after the first with its logprob given those before it, run from the start.

        sequence: as for stream_logits. Raises: UsageError, ContextFullError, Cancelled.
        """
        judged = 1
        for rows in self.stream_logits(tokens, rows=16, cancelled=cancelled, sequence=sequence):
            for token, logits in zip(tokens[judged:], rows, strict=False):
                yield self._sampler.judge(logits, token, top_logprobs)
            judged += len(rows)

    def _run(
        self, sequence: Sequence, tokens: Seq[int], cancelled: Callable[[], bool] | None = None
    ) -> F32Array:
        """Run `tokens` as the next ones of `sequence`: the residual stream (T, D) after the last layer."""
        stop = cancelled or _never
        return self._advance(sequence, tokens, stop, lambda chunk: self.model.forward([chunk], stop))

    def _next_logits(
        self,
        sequence: Sequence,
        tokens: Seq[int],
        cancelled: Callable[[], bool] | None = None,
        out: F32Array | None = None,
    ) -> F32Array:
        """The same, but the logits (V,) after the last of `tokens`. out: Model.logits's."""
        stop = cancelled or _never
        return self._advance(sequence, tokens, stop, lambda chunk: self.model.next_logits(chunk, stop, out))[
            0
        ]

    def _with_guesses(
        self,
        sequence: Sequence,
        token: int,
        guesses: Guesses,
        cancelled: Callable[[], bool] | None,
        out: F32Array,
    ) -> F32Array:
        """The logits after `token` and after each that is guessed to follow it, (1 + n, V), a view of `out`.

        The cache holds the guessed ones, `sequence` doesn't: they must come first.
        """
        position = len(sequence.tokens)
        most = min(self.context_tokens - position, self.chunk_tokens) - 1
        run = [token, *guesses.next(most)]
        x = self._run(sequence, run, cancelled)
        del sequence.tokens[position + 1 :]
        return self._logits(x, out[: len(run)])

    def _advance(
        self,
        sequence: Sequence,
        tokens: Seq[int],
        cancelled: Callable[[], bool],
        run: Callable[[Chunk], F32Array],
    ) -> F32Array:
        """What `run` gives for `tokens` as the next ones of `sequence`; on the CPU if the GPU gets lost."""
        position = len(sequence.tokens)
        if position + len(tokens) > self.context_tokens:
            raise ContextFullError(
                f"the context is full: {position + len(tokens):,} tokens, it holds {self.context_tokens:,}; "
                "start anew, or load the model with a larger context"
            )
        while True:
            try:
                if self._is_stranded(sequence):
                    self._run_again(sequence, cancelled)
                sequence.begin(len(tokens))
                result = run(Chunk(tokens, position, sequence.cache))
                sequence.tokens += tokens
                return result
            except GpuError as error:
                self._leave_gpu(error)

    def _logits(self, x: F32Array, out: F32Array | None = None) -> F32Array:
        """Model.logits, on the CPU if the GPU gets lost."""
        try:
            return self.model.logits(x, out)
        except GpuError as error:
            self._leave_gpu(error)
            return self.model.logits(x, out)

    def _reuse(self, sequence: Sequence, tokens: Seq[int]) -> int:
        """Sequence.reuse, but nothing of what lay on a GPU that is gone."""
        try:
            if not self._is_stranded(sequence):
                return sequence.reuse(tokens)
        except GpuError as error:
            self._leave_gpu(error)
        sequence.leave_gpu()
        return 0

    def _mark(self, sequence: Sequence, positions: Seq[int]) -> None:
        """Sequence.mark at each of `positions`; at none if the GPU gets lost."""
        try:
            for position in positions:
                sequence.mark(position)
        except GpuError as error:
            self._leave_gpu(error)

    def _is_stranded(self, sequence: Sequence) -> bool:
        """Whether a part of its cache lies on a GPU that is gone."""
        return bool(sequence.cache.gpu_layers) and self.model.gpu is None

    def _run_again(self, sequence: Sequence, cancelled: Callable[[], bool]) -> None:
        """Bring a stranded sequence to where it was, on the CPU. Raises: Cancelled; it is empty then."""
        past = sequence.tokens
        sequence.leave_gpu()
        for first in range(0, len(past), self.chunk_tokens):
            self._run(sequence, past[first : first + self.chunk_tokens], cancelled)

    def _leave_gpu(self, error: GpuError) -> None:
        """Go on without the GPU, in which `error` was met."""
        gpu, self.model.gpu = self.model.gpu, None
        if gpu is None:
            raise error
        self._notice(f"the GPU is left: {error}; it goes on on the CPU")
        with contextlib.suppress(GpuError):
            gpu.device.destroy()

    def _check_tokens(self, tokens: Seq[int]) -> None:
        if not len(tokens):
            raise UsageError("no tokens given; the model needs at least one to start from")
        if len(tokens) > self.context_tokens:
            raise ContextFullError(
                f"the prompt has {len(tokens):,} tokens and the context holds {self.context_tokens:,}; "
                "shorten it, or load the model with a larger context"
            )
        if min(tokens) < 0 or max(tokens) >= self.config.vocab:
            raise UsageError(f"a token id is outside the model's vocabulary, 0 to {self.config.vocab - 1:,}")


def _never() -> bool:
    return False
