"""Answers that are being written: each goes on and is kept whether or not a page looks on."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from localoss.chat import branches
from localoss.chat.agent import CallDone
from localoss.chat.conversation import Conversation
from localoss.chat.harmony import Message
from localoss.chat.session import Session
from localoss.errors import LocalossError
from localoss.server.core.answering import CallOpened, CallText, Closed, Done, Opened, Text
from localoss.server.core.errors import ApiError, as_api_error
from localoss.server.core.models import Held, Models
from localoss.server.core.threads import in_thread
from localoss.server.core.turns import Turns
from localoss.server.page.tools import PageTools
from localoss.server.page.view import result_part
from localoss.tools.citations import Find, Footnotes

Event = dict[str, Any]
_LOOK_S = 0.5  # how often an answer that says nothing is looked at
_FINISHED = 32  # how many are remembered, for a page that comes late
_CHANNELS = {"thinking": "analysis", "preamble": "commentary", "answer": "final"}


@dataclass
class LiveAnswer:
    """An answer in a session, which is open until the answer is kept. events: all that a page is told.

    held: what makes it, held until it is over. find: what the browser showed, to be cited.
    """

    held: Held
    session: Session
    conversation: Conversation
    model: str
    turns: Turns
    prompt_tokens: int
    find: Find
    reading: Any = None  # how far the prompt is read
    other: tuple[int, int] | None = None  # the exchange and rank that this is another answer to
    tools: PageTools | None = None
    events: list[Event] = field(default_factory=list)
    is_over: bool = False
    said: list[Message] = field(default_factory=list)  # up to the last call, and what that gave
    parts: list[tuple[str, list[str]]] = field(default_factory=list)  # since then, by channel
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, event: Event) -> None:
        self.events.append(event)
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def told(self) -> AsyncIterator[Event | None]:
        """The events from the beginning on, and None now and then; texts that belong together come as one."""
        seen = 0
        while True:
            news = self._news
            while seen < len(self.events):
                event = dict(self.events[seen])
                seen += 1
                while event["type"] == "text" and seen < len(self.events):
                    more = self.events[seen]
                    if more["type"] != "text" or more["part"] != event["part"]:
                        break
                    event |= {"text": event["text"] + more["text"], "tokens": more["tokens"]}
                    event["tokens_per_s"] = more["tokens_per_s"]
                    seen += 1
                yield event
            if self.is_over:
                return
            try:
                async with asyncio.timeout(10):
                    await news.wait()
            except TimeoutError:
                yield None

    def said_since(self) -> list[Message]:
        """What was said since the last call."""
        return [Message("assistant", "".join(texts), channel) for channel, texts in self.parts]

    def keep(self) -> None:
        """Write what was said to the session, and close it. Raises: LocalossError."""
        try:
            self.conversation.answer([*self.said, *self.said_since()])
            if self.other and self.conversation.messages[-1].role == "user":  # nothing was: as before
                exchange, rank = self.other
                branches.choose(self.conversation, exchange, True, rank)
            self.session.save_messages(self.conversation, self.model)
        finally:
            self.session.close()


class Answers:
    """All of a server's, by session."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._answers: OrderedDict[str, LiveAnswer] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, session: str) -> LiveAnswer | None:
        """The last answer there, or the one that is being written."""
        return self._answers.get(session)

    def is_writing(self, session: str) -> bool:
        answer = self.of(session)
        return answer is not None and not answer.is_over

    def follow(self, answer: LiveAnswer) -> None:
        """Have the answer written and kept."""
        self._answers[answer.session.name] = answer
        self._answers.move_to_end(answer.session.name)
        for name in [name for name, one in self._answers.items() if one.is_over][:-_FINISHED]:
            del self._answers[name]
        task = asyncio.create_task(self._write(answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, answer: LiveAnswer) -> None:
        end: Event = {"type": "done", "reason": "stopped"}
        try:
            end = await self._listen(answer)
        except Exception as error:
            end = {"type": "error", **_told(as_api_error(error))}
        finally:  # the server may be going down: what was said is kept all the same
            self._models.give_back(answer.held)
            try:
                await asyncio.shield(in_thread(answer.keep))
            except LocalossError as error:
                end = {"type": "error", **_told(as_api_error(error))}
            answer.is_over = True
            answer.send(end)

    async def _listen(self, answer: LiveAnswer) -> Event:
        """Follow the pieces of all turns; gives what is said at the end."""
        writer = _Writer(answer)
        async for piece in answer.turns.pieces(_LOOK_S):
            if piece is None:
                writer.look()
            elif isinstance(piece, Text):
                writer.add(piece)
            elif isinstance(piece, Opened | Closed):
                writer.turn(piece)
            elif isinstance(piece, CallOpened | CallText | CallDone):
                writer.call(piece)
            elif isinstance(piece, Done):
                answer.held.service.note(piece)
                return _figures(piece, writer)
        return {"type": "done", "reason": "stopped", **writer.figures()}


class _Writer:
    """Turns pieces into events and messages."""

    def __init__(self, answer: LiveAnswer) -> None:
        self._answer = answer
        self._began = time.monotonic()
        self._first: float | None = None  # when the first token came
        self._thought_s = self._part_began = 0.0
        self._tokens = self._tokens_before = 0  # of all turns, and of those before this one
        self._last_read = -1
        self._footnotes = Footnotes(answer.find)

    def look(self) -> None:
        """Tell how far the prompt is read, or that the answer waits for others."""
        reading = self._answer.reading
        if self._first is None and reading is not None and reading.total and reading.done != self._last_read:
            self._last_read = reading.done
            self._answer.send({"type": "reading", "done": reading.done, "total": reading.total})
        elif self._first is None and not (reading and reading.total):
            self._answer.send({"type": "waiting"})

    def turn(self, piece: Opened | Closed) -> None:
        self._note_first()
        if isinstance(piece, Opened):
            self._part_began = time.monotonic()
            self._answer.parts.append((_CHANNELS[piece.part], []))
            self._answer.send({"type": "opened", "part": piece.part})
        else:
            if piece.part == "thinking":
                self._thought_s += time.monotonic() - self._part_began
            elif piece.part == "answer":
                notes = "\n".join(f"- {note}" for note in self._footnotes.notes)
                self._write("answer", self._footnotes.finish() + (f"\n\n{notes}" if notes else ""))
            self._answer.send({"type": "closed", "part": piece.part, "thought_s": self._thought_s})

    def add(self, piece: Text) -> None:
        self._note_first()
        self._tokens = self._tokens_before + piece.generated_tokens
        is_cited = piece.part == "answer"
        self._write(piece.part, self._footnotes.push(piece.text) if is_cited else piece.text)

    def call(self, piece: CallOpened | CallText | CallDone) -> None:
        self._note_first()
        if isinstance(piece, CallOpened):
            self._answer.send({"type": "opened", "part": "call", "name": piece.name})
        elif isinstance(piece, CallText):
            self._send_text("call", piece.text)
        else:
            answer = self._answer
            answer.said += [*answer.said_since(), piece.call, piece.result]
            answer.parts.clear()
            self._tokens = self._tokens_before = answer.turns.generated_tokens
            answer.send({"type": "result", **result_part(piece.result), "seconds": piece.seconds})

    def _write(self, part: str, text: str) -> None:
        if text:
            self._answer.parts[-1][1].append(text)
            self._send_text(part, text)

    def _send_text(self, part: str, text: str) -> None:
        event = {"type": "text", "part": part, "text": text}
        self._answer.send(event | {"tokens": self._tokens, "tokens_per_s": self._speed()})

    def figures(self) -> Event:
        spoken = {"completion_tokens": self._tokens, "tokens_per_s": self._speed()}
        return spoken | {"thought_s": self._thought_s}

    def _note_first(self) -> None:
        self._first = self._first or time.monotonic()

    def _speed(self) -> float:
        passed = time.monotonic() - (self._first or self._began)
        return (self._tokens - 1) / passed if self._tokens > 1 and passed > 0 else 0.0


def _figures(done: Done, writer: _Writer) -> Event:
    usage = done.usage
    speed = (usage.completion - 1) / done.decode_s if done.decode_s else 0.0
    return {
        "type": "done",
        "reason": done.reason,
        **writer.figures(),
        "prompt_tokens": usage.prompt,
        "cached_tokens": usage.cached,
        "completion_tokens": usage.completion,
        "reasoning_tokens": usage.reasoning,
        "prefill_s": done.prefill_s,
        "tokens_per_s": speed,
    }


def _told(error: ApiError) -> dict[str, Any]:
    told: dict[str, Any] = error.body()["error"]
    return {"message": told["message"], "code": told["code"]}
