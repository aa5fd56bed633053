"""One answer of the model, as both APIs tell it: parts, calls and counts, made on the engine's thread."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from localoss.chat.harmony import TEXT_TOKENS, ChatSetup, Message, token_bytes
from localoss.chat.parser import Event, MessageStart, TextDelta
from localoss.chat.rules import AnswerRules
from localoss.chat.stops import StopFinder
from localoss.chat.tools import Thoughts, ToolCall, call_of, called_name, new_call_id
from localoss.chat.turn import Turn
from localoss.engine.engine import Engine
from localoss.engine.prompt_lookup import PromptLookup
from localoss.engine.sampler import Token
from localoss.engine.sequence import Sequence
from localoss.engine.slot import Slot
from localoss.errors import Cancelled
from localoss.options import SamplingParams
from localoss.server.core.pool import SequencePool

Part = Literal["thinking", "preamble", "answer"]
_PARTS: dict[str, Part] = {"analysis": "thinking", "commentary": "preamble", "final": "answer"}
_REASONS = {"return": "stop", "call": "tool_calls", "end": "stop", "length": "length", "context": "length"}


@dataclass
class Reading:
    """How far a prompt is read, in tokens: noted on the engine's thread, looked at on the event loop.

    cached: how many of `total` were in a KV cache. time_s: since the first of the others was begun.
    """

    total: int = 0
    cached: int = 0
    done: int = 0
    time_s: float = 0.0
    _began_s: float = 0.0

    def note(self, done: int, total: int) -> None:
        """As the engine's progress: at the first call `done` is what was cached."""
        now = time.monotonic()
        if not self.total:
            self.cached, self._began_s = done, now
        self.done, self.total, self.time_s = done, total, now - self._began_s


@dataclass(frozen=True)
class Question:
    """All that an answer depends on. stops: what ends the final message, and isn't part of it.

    setup: what the prompt was rendered with; None for raw text, whose continuation is all answer.
    reading: told how far the prompt is read.
    """

    prompt: list[int]
    setup: ChatSetup | None
    rules: AnswerRules = field(default_factory=AnswerRules)
    params: SamplingParams = field(default_factory=SamplingParams)
    stops: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading, compare=False)


@dataclass(frozen=True)
class Opened:
    """A part of the answer begins."""

    part: Part


@dataclass(frozen=True)
class Text:
    """More text of the open part; an answer's with its tokens. is_first: the part's first.

    generated_tokens: how many were so far, of all parts.
    """

    part: Part
    text: str
    is_first: bool
    tokens: tuple[Token, ...] = ()
    generated_tokens: int = 0


@dataclass(frozen=True)
class Closed:
    """The open part is over. is_whole: it came to its end, rather than being cut."""

    part: Part
    text: str
    is_whole: bool


@dataclass(frozen=True)
class CallOpened:
    """A call begins; its ToolCall follows once it is whole, unless it is cut.

    is_hosted: it is of a tool that this server runs, rather than of the client's.
    """

    id: str
    name: str
    is_hosted: bool = False


@dataclass(frozen=True)
class CallText:
    """More of the open call's arguments."""

    id: str
    text: str


@dataclass(frozen=True)
class Usage:
    """Tokens. cached: of the prompt, those that were in a KV cache already. reasoning: of the completion."""

    prompt: int
    cached: int
    completion: int
    reasoning: int


@dataclass(frozen=True)
class Done:
    """The answer is over. reason: stop, length or tool_calls. messages: what the next turn's prompt holds.

    stop: the stop sequence that ended it. key: the name of the key that it was asked with.
    """

    reason: str
    usage: Usage
    messages: tuple[Message, ...]
    prefill_s: float
    decode_s: float
    stop: str | None = None
    key: str = ""


Piece = Opened | Text | Closed | CallOpened | CallText | ToolCall | Done


class Answering:
    """Makes the pieces of one answer, out of its tokens: the scheduler's Work."""

    def __init__(
        self,
        engine: Engine,
        pool: SequencePool,
        thoughts: Thoughts,
        question: Question,
        key: str = "",
        adapter: str | None = None,
    ) -> None:
        """key: the name of the key that it is asked with, which others don't share what it leaves with.

        adapter: what it runs with.
        """
        self._engine, self._pool, self._question, self.key = engine, pool, question, key
        self._thoughts, self._adapter = thoughts.of(key), adapter
        self._turn = Turn(question.prompt, question.setup, question.params, question.rules)
        # The open part; None in a header and in a call.
        self._part: Part | None = "answer" if question.setup is None else None
        self._call_id: str | None = None  # of the open call
        self._text: list[str] = []
        self._tokens: list[Token] = []  # of the open part, not given yet
        self._stops = StopFinder(question.stops)
        self._stopped = False
        self._sequence: Sequence | None = None

    @property
    def prompt(self) -> list[int]:
        return self._turn.prompt

    @property
    def params(self) -> SamplingParams:
        return self._turn.params

    @property
    def is_over(self) -> bool:
        """Whether a stop sequence ended it: no more tokens are wanted."""
        return self._stopped

    def begin(self, cancelled: Callable[[], bool]) -> Slot:
        """What a batch is to run for it. Raises: LocalossError for a prompt that can't be answered."""
        turn = self._turn
        turn.begin(self._engine.config.vocab, self._engine.context_tokens)
        self._sequence = self._pool.reserve(turn.prompt, self.key, self._adapter)
        return Slot(
            self._sequence,
            turn.prompt,
            turn.params,
            turn.mask if turn.setup else None,
            turn.checkpoints,
            self._note_progress,
            cancelled,
            PromptLookup(turn.prompt) if self._engine.lookup else None,
            mask_comes=turn.has_mask,
        )

    def pause(self) -> None:
        """Let others have the sequence until `resume`."""
        if self._sequence:
            self._pool.give_back(self._sequence)
            self._sequence = None

    def resume(self, slot: Slot) -> None:
        """Have `slot` go on from its prompt, on what is left of it."""
        self._sequence = slot.sequence = self._pool.reserve(slot.prompt, self.key, self._adapter)

    def close(self) -> None:
        """Let others have the sequence."""
        if self._sequence:
            self._pool.give_back(self._sequence)

    def push(self, token: Token) -> Iterator[Piece]:
        """What the next token brings about; after a stop sequence, no more."""
        self._note(token)
        for event in self._turn.push(token.id):
            yield from self._pieces(event)
            if self._stopped:
                return

    def finish(self, error: Exception | None) -> Iterator[Piece]:
        """The last pieces, after the last token or what cut the answer. Raises: Cancelled, or `error`."""
        if not self._stopped:
            for event in self._turn.end(error):
                yield from self._pieces(event)
            if isinstance(error, Cancelled):
                raise error
        yield self._done()

    def _note_progress(self, done: int, total: int) -> None:
        self._turn.note_prefill(done, total)
        self._question.reading.note(done, total)

    def _note(self, token: Token) -> None:
        is_raw = self._question.setup is None  # where harnesses count every token, the last one too
        if self._part == "answer" and (is_raw or token.id < TEXT_TOKENS):
            self._tokens.append(token)

    def _pieces(self, event: Event) -> Iterator[Piece]:
        if isinstance(event, MessageStart):
            if event.recipient:
                self._call_id = new_call_id()
                is_hosted = not event.recipient.startswith("functions.")
                yield CallOpened(self._call_id, called_name(event.recipient), is_hosted)
            else:
                self._part = _PARTS[event.channel]
                self._text.clear()
                yield Opened(self._part)
        elif isinstance(event, TextDelta):
            if self._part:
                yield from self._more(event.text)
            elif self._call_id:
                yield CallText(self._call_id, event.text)
        elif self._part:
            yield from self._close(event.ending != "cut")
        elif event.ending == "call":  # a call that was cut is none
            call = call_of(event.message, self._call_id)
            self._thoughts.keep(call.id, self._turn.messages[:-1])
            yield call

    def _more(self, text: str) -> Iterator[Piece]:
        assert self._part
        if self._part == "answer" and self._question.stops:
            text, self._stopped = self._stops.push(text)
        if text:
            yield self._give(text)
        if self._stopped:
            yield from self._close(True)

    def _close(self, is_whole: bool) -> Iterator[Piece]:
        assert self._part
        if self._part == "answer" and not self._stopped:
            rest = self._stops.finish()
            if rest or self._tokens:  # tokens without text: half a character, what ends a raw text
                yield self._give(rest)
        yield Closed(self._part, "".join(self._text), is_whole)
        self._part = None

    def _give(self, text: str) -> Text:
        assert self._part
        is_first = not self._text
        self._text.append(text)
        tokens, self._tokens = self._tokens, []
        if self._stopped:
            tokens = _tokens_within(text, tokens)
        return Text(self._part, text, is_first, tuple(tokens), self._turn.generated_tokens)

    def _done(self) -> Done:
        turn = self._turn
        messages = [m for m in turn.messages if m.text or m.recipient]
        reason = "stop" if self._stopped else _REASONS[turn.finish]
        if self._stopped:
            messages.append(Message("assistant", "".join(self._text), "final"))
        elif reason == "length":
            messages = [m for m in messages if not m.recipient]  # a call that was cut
            if not any(m.channel == "final" for m in messages):
                messages = [m for m in messages if m.channel != "analysis"]  # half a thought is no start
        prompt = len(turn.prompt)
        return Done(
            reason,
            Usage(prompt, prompt - turn.prefilled_tokens, turn.generated_tokens, turn.thinking_tokens),
            tuple(messages),
            turn.prefill_s,
            turn.decode_s,
            self._stops.found,
            self.key,
        )


def _tokens_within(text: str, tokens: list[Token]) -> list[Token]:
    """The first of `tokens`, as many as it takes to write `text`: the others wrote a stop sequence."""
    left, within = len(text.encode()), []
    for token in tokens:
        if left <= 0:
            break
        left -= len(token_bytes(token.id))
        within.append(token)
    return within
