"""One sequence of a batch: what it needs next, and what it drew last."""

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localoss.engine.passes import Passes
from localoss.engine.prompt_lookup import PromptLookup
from localoss.engine.sampler import History, Sampler, Token
from localoss.engine.sequence import Sequence
from localoss.model.stack import F32Array
from localoss.options import SamplingParams
from localoss.plan.sizes import MOST_DRAFT_TOKENS, MOST_SNAPSHOTS

Mask = Callable[[], NDArray[np.uint8] | None]
Progress = Callable[[int, int], None]  # tokens done, tokens in all
_SCORED_TOKENS = 32  # of a prompt that is scored, run at once: each needs logits


@dataclass(eq=False)
class Slot:
    """One sequence of a batch, from its prompt to its last token.

    mask: asked before each token which are allowed, None for all. checkpoints: positions at which a later
    prompt may part from this one. progress: told how many tokens of the prompt are done, of how many.
    lookup: what drafts tokens from the ones before, None for nothing. scored: told each token of the
    prompt after the first, with its logprob; the prompt is run from its start then. owner: whose share of
    the cores it takes. random: its random state, where it has left another sequence. mask_comes: whether
    `mask` needs no waiting once so many seconds were waited at most; None if it never does. is_done: nothing
    more comes, because it ended or, with `error`, because of that.
    """

    sequence: Sequence
    prompt: Seq[int]
    params: SamplingParams
    mask: Mask | None = None
    checkpoints: Seq[int] = ()
    progress: Progress | None = None
    cancelled: Callable[[], bool] | None = None
    lookup: PromptLookup | None = None
    scored: Callable[[Token], None] | None = None
    owner: Hashable = None
    random: np.random.Generator | None = None
    mask_comes: Callable[[float], bool] | None = None
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

    @property
    def may_pause(self) -> bool:
        """Whether it could go on with another sequence: not while logits wait, or a prompt is scored."""
        return self.rows is None and not self.is_done and (self.is_decoding or not self.scored)

    def pause(self) -> None:
        """Leave the sequence, which may become another's: its tokens are the prompt of the next one."""
        if self._drawn is not None:
            self.prompt = [*self.sequence.tokens, self._drawn]
            self._drawn = self.scored = self.progress = None
        self.random, self.sequence.random = self.sequence.random, np.random.default_rng()
        self._is_begun = False

    def begin(self, passes: Passes) -> None:
        """Drop from the sequence what the prompt doesn't begin with, once."""
        if not self._is_begun:
            self._is_begun = True
            self.sequence.cache.keep_at = self.checkpoints[-MOST_SNAPSHOTS:]
            done = passes.reuse(self.sequence, [] if self.scored else self.prompt)
            if self.progress:
                self.progress(done, len(self.prompt))

    @property
    def tokens_left(self) -> int:
        """Of the prompt, once it is begun."""
        return len(self.prompt) - len(self.sequence.tokens)

    def next_tokens(self, room: int, context_tokens: int) -> Seq[int]:
        """Up to `room` tokens that come next: of the prompt, or the one drawn last and draft tokens."""
        if self._drawn is None:
            at = len(self.sequence.tokens)
            return self.prompt[at : at + (min(room, _SCORED_TOKENS) if self.scored else room)]
        if self.lookup is None:
            return [self._drawn]
        most = min(context_tokens - len(self.sequence.tokens), room) - 1
        return [self._drawn, *self.lookup.next(most)]

    def note_layers(self, tokens: int, done: int, layers: int) -> None:
        """Note that a pass over the prompt's next `tokens` tokens is through `done` of `layers` layers."""
        if self.progress and done < layers:
            self.progress(len(self.sequence.tokens) + tokens * done // layers, len(self.prompt))

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

    def has_mask(self, within_s: float) -> bool:
        """Whether it is known which tokens may come next, after waiting for that so long at most."""
        return self.mask_comes is None or self.mask_comes(within_s)

    def draft_rows(self, vocab_rows: int) -> F32Array:
        if self._draft_rows is None:
            self._draft_rows = np.empty((1 + MOST_DRAFT_TOKENS, vocab_rows), np.float32)
        return self._draft_rows

    def keep_rows(self, vocab_rows: int) -> None:
        """Copy its logits to where later passes don't overwrite them: some are drawn from steps after."""
        own = self.draft_rows(vocab_rows)
        if self.rows is not None and self.rows.base is not own:
            own[: len(self.rows), : self.rows.shape[1]] = self.rows
            self.rows = own[: len(self.rows), : self.rows.shape[1]]

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
