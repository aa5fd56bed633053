"""The turns of one answer: the model's, and between them the calls of tools that this server runs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from localoss.chat.agent import STOPPED, CallDone
from localoss.chat.harmony import Message
from localoss.chat.tools import answer_message, call_of
from localoss.server.core.answering import CallOpened, Done, Piece, Question, Usage
from localoss.server.core.hosted import RequestTools
from localoss.server.core.jobs import Job
from localoss.server.core.service import Service, idle_of, pieces_of

Ask = Callable[[Question, bool], Job]  # a question, and whether it follows one that was let in


@dataclass(frozen=True)
class Approved:
    """A call that the client's user allowed. id: the call's. result: stands for what it will have given."""

    id: str
    call: Message
    result: Message


def put(messages: list[Message], old: Message, new: Message) -> None:
    """Have `new` stand where `old` itself stands, if it does."""
    messages[:] = [new if message is old else message for message in messages]


class Turns:
    """Gives the pieces of all turns, the results of calls among them, and one Done at the end."""

    def __init__(
        self,
        service: Service,
        question: Question,
        messages: list[Message],
        tools: RequestTools | None,
        ask: Ask,
        approved: Approved | None = None,
    ) -> None:
        """messages: those that the question's prompt was rendered from. approved: what is called first.

        Raises: what `ask` raises.
        """
        self._service, self._question, self._tools = service, question, tools
        self._prompted, self._ask, self._approved = list(messages), ask, approved
        self._is_cancelled = False
        self._call: asyncio.Future[CallDone] | None = None  # while one is made
        self._said: list[Message] = []
        self._usage = Usage(0, 0, 0, 0)
        self._seconds = (0.0, 0.0)  # prefill and decode
        self._job = None if approved else ask(question, False)

    @property
    def generated_tokens(self) -> int:
        """Of the turns that are over."""
        return self._usage.completion

    def cancel(self) -> None:
        """Nobody waits any more: the model stops, and so does a call."""
        self._is_cancelled = True
        if self._job:
            self._job.cancel()
        if self._call:
            self._call.cancel()

    async def pieces(self, idle_s: float | None = None) -> AsyncIterator[Piece | CallDone | None]:
        """None after every `idle_s` without anything. Raises: ApiError, LocalossError."""
        if self._approved:
            async for early in self._make_approved(self._approved, idle_of(idle_s)):
                yield early
        while self._job and not self._is_cancelled:
            done: Done | None = None
            async for piece in pieces_of(self._job, idle_s):
                if isinstance(piece, Done):
                    done = piece
                else:
                    yield piece
            if done is None:
                return
            self._add(done)
            call = done.messages[-1] if done.messages else None
            if done.reason != "tool_calls" or call is None or not self._is_made_here(call):
                yield self._total(done)
                return
            async for made in self._make(call, done.usage.prompt + done.usage.completion, idle_of(idle_s)):
                if made:
                    self._said.append(made.result)
                yield made
            if not self._is_cancelled:
                await self._ask_again()

    def _is_made_here(self, call: Message) -> bool:
        """Whether a call is made now, rather than by the client, or once its user was asked."""
        tools = self._tools
        return tools is not None and tools.runs(call.recipient) and not tools.asks(call.recipient)

    async def _make_approved(
        self, approved: Approved, idle_s: float
    ) -> AsyncIterator[Piece | CallDone | None]:
        """Make the call that was allowed, before the model goes on."""
        call = call_of(approved.call, approved.id)
        yield CallOpened(call.id, call.name)
        yield call
        async for made in self._make(approved.call, len(self._question.prompt), idle_s):
            if made:
                put(self._prompted, approved.result, made.result)
            yield made
        if not self._is_cancelled:
            await self._ask_again()

    async def _make(self, call: Message, tokens: int, idle_s: float) -> AsyncIterator[CallDone | None]:
        """Make a call in a conversation of so many tokens, and give its result."""
        hosted = self._service.hosted
        assert hosted and self._tools
        room = self._service.engine.context_tokens - tokens
        self._call = task = asyncio.ensure_future(hosted.carry_out(self._tools, call, room))
        try:
            while not (await asyncio.wait([task], timeout=idle_s))[0]:
                yield None
            stopped = CallDone(call, answer_message(call, STOPPED), ok=False, is_stopped=True)
            made = stopped if task.cancelled() else task.result()
        finally:
            self._call = None
            task.cancel()
        yield made

    async def _ask_again(self) -> None:
        """Queue the next turn. Raises: ApiError if the conversation doesn't fit any more."""
        assert self._tools and self._question.setup
        prompt = await self._service.prompt(self._question.setup, [*self._prompted, *self._said], "input")
        rules, params = self._question.rules, self._question.params
        rules = replace(rules, must_call=False)
        if self._tools.agent.is_over:
            rules = replace(rules, functions=(), builtin_tools=False)
        if params.max_tokens is not None:
            params = replace(params, max_tokens=max(params.max_tokens - self._usage.completion, 1))
        question = replace(self._question, prompt=prompt, rules=rules, params=params)
        self._job = self._ask(question, True)
        if self._is_cancelled:
            self._job.cancel()

    def _add(self, done: Done) -> None:
        self._said += done.messages
        usage, before = done.usage, self._usage
        self._usage = Usage(
            before.prompt + usage.prompt,
            before.cached + usage.cached,
            before.completion + usage.completion,
            before.reasoning + usage.reasoning,
        )
        self._seconds = self._seconds[0] + done.prefill_s, self._seconds[1] + done.decode_s

    def _total(self, done: Done) -> Done:
        prefill_s, decode_s = self._seconds
        messages = tuple(self._said)
        return replace(done, usage=self._usage, messages=messages, prefill_s=prefill_s, decode_s=decode_s)
