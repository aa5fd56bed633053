"""/v1/chat/completions."""

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from localoss.chat.harmony import ChatSetup
from localoss.chat.tools import ToolCall
from localoss.server.chat.prompts import (
    JSON_OBJECT,
    Format,
    compiled_rules,
    convert_messages,
    split_instructions,
)
from localoss.server.chat.schemas import NEUTRAL, ChatRequest, ResponseFormat
from localoss.server.core.answering import CallOpened, CallText, Done, Question, Reading, Text, Usage
from localoss.server.core.bodies import BodyRoute
from localoss.server.core.errors import ApiError
from localoss.server.core.fields import note_unknown
from localoss.server.core.keys import Client, client_of
from localoss.server.core.logprobs import chat_logprobs
from localoss.server.core.models import acquire
from localoss.server.core.schemas import (
    STREAMS,
    JsonSchemaFormat,
    Schema,
    asks_no_thinking,
    effort_of,
    limit_of,
    refuse_unless,
    stops_of,
)
from localoss.server.core.service import (
    Choices,
    Service,
    event_stream,
    pieces_of,
    sampling_of,
)
from localoss.server.core.threads import in_thread
from localoss.server.core.toolbox import Toolbox, open_toolbox

router = APIRouter(route_class=BodyRoute)

_PROGRESS_EVERY_S = 0.5  # how often a client that asks for progress is told, where there is any


@router.post("/v1/chat/completions", responses=STREAMS, summary="Create a chat completion")
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    refuse_unless(body, NEUTRAL)
    service = await acquire(request, body.model)
    toolbox = await _toolbox(body)
    note_unknown(body, request, toolbox.left_out)
    client = client_of(request)
    questions = await _questions(service, body, toolbox, client)
    jobs = service.ask_all(questions, client)
    completion = _Completion(service, body, toolbox)
    if body.stream:
        return event_stream(completion.chunks(questions, jobs), named=False, last="[DONE]")
    return await completion.whole(jobs)


async def _toolbox(body: ChatRequest) -> Toolbox:
    """The tools, of the older fields `functions` and `function_call` where there are no others."""
    if body.tools or not body.functions:
        return (await in_thread(open_toolbox, body.tools or [])).choose(body.tool_choice)
    choice = body.function_call
    if isinstance(choice, dict):
        choice = {"type": "function", "function": choice}
    return (await in_thread(open_toolbox, body.functions)).choose(choice)


async def _questions(service: Service, body: ChatRequest, toolbox: Toolbox, client: Client) -> list[Question]:
    """One question for each choice. Raises: ApiError."""
    wanted = _format(body.response_format)
    rules = await compiled_rules(toolbox, wanted)
    effort = _effort(body)
    rules = replace(rules, think_budget=service.think_budget(_think_budget(body), effort))
    instructions, messages = split_instructions(
        convert_messages(body.messages, service.thoughts.of(client.key))
    )
    if wanted:
        instructions.append(wanted.instructions)
    setup = ChatSetup(effort_of(effort), "\n\n".join(instructions) or None, toolbox.functions)
    prompt = await service.prompt(setup, messages, "messages")
    limit = limit_of(body.max_completion_tokens, body.max_tokens)
    top = (body.top_logprobs or 0) if body.logprobs else 0
    return [
        Question(
            prompt,
            setup,
            rules,
            replace(sampling_of(body, limit, body.seed, index), logprobs=top),
            stops_of(body.stop),
        )
        for index in range(body.n or 1)
    ]


def _effort(body: ChatRequest) -> str | None:
    """The effort, wherever a client says it."""
    options, reasoning = body.chat_template_kwargs, body.reasoning
    switches = (
        body.enable_thinking,
        reasoning.enabled if reasoning else None,
        options.enable_thinking if options else None,
        body.thinking.type if body.thinking else None,
    )
    return (
        body.reasoning_effort
        or (reasoning.effort if reasoning else None)
        or (options.reasoning_effort if options else None)
        or ("none" if asks_no_thinking(*switches) else None)
    )


def _think_budget(body: ChatRequest) -> int | None:
    given = (
        body.think_budget,
        body.reasoning.max_tokens if body.reasoning else None,
        body.thinking.budget_tokens if body.thinking else None,
    )
    return next((one for one in given if one is not None), None)


def _shows_thinking(body: ChatRequest) -> bool:
    return body.include_reasoning is not False and not (body.reasoning and body.reasoning.exclude)


def _format(wanted: ResponseFormat | None) -> Format | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Format(wanted.schema_) if wanted.schema_ else JSON_OBJECT
    given = wanted.json_schema or (_unnamed(wanted.schema_))
    if given is None or given.schema_ is None:
        raise ApiError(
            "response_format of type json_schema needs json_schema.schema", param="response_format"
        )
    return Format(given.schema_, given.name, given.description, bool(given.strict))


def _unnamed(schema: Schema | None) -> JsonSchemaFormat | None:
    return JsonSchemaFormat.model_validate({"schema": schema}) if schema else None


class _Completion:
    """One request's answer, in OpenAI's words."""

    def __init__(self, service: Service, body: ChatRequest, toolbox: Toolbox) -> None:
        self._service, self._body, self._shows_thinking = service, body, _shows_thinking(body)
        self._words = _Words(toolbox, is_older=bool(body.functions and not body.tools))
        self._base = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.model,
        }

    async def whole(self, jobs: Choices) -> JSONResponse:
        choices, usages = [], []
        for index, job in enumerate(jobs):
            message = _Message(self._words)
            async for piece in job.items():
                if self._is_shown(piece):
                    message.add(piece)
                if isinstance(piece, Done):
                    self._service.note(piece)
                    usages.append(piece.usage)
                    choices.append(message.choice(index, piece.reason, bool(self._body.logprobs)))
        usage = _usage(usages)
        return JSONResponse({**self._base, "object": "chat.completion", "choices": choices, "usage": usage})

    async def chunks(self, questions: list[Question], jobs: Choices) -> AsyncIterator[dict[str, Any] | None]:
        """The chunks of a stream: a role, deltas, a finish reason; usage at the end if asked for."""
        usages: list[Usage] = []
        options = self._body.stream_options
        for index, (question, job) in enumerate(zip(questions, jobs, strict=True)):
            made = sum(usage.completion for usage in usages)
            yield self._chunk(index, {"role": "assistant", "content": ""})
            calls, joiner = 0, _Joiner()
            async for piece in self._pieces(job, question.reading):
                if piece is None:
                    yield None
                elif isinstance(piece, dict):
                    yield self._chunk(index, {}) | {"prompt_progress": piece}
                elif isinstance(piece, Text) and self._is_shown(piece):
                    chunk = self._chunk(index, _text_delta(piece, joiner.text(piece)), piece=piece)
                    if options and options.continuous_usage_stats:
                        chunk["usage"] = _counts(len(question.prompt), made + piece.generated_tokens)
                    yield chunk
                elif isinstance(piece, CallOpened | CallText | ToolCall):
                    if delta := self._words.delta(piece, calls):
                        yield self._chunk(index, delta)
                    calls += isinstance(piece, ToolCall)
                elif isinstance(piece, Done):
                    self._service.note(piece)
                    usages.append(piece.usage)
                    yield self._chunk(index, {}, self._words.reason(piece.reason))
        if options and options.include_usage:
            yield {**self._base, "object": "chat.completion.chunk", "choices": [], "usage": _usage(usages)}

    def _is_shown(self, piece: Any) -> bool:
        return self._shows_thinking or not (isinstance(piece, Text) and piece.part == "thinking")

    async def _pieces(self, job: Any, reading: Reading) -> AsyncIterator[Any]:
        """The job's pieces, with None now and then; and how far the prompt is read, if that was asked for."""
        if not self._body.return_progress:
            async for piece in pieces_of(job):
                yield piece
            return
        told = -1
        async for piece in pieces_of(job, _PROGRESS_EVERY_S):
            if reading.total and reading.done != told:
                told = reading.done
                yield _progress(reading)
            elif piece is None:
                yield None
            if piece is not None:
                yield piece

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, piece: Text | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        if self._body.logprobs and piece and piece.tokens:
            choice["logprobs"] = {"content": chat_logprobs(piece.tokens), "refusal": None}
        return {**self._base, "object": "chat.completion.chunk", "choices": [choice]}


class _Message:
    """A choice's message as it gathers."""

    def __init__(self, words: "_Words") -> None:
        self._words = words
        self._texts = {True: "", False: ""}  # thinking, and all else
        self._joiner = _Joiner()
        self._calls: list[dict[str, Any]] = []
        self._tokens: list[Any] = []

    def add(self, piece: Any) -> None:
        if isinstance(piece, Text):
            self._texts[piece.part == "thinking"] += self._joiner.text(piece)
            self._tokens += piece.tokens
        elif isinstance(piece, ToolCall):
            self._calls.append(self._words.call(piece))

    def choice(self, index: int, reason: str, with_logprobs: bool) -> dict[str, Any]:
        thinking, content = self._texts[True], self._texts[False]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if self._calls and not content else content,
            "refusal": None,
        }
        if thinking:
            message |= {"reasoning_content": thinking, "reasoning": thinking}
        if self._calls:
            message |= self._words.message(self._calls)
        logprobs = {"content": chat_logprobs(self._tokens), "refusal": None} if with_logprobs else None
        return {
            "index": index,
            "message": message,
            "finish_reason": self._words.reason(reason),
            "logprobs": logprobs,
        }


class _Joiner:
    """Sets an answer's parts off from each other where a response has one field for several."""

    def __init__(self) -> None:
        self._spoken: set[bool] = set()

    def text(self, piece: Text) -> str:
        """The piece's text, with an empty line before it if it begins another part of the same field."""
        thinks = piece.part == "thinking"
        begins = piece.is_first and thinks in self._spoken
        self._spoken.add(thinks)
        return "\n\n" + piece.text if begins else piece.text


def _text_delta(piece: Text, text: str) -> dict[str, Any]:
    if piece.part == "thinking":
        return {"reasoning_content": text, "reasoning": text}
    return {"content": text}


class _Words:
    """How a request is told of calls. is_older: it gave `functions`, and knows no `tool_calls`."""

    def __init__(self, toolbox: Toolbox, is_older: bool) -> None:
        self._toolbox, self._is_older = toolbox, is_older
        self._is_whole = False  # whether the open call is told of once it is whole

    def call(self, call: ToolCall) -> dict[str, Any]:
        offered = self._toolbox.as_offered(call.name)
        if offered.is_custom:
            return {
                "id": call.id,
                "type": "custom",
                "custom": {"name": offered.name, "input": offered.text_of(call)},
            }
        function = {"name": offered.name, "arguments": call.arguments}
        return {"id": call.id, "type": "function", "function": function}

    def delta(self, piece: CallOpened | CallText | ToolCall, index: int) -> dict[str, Any] | None:
        """What a stream says: a call's id and name, then its arguments as they are written.

        A custom tool's text, and a call in the older form, comes whole.
        """
        if isinstance(piece, CallOpened):
            self._is_whole = self._is_older or self._toolbox.as_offered(piece.name).is_custom
        if self._is_whole:
            if not isinstance(piece, ToolCall):
                return None
            call = self.call(piece)
            return self.message([call]) if self._is_older else {"tool_calls": [{"index": index, **call}]}
        if isinstance(piece, CallText):
            return {"tool_calls": [{"index": index, "function": {"arguments": piece.text}}]}
        if isinstance(piece, CallOpened):
            return {"tool_calls": [{"index": index, **self.call(ToolCall(piece.id, piece.name, ""))}]}
        return None

    def message(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        return {"function_call": calls[0]["function"]} if self._is_older else {"tool_calls": calls}

    def reason(self, reason: str) -> str:
        return "function_call" if self._is_older and reason == "tool_calls" else reason


def _progress(reading: Reading) -> dict[str, int]:
    return {
        "total": reading.total,
        "cache": reading.cached,
        "processed": reading.done,
        "time_ms": round(reading.time_s * 1000),
    }


def _counts(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _usage(usages: list[Usage]) -> dict[str, Any]:
    """The counts of all choices; they share one prompt."""
    return {
        **_counts(usages[0].prompt, sum(usage.completion for usage in usages)),
        "prompt_tokens_details": {"cached_tokens": usages[0].cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": sum(usage.reasoning for usage in usages),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
