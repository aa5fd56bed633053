"""Sequences side by side on one engine: each step runs what all of them need next, in one pass."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localoss.engine.passes import Passes
from localoss.engine.prompt_lookup import PromptLookup
from localoss.engine.sampler import History, Sampler, Token
from localoss.engine.sequence import Sequence
from localoss.errors import Cancelled, LocalossError
from localoss.model.stack import F32Array
from localoss.options import SamplingParams
from localoss.plan.sizes import MOST_DRAFT_TOKENS

Mask = Callable[[], NDArray[np.uint8] | None]
Progress = Callable[[int, int], None]  # tokens done, tokens in all


@dataclass(eq=False)
class Slot:
    """One sequence of a batch, from its prompt to its last token.

    mask: asked before each token which are allowed, None for all. checkpoints: positions at which a later
    prompt may part from this one. progress: told how many tokens of the prompt are done, of how many.
    lookup: what drafts tokens from the ones before, None for nothing. is_done: nothing more comes, because it
    ended or, with `error`, because of that.
    """

    sequence: Sequence
    prompt: Seq[int]
    params: SamplingParams
    mask: Mask | None = None
    checkpoints: Seq[int] = ()
    progress: Progress | None = None
    cancelled: Callable[[], bool] | None = None
    lookup: PromptLookup | None = None
    is_done: bool = False
    error: Exception | None = None
    tokens_made: int = 0
    # Logits (n, V) after the last token, and after each draft token that follows it; None until they are run.
    rows: F32Array | None = None
    _is_begun: bool = False
    _drawn: int | None = None  # the token that is to be run next
    _history: History | None = None  # where there are penalties
    _draft_rows: F32Array | None = None  # where logits of draft tokens stay while they come true

    def is_cancelled(self) -> bool:
        return self.cancelled is not None and self.cancelled()

    def end(self, error: Exception | None = None) -> None:
        self.is_done, self.error, self.rows = True, error, None

    @property
    def is_decoding(self) -> bool:
        return self._drawn is not None

    def begin(self, passes: Passes) -> None:
        """Drop from the sequence what the prompt doesn't begin with, once."""
        if not self._is_begun:
            self._is_begun = True
            done = passes.reuse(self.sequence, self.prompt)
            if self.progress:
                self.progress(done, len(self.prompt))

    def next_tokens(self, room: int, context_tokens: int) -> Seq[int]:
        """Up to `room` tokens that come next: of the prompt, or the one drawn last and draft tokens."""
        if self._drawn is None:
            at = len(self.sequence.tokens)
            return self.prompt[at : at + room]
        if self.lookup is None:
            return [self._drawn]
        most = min(context_tokens - len(self.sequence.tokens), room) - 1
        return [self._drawn, *self.lookup.next(most)]

    def note_run(self, passes: Passes, tokens: int) -> bool:
        """Note that the last `tokens` tokens were run; whether logits are wanted now."""
        end = len(self.sequence.tokens)
        if self._drawn is not None:
            del self.sequence.tokens[end - tokens + 1 :]  # draft tokens count once they are drawn
            return True
        passes.checkpoint(self.sequence, [at for at in self.checkpoints if end - tokens < at <= end])
        if self.progress:
            self.progress(end, len(self.prompt))
        return end == len(self.prompt)

    def draft_rows(self, vocab_rows: int) -> F32Array:
        if self._draft_rows is None:
            self._draft_rows = np.empty((1 + MOST_DRAFT_TOKENS, vocab_rows), np.float32)
        return self._draft_rows

    def draw(self, sampler: Sampler) -> Token | None:
        """Draw a token from the logits that are there, and note what it means; None at the end."""
        params = self.params
        if self.rows is None:
            return None
        if params.max_tokens == 0:
            self.end()
            return None
        allowed = self.mask() if self.mask else None
        if self._history is None and params.has_penalties:
            self._history = sampler.history(self.prompt)
        may_stop = self.tokens_made >= params.min_tokens
        token = sampler.choose(self.rows[0], params, self.sequence.random, allowed, self._history, may_stop)
        self.tokens_made += 1
        if self._history is not None:
            self._history.note(token.id)
        if token.id in params.stop_ids or self.tokens_made == params.max_tokens:
            self.end()
        elif self.lookup and self.lookup.comes(token.id):  # it was run with the one before
            self.sequence.tokens.append(token.id)
            self.rows = self.rows[1:]
        else:
            self._drawn, self.rows = token.id, None
        return token


class Batch:
    """The one place that runs passes to generate: prefill chunks and decode steps together.

    >>> slot = batch.add(Slot(engine.sequence(), tokens, SamplingParams()))
    >>> while not slot.is_done:
    ...     for slot, token in batch.step(): ...

    It holds no weights and no caches: any number of batches may take turns on an engine. Within one, and
    among those that take turns, a sequence may be in one slot only.
    """

    def __init__(self, passes: Passes, sampler: Sampler, chunk_tokens: int, rows: F32Array) -> None:
        """chunk_tokens: of a pass at most. rows (n, ≥ V): where the logits of up to n slots go."""
        self._passes, self._sampler, self._chunk_tokens = passes, sampler, chunk_tokens
        self._rows = rows
        self.slots: list[Slot] = []

    def add(self, slot: Slot) -> Slot:
        """Take in a sequence; the next step begins its prompt, of which only what its cache lacks is run.

        Raises: UsageError, ContextFullError for a prompt that can't be run.
        """
        self._passes.check_prompt(slot.prompt)
        if slot.params.seed is not None:
            slot.sequence.random = np.random.default_rng(slot.params.seed)
        self.slots.append(slot)
        return slot

    def step(self, most_tokens: int | None = None) -> list[tuple[Slot, Token]]:
        """Run one pass, of at most so many tokens, and draw a token for each sequence that is ready for one.

        A sequence that is cancelled, has ended or has failed drops out, and the others go on: nothing is
        raised for one of them alone.
        """
        self.advance(most_tokens)
        drawn = []
        for slot in self.slots:
            try:
                token = slot.draw(self._sampler)
            except Exception as error:  # a mask's, or logits that are not finite: this sequence's alone
                slot.end(error)
            else:
                if token:
                    drawn.append((slot, token))
        self._drop_done()
        return drawn

    def advance(self, most_tokens: int | None = None) -> None:
        """Run one pass, of at most so many tokens, for what isn't ready to draw; draw nothing."""
        if len(self.slots) > 1:  # a lone one is asked for before each layer
            for slot in self.slots:
                if slot.is_cancelled():
                    slot.end(Cancelled("stopped"))
        runs = self._next_runs(min(most_tokens or self._chunk_tokens, self._chunk_tokens))
        if runs:
            try:
                self._run(runs)
            except Cancelled as error:
                for slot, _ in runs:
                    slot.end(error)
        self._drop_done()

    def _drop_done(self) -> None:
        if any(slot.is_done for slot in self.slots):
            self.slots = [slot for slot in self.slots if not slot.is_done]

    def _next_runs(self, room: int) -> list[tuple[Slot, Seq[int]]]:
        """What each sequence needs next: a token of each that decodes, then prompts while there is room."""
        runs: list[tuple[Slot, Seq[int]]] = []
        for slot in sorted(self.slots, key=lambda slot: not slot.is_decoding):
            if slot.rows is not None or slot.is_done or not room:
                continue
            slot.begin(self._passes)
            try:
                self._passes.check_room(slot.sequence, 1)
            except LocalossError as error:
                slot.end(error)
                continue
            tokens = slot.next_tokens(room, self._passes.context_tokens)
            runs.append((slot, tokens))
            room -= len(tokens)
        return runs

    def _run(self, runs: list[tuple[Slot, Seq[int]]]) -> None:
        """One pass. It is cut short only if nobody waits for any part of it."""

        def cancelled() -> bool:
            return all(slot.is_cancelled() for slot, _ in runs)

        if len(runs) == 1:
            slot, tokens = runs[0]
            is_last = slot.is_decoding or len(slot.sequence.tokens) + len(tokens) == len(slot.prompt)
            if is_last and not (slot.is_decoding and len(tokens) > 1):  # without draft tokens: one row
                rows = self._passes.next_logits(slot.sequence, tokens, cancelled, self._rows[:1])
                slot.note_run(self._passes, len(tokens))
                slot.rows = rows if slot.lookup is None else self._kept(slot, rows)
                return
        x = self._passes.run([(slot.sequence, tokens) for slot, tokens in runs], cancelled)
        first, wanted = 0, []
        for slot, tokens in runs:
            end = first + len(tokens)
            if slot.note_run(self._passes, len(tokens)):
                wanted.append((slot, range(first if slot.is_decoding else end - 1, end)))
            first = end
        if wanted:
            self._unembed(x, wanted)

    def _unembed(self, x: F32Array, wanted: list[tuple[Slot, range]]) -> None:
        """Give each slot the logits of its rows of x (T, D)."""
        count = sum(len(rows) for _, rows in wanted)
        if count > len(self._rows):
            self._rows = np.empty((count, self._rows.shape[1]), np.float32)
        logits = self._passes.logits(x[[row for _, rows in wanted for row in rows]], self._rows[:count])
        first = 0
        for slot, rows in wanted:
            its = logits[first : first + len(rows)]
            slot.rows = its if slot.lookup is None else self._kept(slot, its)
            first += len(rows)

    def _kept(self, slot: Slot, rows: F32Array) -> F32Array:
        """A copy of `rows` that later passes don't overwrite: draft tokens may be drawn steps after."""
        kept = slot.draft_rows(rows.shape[1])[: len(rows)]
        kept[:] = rows
        return kept
