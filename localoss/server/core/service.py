"""What all endpoints share: the engine and its queue, kept conversations, and how answers reach a client."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import StreamingResponse

from localoss.chat import harmony
from localoss.chat.harmony import ChatSetup, Message
from localoss.chat.tools import Thoughts
from localoss.engine.engine import Engine
from localoss.errors import TooManyTokensError
from localoss.hub.registry import usual_think_budget
from localoss.options import SamplingParams
from localoss.server.core.answering import Answering, Done, Piece, Question
from localoss.server.core.apart import LARGE, apart
from localoss.server.core.errors import ApiError, as_api_error, context_length_error
from localoss.server.core.hosted import HostedTools
from localoss.server.core.jobs import Job, Work
from localoss.server.core.json_text import dumps
from localoss.server.core.keys import Client
from localoss.server.core.metrics import Metrics
from localoss.server.core.pool import SequencePool
from localoss.server.core.response_store import ResponseStore
from localoss.server.core.scheduler import Scheduler
from localoss.server.core.schemas import Sampled, bias_of
from localoss.server.core.threads import in_thread

_PING_AFTER_S = 10.0  # proxies and clients give up on a stream that says nothing
_SEED_STEP = 1  # the choices of one request differ by it

_LEAST_TOP_P = 1e-6  # what top_p 0 asks for: the likeliest token alone
_NO_END = 2**31  # more tokens than any context


@dataclass
class Service:
    """One model behind the API. default_think_budget: of requests that give none; None for the model's own.

    batches: what clients leave to be answered in time; None where no files are kept.
    """

    engine: Engine
    model: str  # its name to clients
    scheduler: Scheduler
    pool: SequencePool
    store: ResponseStore = field(default_factory=lambda: ResponseStore(None))
    default_think_budget: int | None = None
    thoughts: Thoughts = field(default_factory=Thoughts)
    metrics: Metrics = field(default_factory=Metrics)
    hosted: HostedTools | None = None  # tools that are run here
    adapter: str | None = None  # that the engine's sequences run with

    def __post_init__(self) -> None:
        if self.default_think_budget is None:
            self.default_think_budget = usual_think_budget(self.model)
        self.metrics.watch(self.scheduler)

    def close(self) -> None:
        """End the engine's thread and let go of the engine: its memory is free once nobody else holds it."""
        self.scheduler.stop()
        self.pool.close()
        self.metrics.forget(self.scheduler)
        del self.engine, self.pool, self.scheduler

    def of(self, model: str, adapter: str) -> "Service":
        """The same engine with one of its adapters, as a model of its own; whoever has it holds this one."""
        service = copy(self)
        service.model, service.adapter = model, adapter
        return service

    async def prompt(self, setup: ChatSetup, messages: list[Message], param: str) -> list[int]:
        """The tokens of a conversation, which came as `param`. Raises: ApiError if it doesn't fit."""
        try:
            read = apart if sum(len(one.text) for one in messages) > LARGE else in_thread
            tokens = await read(harmony.render, setup, messages, self.engine.context_tokens)
        except TooManyTokensError as error:
            raise self.too_long(error, param) from None
        self.check_length(len(tokens), param)
        return tokens

    async def raw_prompt(self, text: str, param: str) -> list[int]:
        """The tokens of raw text, control tokens included. Raises: ApiError if it doesn't fit."""
        try:
            read = apart if len(text) > LARGE else in_thread
            tokens = await read(harmony.encode_raw, text, self.engine.context_tokens)
        except TooManyTokensError as error:
            raise self.too_long(error, param) from None
        self.check_length(len(tokens), param)
        return tokens

    def too_long(self, error: TooManyTokensError, param: str) -> ApiError:
        return context_length_error(error.tokens, self.engine.context_tokens, param)

    def check_length(self, tokens: int, param: str) -> None:
        """Raises: ApiError if a prompt of so many tokens leaves no room for an answer."""
        if tokens >= self.engine.context_tokens:
            raise context_length_error(tokens, self.engine.context_tokens, param)

    def think_budget(self, asked: int | None, effort: str | None = None) -> int | None:
        """The thinking budget of a request that asked for `asked`, or for no effort at all."""
        if asked is None and effort == "none":
            return 0
        return self.default_think_budget if asked is None else asked

    def ask(self, question: Question, client: Client, follows: bool = False) -> Job:
        """Queue a question. Raises: ApiError 429 or 503."""
        answering = Answering(self.engine, self.pool, self.thoughts, question, client.key, self.adapter)
        return self.submit(answering, client, follows)

    def submit(self, work: Work, client: Client, follows: bool = False) -> Job:
        return self.scheduler.submit(Job(work, client, follows, self.adapter))

    def ask_all(self, questions: Sequence[Question], client: Client) -> "Choices":
        """Queue the questions of one request, the first now. Raises: ApiError 429 or 503."""
        return self.choices(
            len(questions), lambda index: self.ask(questions[index], client, follows=index > 0)
        )

    def choices(self, count: int, submit: Callable[[int], Job]) -> "Choices":
        """The jobs of one request, of which `submit` queues the one of that index. Raises: as submit."""
        return Choices(count, submit, self.scheduler.parallel)

    def note(self, done: Done) -> None:
        self.metrics.note(done.usage, done.prefill_s, done.decode_s, done.key)


class Choices:
    """The jobs of one request, in order; those that can run side by side are queued before their turn."""

    def __init__(self, count: int, submit: Callable[[int], Job], ahead: int) -> None:
        """ahead: how many are queued at once. Raises: what the first `submit` raises."""
        self._count, self._submit, self._ahead = count, submit, ahead
        self._jobs = [submit(0)]

    def __iter__(self) -> Iterator[Job]:
        """Job after job; whoever leaves early cancels those that are left."""
        try:
            for index in range(self._count):
                while len(self._jobs) < min(self._count, index + self._ahead):
                    self._jobs.append(self._submit(len(self._jobs)))
                yield self._jobs[index]
        finally:
            for job in self._jobs:
                job.cancel()


def sampling_of(body: Sampled, max_tokens: int | None, seed: int | None, choice: int = 0) -> SamplingParams:
    """How `body` wants tokens drawn, for one of its choices."""
    defaults = SamplingParams()
    return SamplingParams(
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else max(body.top_p, _LEAST_TOP_P),
        top_k=defaults.top_k if body.top_k is None else max(body.top_k, 0),
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        seed=None if seed is None else (seed + choice * _SEED_STEP) % 2**64,
        max_tokens=max_tokens,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        repetition_penalty=body.repetition_penalty or body.repeat_penalty or 1.0,
        logit_bias=bias_of(body.logit_bias),
        min_tokens=(max_tokens or _NO_END) if body.ignore_eos else body.min_tokens or 0,
    )


def event_stream(
    events: AsyncIterator[dict[str, Any] | None],
    *,
    named: bool,
    last: str | None,
    error_body: Callable[[ApiError], dict[str, Any]] | None = None,
) -> Any:
    """Server-sent events; None is a sign of life. named: with event lines. last: what ends the stream.

    error_body: how an error is told; None for OpenAI's way.
    """

    async def lines() -> AsyncIterator[str]:
        try:
            async for event in events:
                if event is None:
                    yield ": waiting\n\n"
                else:
                    name = f"event: {event['type']}\n" if named else ""
                    yield f"{name}data: {dumps(event)}\n\n"
        except Exception as error:
            told = as_api_error(error)
            body = told.body()
            flat = error_body(told) if error_body else {"type": "error", **body["error"]}
            yield f"event: error\ndata: {dumps(flat)}\n\n" if named else f"data: {dumps(body)}\n\n"
        finally:
            with suppress(RuntimeError):
                await events.aclose()  # type: ignore[attr-defined]
        if last is not None:
            yield f"data: {last}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def pieces_of(job: Job, idle_s: float | None = None) -> AsyncIterator[Piece | None]:
    """The job's pieces, with None after every `idle_s` without any; by default now and then."""
    return job.items(idle_of(idle_s))


def idle_of(idle_s: float | None) -> float:
    """After how long a stream gives a sign of life."""
    return _PING_AFTER_S if idle_s is None else idle_s
