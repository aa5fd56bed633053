"""Forward passes for sequences: the room in their context, and a device that is lost on the way."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from typing import TypeVar

from localoss.engine.sequence import Sequence
from localoss.errors import ContextFullError, DeviceLost, UsageError
from localoss.model.forward import Chunk, Model
from localoss.model.stack import F32Array

T = TypeVar("T")
Cancelled = Callable[[], bool]
Run = tuple[Sequence, Seq[int]]  # a sequence, and its tokens that come next


class Passes:
    """Runs passes of `model`. If what runs some layers is lost, the CPU takes these over, once.

    What the lost device kept of a sequence's cache is run again before the sequence goes on.
    """

    def __init__(self, model: Model, context_tokens: int, notice: Callable[[str], None]) -> None:
        """notice: told a line if layers come back to the CPU."""
        self.model, self.context_tokens, self._notice = model, context_tokens, notice
        self.rest: Callable[[float], None] = lambda worked_s: None  # see company.py

    def run(self, runs: Seq[Run], cancelled: Cancelled) -> F32Array:
        """The residual stream (T, D) f32 after the last layer, run after run: a view that the next pass
        overwrites.

        Raises: ContextFullError; Cancelled, after which the sequences are as before.
        """
        return self._advance(runs, cancelled, lambda chunks: self.model.forward(chunks, cancelled))

    def in_layers(self, runs: Seq[Run], stream: int, cancelled: Cancelled) -> Iterator[F32Array | None]:
        """The same, step by step: None while there are layers left, then the result; see Model.in_layers.

        Other passes may run between two steps, of other sequences than those of `runs`.
        """
        for sequence, tokens in runs:
            self.check_room(sequence, len(tokens))
        x = None
        while x is None:
            try:
                chunks, stacks = self._chunks(runs, cancelled), self.model.stacks
                for x in self.model.in_layers(chunks, stream, cancelled):
                    if x is None:
                        yield None
                    if self.model.stacks is not stacks:  # another pass lost a device: this begins anew
                        x = None
                        break
            except DeviceLost as error:
                self._replace(error)
        for sequence, tokens in runs:
            sequence.tokens += tokens
        yield x

    def next_logits(
        self, sequence: Sequence, tokens: Seq[int], cancelled: Cancelled, out: F32Array | None
    ) -> F32Array:
        """The same for one sequence, but the logits (1, V) f32 after its last token. out: as for logits."""
        return self._advance(
            [(sequence, tokens)], cancelled, lambda chunks: self.model.next_logits(chunks[0], cancelled, out)
        )

    def logits(self, x: F32Array, sequences: Seq[Sequence], out: F32Array | None = None) -> F32Array:
        """Model.logits. sequences: of each row, or one for all."""
        adapters = [sequence.adapter for sequence in sequences]
        return self._retried(lambda: self.model.logits(x, out, adapters))

    def reuse(self, sequence: Sequence, tokens: Seq[int]) -> int:
        """Sequence.reuse; nothing is left of a sequence that lay on a lost device."""
        try:
            if not self._is_stranded(sequence):
                return sequence.reuse(tokens)
        except DeviceLost as error:
            self._replace(error)
        sequence.restart(self.model.stacks)
        return 0

    def checkpoint(self, sequence: Sequence, positions: Iterable[int]) -> None:
        """Sequence.checkpoint at each of `positions`; at none if a device gets lost."""
        try:
            for position in positions:
                sequence.checkpoint(position)
        except DeviceLost as error:
            self._replace(error)

    def _advance(self, runs: Seq[Run], cancelled: Cancelled, work: Callable[[list[Chunk]], T]) -> T:
        """What `work` gives for the tokens of `runs` as the next ones of their sequences."""
        for sequence, tokens in runs:
            self.check_room(sequence, len(tokens))

        result = self._retried(lambda: work(self._chunks(runs, cancelled)))
        for sequence, tokens in runs:
            sequence.tokens += tokens
        return result

    def _chunks(self, runs: Seq[Run], cancelled: Cancelled) -> list[Chunk]:
        """What the model takes for `runs`, once all of what their caches must hold is there."""
        chunks = []
        for sequence, tokens in runs:
            if self._is_stranded(sequence):
                self._run_again(sequence, cancelled)
            sequence.begin(len(tokens))
            chunks.append(Chunk(tokens, len(sequence.tokens), sequence.cache, sequence.adapter))
        return chunks

    def check_room(self, sequence: Sequence, tokens: int) -> None:
        """Raises: ContextFullError unless so many more tokens fit."""
        needed = len(sequence.tokens) + tokens
        if needed > self.context_tokens:
            raise ContextFullError(
                f"the context is full: {needed:,} tokens, it holds {self.context_tokens:,}; "
                "start anew, or load the model with a larger context"
            )

    def check_prompt(self, tokens: Seq[int]) -> None:
        """Raises: UsageError without tokens, or for one out of range; ContextFullError if they don't fit."""
        vocab = self.model.config.vocab
        if not len(tokens):
            raise UsageError("no tokens given; the model needs at least one to start from")
        if len(tokens) > self.context_tokens:
            raise ContextFullError(
                f"the prompt has {len(tokens):,} tokens and the context holds {self.context_tokens:,}; "
                "shorten it, or load the model with a larger context"
            )
        if min(tokens) < 0 or max(tokens) >= vocab:
            raise UsageError(f"a token id is outside the model's vocabulary, 0 to {vocab - 1:,}")

    def _retried(self, attempt: Callable[[], T]) -> T:
        while True:
            try:
                return attempt()
            except DeviceLost as error:
                self._replace(error)

    def _replace(self, error: DeviceLost) -> None:
        self.model.replace_lost(error)
        self._notice(f"{error.device} is left: {error}; {error.goes_on}")

    def _is_stranded(self, sequence: Sequence) -> bool:
        """Whether a part of its cache lies where nothing runs any more."""
        return sequence.cache.stacks != self.model.stacks

    def _run_again(self, sequence: Sequence, cancelled: Cancelled) -> None:
        """Bring a stranded sequence to where it was. Raises: Cancelled; it is empty then."""
        past, step = sequence.tokens, self.model.buffers.tokens
        sequence.restart(self.model.stacks)
        for first in range(0, len(past), step):
            self.run([(sequence, past[first : first + step])], cancelled)
