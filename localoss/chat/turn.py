"""One answer: the engine's tokens under the header automaton, parsed into messages, counted and timed."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from localoss.chat import harmony
from localoss.chat.harmony import ChatSetup, Message
from localoss.chat.headers import HeaderAutomaton
from localoss.chat.parser import Event, MessageEnd, StreamParser
from localoss.chat.rules import AnswerRules
from localoss.chat.sampling import Sampling
from localoss.errors import Cancelled, ContextFullError, ModelError, UsageError

if TYPE_CHECKING:
    from localoss.engine.engine import Engine, Sequence
    from localoss.engine.sampler import Token

_FINISHES = {harmony.RETURN: "return", harmony.CALL: "call", harmony.END: "end", harmony.END_OF_TEXT: "end"}
_CHAT_STOPS = (harmony.RETURN, harmony.CALL)


@dataclass
class Turn:
    """One answer to `prompt`, the tokens of the whole conversation. Iterate `events`, then read the rest.

    setup: what the prompt was rendered with, or None for a raw prompt, whose answer is plain text.
    rules: what holds for this answer alone. observe: told each token before what it brings about is given.
    messages: what was said so far. finish: return, call, end, length, context or cancelled.
    """

    engine: "Engine"
    prompt: list[int]
    setup: ChatSetup | None
    sampling: Sampling = field(default_factory=Sampling)
    sequence: "Sequence | None" = None
    rules: AnswerRules | None = None
    observe: "Callable[[Token], None] | None" = None
    messages: list[Message] = field(default_factory=list)
    finish: str = "length"
    prefilled_tokens: int = 0  # of the prompt: the rest was in the sequence's cache already
    generated_tokens: int = 0
    thinking_tokens: int = 0  # those within analysis messages
    prefill_s: float = 0.0
    decode_s: float = 0.0  # from the first generated token to the last

    def events(
        self,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Event]:
        """Generate, and give what happens. progress(done, total) counts prompt tokens.

        Raises: ContextFullError if the prompt leaves no room, ModelError for a foreign vocabulary.
        """
        self._check_prompt()
        parser = StreamParser(in_message=self.setup is None)
        try:
            for token in self._tokens(progress, cancelled):
                self.finish = _FINISHES.get(token.id, "length")
                self.thinking_tokens += parser.open_channel == "analysis" and token.id < harmony.TEXT_TOKENS
                if self.observe:
                    self.observe(token)
                yield from self._note(parser.push(token.id))
        except Cancelled:
            self.finish = "cancelled"
        except ContextFullError:
            self.finish = "context"
        yield from self._note(parser.finish())

    @property
    def answer(self) -> str:
        """The text of the final channel."""
        return "".join(message.text for message in self.messages if message.channel == "final")

    @property
    def thinking(self) -> str:
        return "\n\n".join(m.text for m in self.messages if m.channel == "analysis" and not m.recipient)

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prefilled_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s else 0.0

    def _check_prompt(self) -> None:
        vocab, room = self.engine.config.vocab, self.engine.context_tokens
        if self.setup is not None:
            harmony.check_vocabulary(vocab)
        elif max(self.prompt, default=0) >= vocab:
            raise ModelError(
                f"the model's vocabulary of {vocab:,} tokens isn't gpt-oss's: text means nothing to it"
            )
        if not self.prompt:
            raise UsageError("the prompt is empty; give some text")
        if len(self.prompt) >= room:
            raise ContextFullError(
                f"the prompt has {len(self.prompt):,} tokens and the context holds {room:,}: "
                "give a larger --context or a shorter prompt"
            )

    def _tokens(
        self, progress: Callable[[int, int], None] | None, cancelled: Callable[[], bool] | None
    ) -> "Iterator[Token]":
        """Tokens from the engine, held to harmony's headers and timed."""
        automaton = None
        if self.setup is not None:
            automaton = HeaderAutomaton(self.engine.config.vocab, self.setup, self.rules)
            self._hold_to_budget(automaton)
        started = first = time.perf_counter()
        for token in self.engine.generate(
            self.prompt,
            max_tokens=self.sampling.max_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            top_k=self.sampling.top_k,
            min_p=self.sampling.min_p,
            seed=self.sampling.seed,
            sequence=self.sequence,
            stop_ids=_CHAT_STOPS if automaton else tuple(_FINISHES),
            mask=automaton.mask if automaton else None,
            top_logprobs=self.sampling.top_logprobs,
            marks=harmony.branch_points(self.prompt) if automaton else (),
            progress=self._counting(progress),
            cancelled=cancelled,
        ):
            now = time.perf_counter()
            if self.generated_tokens == 0:
                first, self.prefill_s = now, now - started
            self.generated_tokens += 1
            self.decode_s = now - first
            if automaton:
                automaton.advance(token.id)
            yield token
            if automaton:
                self._hold_to_budget(automaton)

    def _hold_to_budget(self, automaton: HeaderAutomaton) -> None:
        budget = self.sampling.think_budget
        if budget is not None and self.thinking_tokens >= budget:
            automaton.force_final()

    def _counting(self, progress: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
        cached_tokens: int | None = None

        def count(done: int, total: int) -> None:
            nonlocal cached_tokens
            if cached_tokens is None:
                cached_tokens = done
            self.prefilled_tokens = total - cached_tokens
            if progress:
                progress(done, total)

        return count

    def _note(self, events: list[Event]) -> list[Event]:
        self.messages += [event.message for event in events if isinstance(event, MessageEnd)]
        return events
