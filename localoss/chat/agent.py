"""The calls of one answer: carried out one after the other, within limits, until the model answers.

No terminal and no engine inside: whoever runs the model takes the turns and shows what happens. The command
line does by `answer`; the server calls `Agent` between the turns that its queue takes.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

from localoss.chat import harmony
from localoss.chat.conversation import Conversation
from localoss.chat.harmony import Message
from localoss.chat.rules import AnswerRules
from localoss.chat.tools import answer_message
from localoss.chat.turn import Turn
from localoss.errors import LocalossError

STOPPED = "The user stopped this call before it was done."
_NO_TIME = "The time for this call was over, and it was stopped."
_TOLD_TWICE = "You made the same call before, and it gave the same. Do something else, or answer."
_ENDED = "No more calls can be made in this answer{why}. Answer now, with what you know."
_LOOK_S = 0.02
_GRACE_S = 5.0  # for a tool to end once it was told to
_LEAST_ROOM = 128  # tokens that the context must have left for another result
_HEAD_SHARE = 2 / 3  # of a result that is cut: its end says how it went
_CHARS_PER_TOKEN = 8  # more than text has: what is cut needn't be tokenized to its end


@dataclass(frozen=True)
class Limits:
    """calls: of one answer. seconds: of all its calls. result_tokens: of one call's result."""

    calls: int = 40
    seconds: float = 1200.0
    result_tokens: int = 8_000


@dataclass(frozen=True)
class Result:
    """What a call gave. text: for the model. pictures: files that it drew. ok: False for what went wrong."""

    text: str
    pictures: tuple[str, ...] = ()
    ok: bool = True


class Stop:
    """Tells a tool that nobody waits for it any more, on whichever thread it works."""

    def __init__(self) -> None:
        self.reason = ""  # "user" or "time", once it is told
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._enders: list[Callable[[], None]] = []

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it is told; whether it is."""
        return self._event.wait(seconds)

    def request(self, reason: str) -> None:
        with self._lock:
            if self._event.is_set():
                return
            self.reason = reason
            self._event.set()
            enders = list(self._enders)
        for end in enders:
            end()

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """Inside, `end` is called when it is told, from another thread: it ends what is waited for."""
        with self._lock:
            is_late = self._event.is_set()
            self._enders.append(end)
        if is_late:
            end()
        try:
            yield
        finally:
            with self._lock:
                self._enders.remove(end)


class Tools(Protocol):
    """What can be called. See localoss.tools.toolset."""

    rules: AnswerRules

    def limit_s(self, call: Message) -> float:
        """How long this call may take."""

    def refusal(self, call: Message) -> str | None:
        """Ask whoever has to be asked; what the model reads if the call may not be made, None if it may."""

    def run(self, call: Message, stop: Stop) -> Result:
        """Make the call. Raises: LocalossError, whose message the model reads."""


Interrupts = Callable[[], AbstractContextManager[Callable[[], bool]]]


@dataclass(frozen=True)
class CallBegun:
    """The model wrote a call, which is about to be made."""

    call: Message


@dataclass(frozen=True)
class CallDone:
    """A call and its result, as the model reads it. is_stopped: the user broke it off."""

    call: Message
    result: Message
    seconds: float = 0.0
    pictures: tuple[str, ...] = ()
    ok: bool = True
    is_stopped: bool = False


CallEvent = CallBegun | CallDone


@dataclass
class Agent:
    """Makes the calls of one answer after another; `begin` starts an answer."""

    tools: Tools
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._made: Counter[tuple[str, str, str]] = Counter()
        self._calls, self._seconds = 0, 0.0
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether no more calls can be made in this answer."""
        return self._is_over

    @property
    def rules(self) -> AnswerRules:
        """What the next turn may be: once calls are over, nothing but an answer."""
        return AnswerRules(functions=(), builtin_tools=False) if self._is_over else self.tools.rules

    def carry_out(
        self, call: Message, interrupts: Interrupts | None = None, room_tokens: int | None = None
    ) -> CallDone:
        """Make `call`, which the model wrote to its end. Never raises for what a tool does.

        interrupts: a context that tells whether the user wants to stop. room_tokens: what the context has
        left; a result takes half of that at most.
        """
        started = time.monotonic()
        stop = Stop()
        refusal = None
        try:
            with interrupts() if interrupts else nullcontext(lambda: False) as cancelled:
                if cancelled():  # since the model wrote the call
                    raise KeyboardInterrupt
            refusal = self.tools.refusal(call)
            result = Result(refusal, ok=False) if refusal else self._run(call, stop, interrupts)
        except KeyboardInterrupt:
            stop.request("user")
            result = Result(STOPPED, ok=False)
        except LocalossError as error:
            result = Result(str(error), ok=False)
        took_s = time.monotonic() - started
        self._calls += 1
        self._seconds += (
            0.0 if refusal else took_s
        )  # somebody who thinks about a question takes no tool's time
        text = "\n\n".join([self._cut(result.text, room_tokens), *self._notes(call, result, room_tokens)])
        is_stopped = stop.reason == "user"
        answered = replace(answer_message(call, text), pictures=result.pictures)
        return CallDone(call, answered, took_s, result.pictures, result.ok, is_stopped)

    def _run(self, call: Message, stop: Stop, interrupts: Interrupts | None) -> Result:
        """The tool works on a thread of its own, left behind if it doesn't end when it is told to."""
        found: list[Result] = []

        def work() -> None:
            try:
                found.append(self.tools.run(call, stop))
            except LocalossError as error:
                found.append(Result(str(error), ok=False))
            except Exception as error:  # a tool's bug is a result like others: the conversation goes on
                found.append(Result(f"The tool failed: {type(error).__name__}: {error}", ok=False))

        thread = threading.Thread(target=work, name="tool", daemon=True)
        ends = time.monotonic() + min(self.tools.limit_s(call), self.limits.seconds - self._seconds)
        with interrupts() if interrupts else nullcontext(lambda: False) as cancelled:
            try:
                thread.start()
                while thread.is_alive() and not stop.is_set:
                    thread.join(_LOOK_S)
                    if cancelled():
                        stop.request("user")
                    elif time.monotonic() > ends:
                        stop.request("time")
                thread.join(_GRACE_S)
                if cancelled():  # just as it was done: nobody wants the model to go on
                    stop.request("user")
            except KeyboardInterrupt:
                stop.request("user")
        if stop.reason == "user":
            return Result(STOPPED, ok=False)
        if found:
            return found[0]
        return Result(_NO_TIME, ok=False)

    def _notes(self, call: Message, result: Result, room_tokens: int | None) -> list[str]:
        """What the model is told beside a result: that it repeats itself, that calls are over."""
        asked = (call.recipient or "", call.text, result.text)
        self._made[asked] += 1
        why = None
        if self._made[asked] > 2:
            why = ": the same call was made again and again"
        elif self._calls >= self.limits.calls:
            why = f": {self.limits.calls} were made"
        elif self._seconds >= self.limits.seconds:
            why = f": they took {self.limits.seconds:.0f} s"
        elif room_tokens is not None and room_tokens // 2 < _LEAST_ROOM:
            why = ": the conversation is full"
        if why is not None:
            self._is_over = True
            return [_ENDED.format(why=why)]
        return [_TOLD_TWICE] if self._made[asked] == 2 else []

    def _cut(self, text: str, room_tokens: int | None) -> str:
        most = self.limits.result_tokens
        return cut_text(text, most if room_tokens is None else max(min(most, room_tokens // 2), 0))


def answer(
    agent: Agent,
    conversation: Conversation,
    take_turn: Callable[[], Turn],
    heard: Callable[[CallEvent], None],
    interrupts: Interrupts,
    context_tokens: int,
) -> Turn:
    """Take turns and make calls until the model answers, or is stopped; gives the last turn.

    take_turn: generates what comes next, under `agent.rules`, and adds it to `conversation`. heard: told of
    each call, before and after. Raises: what take_turn raises; the conversation can always be gone on with.
    """
    agent.begin()
    try:
        while (turn := take_turn()).finish == "call":
            call = conversation.messages[-1]
            heard(CallBegun(call))
            room = context_tokens - len(turn.prompt) - turn.generated_tokens
            done = agent.carry_out(call, interrupts, room)
            conversation.messages.append(done.result)
            heard(done)
            if done.is_stopped:
                turn.finish = "cancelled"
                break
        return turn
    finally:
        last = conversation.messages[-1] if conversation.messages else None
        if last and last.role == "assistant" and last.recipient:  # a call without a result can't be followed
            conversation.messages.append(answer_message(last, STOPPED))


def cut_text(text: str, most_tokens: int) -> str:
    """`text` with its middle left out, and that said, if it has more than `most_tokens`."""
    if len(text) * 4 <= most_tokens:  # four bytes make a character at most, and a byte a token
        return text
    window = max(most_tokens * _CHARS_PER_TOKEN, 1)
    if len(text) <= 2 * window and len(harmony.encode_text(text)) <= most_tokens:
        return text
    head_tokens = int(most_tokens * _HEAD_SHARE)
    head = _decoded(harmony.encode_text(text[:window])[:head_tokens])
    tail_tokens = harmony.encode_text(text[len(head) :][-window:])[head_tokens - most_tokens :]
    tail = _decoded(tail_tokens) if head_tokens < most_tokens else ""
    left_out = len(text) - len(head) - len(tail)
    return f"{head}\n[… {left_out:,} characters left out: more than a result may have …]\n{tail}"


def _decoded(tokens: list[int]) -> str:
    """Text of tokens that may begin or end within a character."""
    return b"".join(map(harmony.token_bytes, tokens)).decode("utf-8", "ignore")
