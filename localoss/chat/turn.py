"""One answer, token by token: which may come next, and what each means. No engine inside."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from localoss.chat import harmony
from localoss.chat.harmony import ChatSetup, Message
from localoss.chat.headers import HeaderAutomaton
from localoss.chat.parser import Event, MessageEnd, StreamParser
from localoss.chat.rules import AnswerRules
from localoss.errors import Cancelled, ContextFullError, ModelError, UsageError
from localoss.options import STOP_IDS, SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FINISHES = {harmony.RETURN: "return", harmony.CALL: "call", harmony.END_OF_TEXT: "end"}
_CHAT_STOPS = (harmony.RETURN, harmony.CALL)  # the header automaton lets no other end come


@dataclass
class Turn:
    """An answer to `prompt`, the tokens of the whole conversation, as a state machine.

    Whoever runs the engine calls `begin`, and then for each token `mask` before it is drawn and `push` after;
    at last `end`. chat/generate.py does, for one turn on an engine; the server's scheduler for many.

    setup: what the prompt was rendered with, or None for a raw prompt, whose answer is plain text.
    rules: what holds for this answer alone. messages: what was said so far. finish: return, call, end,
    length, context or cancelled.
    """

    prompt: list[int]
    setup: ChatSetup | None
    params: SamplingParams = field(default_factory=SamplingParams)
    rules: AnswerRules = field(default_factory=AnswerRules)
    messages: list[Message] = field(default_factory=list)
    finish: str = "length"
    prefilled_tokens: int = 0  # of the prompt: the rest was in the sequence's cache already
    generated_tokens: int = 0
    thinking_tokens: int = 0  # those within analysis messages
    prefill_s: float = 0.0
    decode_s: float = 0.0  # from the first generated token to the last
    last_logprob: float = 0.0  # of the token that came last, where it is known

    def __post_init__(self) -> None:
        self.params = replace(self.params, stop_ids=_CHAT_STOPS if self.setup else STOP_IDS)
        self._parser = StreamParser(in_message=self.setup is None)
        self._automaton: HeaderAutomaton | None = None
        self._cached_tokens: int | None = None
        self._started = self._first = time.perf_counter()

    @property
    def checkpoints(self) -> Sequence[int]:
        """Positions of the prompt at which a later one may part from it."""
        return harmony.branch_points(self.prompt) if self.setup else ()

    def begin(self, vocab: int, context_tokens: int) -> None:
        """Check that a model with `vocab` tokens and this context can answer; the clock starts.

        Raises: ContextFullError if the prompt leaves no room, ModelError for a foreign vocabulary, UsageError
        without a prompt.
        """
        if self.setup is not None:
            harmony.check_vocabulary(vocab)
        elif max(self.prompt, default=0) >= vocab:
            raise ModelError(
                f"the model's vocabulary of {vocab:,} tokens isn't gpt-oss's: text means nothing to it"
            )
        if not self.prompt:
            raise UsageError("the prompt is empty; give some text")
        if len(self.prompt) >= context_tokens:
            raise ContextFullError(
                f"the prompt has {len(self.prompt):,} tokens and the context holds {context_tokens:,}: "
                "give a larger --context or a shorter prompt"
            )
        if self.setup is not None:
            self._automaton = HeaderAutomaton(vocab, self.setup, self.rules)
            self._hold_to_budget()
        self._started = self._first = time.perf_counter()

    def note_prefill(self, done: int, total: int) -> None:
        """Note that `done` of `total` tokens of the prompt are there; at the first call, what was cached."""
        if self._cached_tokens is None:
            self._cached_tokens = done
        self.prefilled_tokens = total - self._cached_tokens

    def mask(self) -> "NDArray[np.uint8] | None":
        """Which tokens may come next, (V,) u8, valid until the next call; None for all."""
        return self._automaton.mask() if self._automaton else None

    def has_mask(self, within_s: float) -> bool:
        """Whether `mask` needs no waiting for a grammar, after waiting for it so long at most."""
        return self._automaton is None or self._automaton.has_mask(within_s)

    @property
    def open_channel(self) -> str | None:
        """The channel of the message that is being written; None within a header."""
        return self._parser.open_channel

    def push(self, token: int) -> list[Event]:
        """What the next token brings about."""
        now = time.perf_counter()
        if self.generated_tokens == 0:
            self._first, self.prefill_s = now, now - self._started
        self.generated_tokens += 1
        self.decode_s = now - self._first
        if self._automaton:
            self._automaton.advance(token)
        self.finish = _FINISHES.get(token, "length")
        self.thinking_tokens += self.open_channel == "analysis" and token < harmony.TEXT_TOKENS
        events = self._note(self._parser.push(token))
        self._hold_to_budget()
        return events

    def end(self, error: Exception | None = None) -> list[Event]:
        """What the end brings about, whatever caused it. Raises: `error`, unless it only cut the answer."""
        if isinstance(error, Cancelled):
            self.finish = "cancelled"
        elif isinstance(error, ContextFullError):
            self.finish = "context"
        elif error:
            raise error
        return self._note(self._parser.finish())

    @property
    def answer(self) -> str:
        """The text of the final channel."""
        return "".join(message.text for message in self.messages if message.channel == "final")

    def stop(self) -> None:
        """The user wanted it to stop, if only as it came to its end: a call isn't made."""
        if self.finish == "call":
            self.finish = "cancelled"

    @property
    def whole_messages(self) -> list[Message]:
        """What was said; a call that was cut is none."""
        return [message for message in self.messages if self.finish == "call" or not message.recipient]

    @property
    def thinking(self) -> str:
        return "\n\n".join(m.text for m in self.messages if m.channel == "analysis" and not m.recipient)

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prefilled_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s else 0.0

    def _hold_to_budget(self) -> None:
        budget = self.rules.think_budget
        if self._automaton and budget is not None and self.thinking_tokens >= budget:
            self._automaton.force_final()

    def _note(self, events: list[Event]) -> list[Event]:
        self.messages += [event.message for event in events if isinstance(event, MessageEnd)]
        return events
