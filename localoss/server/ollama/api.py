"""Ollama's API to ask with: lines of JSON instead of events, and counts in nanoseconds."""

import datetime
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from localoss.chat.harmony import ChatSetup
from localoss.chat.rules import AnswerRules
from localoss.chat.tools import ToolCall
from localoss.errors import UsageError
from localoss.server.chat.prompts import (
    JSON_OBJECT,
    Format,
    compiled_rules,
    convert_messages,
    split_instructions,
)
from localoss.server.chat.schemas import ChatMessage, SentCall
from localoss.server.core.answering import Done, Piece, Question, Text
from localoss.server.core.bodies import BodyRoute
from localoss.server.core.errors import ApiError
from localoss.server.core.fields import note_unknown
from localoss.server.core.keys import Client, client_of
from localoss.server.core.models import Models, acquire, keep_for
from localoss.server.core.schemas import LINES, Sampled, effort_of, stops_of
from localoss.server.core.service import Service, pieces_of, sampling_of
from localoss.server.core.threads import in_thread
from localoss.server.core.toolbox import Toolbox, open_toolbox
from localoss.server.ollama.lines import line_stream
from localoss.server.ollama.schemas import Asked, ChatRequest, GenerateRequest, OllamaMessage
from localoss.settings import duration_s

router = APIRouter(prefix="/api", route_class=BodyRoute)

Line = dict[str, Any]
_PENALTIES = ("repeat_penalty", "presence_penalty", "frequency_penalty")
_SAMPLED = ("temperature", "top_p", "top_k", "min_p", *_PENALTIES)


@router.post("/chat", responses=LINES, summary="Chat (Ollama)")
async def chat(body: ChatRequest, request: Request) -> Response:
    if not body.messages:
        return await _only_loaded(request, body, {"message": {"role": "assistant", "content": ""}})
    service = await _service(request, body)
    toolbox = (await in_thread(open_toolbox, body.tools or [])).choose(None)
    note_unknown(body, request, toolbox.left_out)
    question = await _question(
        service, body, [_message(one) for one in body.messages], toolbox, client_of(request)
    )
    return await _answered(request, service, body, question, _ChatWords(toolbox, _shows(body)))


@router.post("/generate", responses=LINES, summary="Generate (Ollama)")
async def generate(body: GenerateRequest, request: Request) -> Response:
    if not body.prompt:
        return await _only_loaded(request, body, {"response": ""})
    if body.suffix:
        raise ApiError(f"{body.model} does not support insert", param="suffix")
    service = await _service(request, body)
    note_unknown(body, request)
    if body.raw:
        tokens = await service.raw_prompt(body.prompt, "prompt")
        question = _sampled(body, Question(tokens, None, AnswerRules()))
    else:
        asked = _message(OllamaMessage(role="user", content=body.prompt, images=body.images))
        system = [ChatMessage(role="system", content=body.system)] if body.system else []
        question = await _question(service, body, [*system, asked], Toolbox(), client_of(request))
    return await _answered(request, service, body, question, _GenerateWords(_shows(body)))


async def _service(request: Request, body: Asked) -> Service:
    """The service of the model that `body` names. Raises: ApiError, LocalossError."""
    keep_s = _keep_s(body)
    service = await acquire(request, body.model.removesuffix(":latest"))
    if body.keep_alive is not None:
        keep_for(request, keep_s)
    return service


def _keep_s(body: Asked) -> float | None:
    """How long a model stays in memory after its answer; None for ever. Raises: ApiError."""
    try:
        return duration_s(str(body.keep_alive)) if body.keep_alive is not None else None
    except UsageError as error:
        raise ApiError(f"keep_alive: {error}", param="keep_alive") from None


async def _only_loaded(request: Request, body: Asked, said: Line) -> Response:
    """What an empty question gets, which only wants the model in memory, or out of it."""
    reason = "load"
    if body.keep_alive is not None and _keep_s(body) == 0:
        models: Models = request.app.state.models
        await models.unload(await models.find(body.model.removesuffix(":latest")))
        reason = "unload"
    else:
        await _service(request, body)
    note_unknown(body, request)
    line = {"model": body.model, "created_at": _now(), **said, "done": True, "done_reason": reason}
    return JSONResponse(line)


def _message(message: OllamaMessage) -> ChatMessage:
    """The message in chat completions' form, of which there is one conversion."""
    content: Any = message.content
    if message.images:
        content = [{"type": "text", "text": message.content or ""}, {"type": "image"}]
    calls = [SentCall(id=call.id, function=call.function) for call in message.tool_calls or []]
    return ChatMessage(
        role=message.role,
        content=content,
        reasoning_content=message.thinking,
        tool_calls=calls or None,
        tool_call_id=message.tool_call_id,
        name=message.tool_name,
    )


async def _question(
    service: Service, body: Asked, messages: list[ChatMessage], toolbox: Toolbox, client: Client
) -> Question:
    """Raises: ApiError."""
    wanted = Format(body.format) if isinstance(body.format, dict) else JSON_OBJECT if body.format else None
    effort = body.think if isinstance(body.think, str) else "none" if body.think is False else None
    rules = await compiled_rules(toolbox, wanted)
    rules = replace(rules, think_budget=service.think_budget(None, effort))
    instructions, converted = split_instructions(convert_messages(messages, service.thoughts.of(client.key)))
    if wanted:
        instructions.append(wanted.instructions)
    setup = ChatSetup(effort_of(effort), "\n\n".join(instructions) or None, toolbox.functions)
    prompt = await service.prompt(setup, converted, "messages")
    return _sampled(body, Question(prompt, setup, rules))


def _sampled(body: Asked, question: Question) -> Question:
    options = body.options
    if options is None:
        return question
    given = {name: getattr(options, name) for name in _SAMPLED}
    limit = None if options.num_predict is None or options.num_predict < 0 else options.num_predict
    params = sampling_of(Sampled(model=body.model, **given), limit, options.seed)
    return replace(question, params=params, stops=stops_of(options.stop))


def _shows(body: Asked) -> bool:
    return body.think is not False


class _ChatWords:
    """/api/chat: pieces become messages."""

    def __init__(self, toolbox: Toolbox, shows_thinking: bool) -> None:
        self._toolbox, self._shows_thinking = toolbox, shows_thinking

    def lines(self, piece: Piece) -> Iterator[Line]:
        if isinstance(piece, Text) and piece.text:
            if piece.part == "thinking":
                if self._shows_thinking:
                    yield self.said("", thinking=piece.text)
            else:
                yield self.said(piece.text)
        elif isinstance(piece, ToolCall):
            try:
                arguments = json.loads(piece.arguments)
            except ValueError:  # a schema that couldn't be followed
                arguments = {}
            name = self._toolbox.as_offered(piece.name).name
            yield self.said(
                "", tool_calls=[{"id": piece.id, "function": {"name": name, "arguments": arguments}}]
            )

    def said(self, content: str, **more: Any) -> Line:
        return {"message": {"role": "assistant", "content": content, **more}}

    def whole(self, lines: list[Line]) -> Line:
        messages = [line["message"] for line in lines]
        more: dict[str, Any] = {}
        if thinking := "".join(message.get("thinking", "") for message in messages):
            more["thinking"] = thinking
        if calls := [call for message in messages for call in message.get("tool_calls", [])]:
            more["tool_calls"] = calls
        return self.said("".join(message["content"] for message in messages), **more)


class _GenerateWords:
    """/api/generate: pieces become text."""

    def __init__(self, shows_thinking: bool) -> None:
        self._shows_thinking = shows_thinking

    def lines(self, piece: Piece) -> Iterator[Line]:
        if isinstance(piece, Text) and piece.text:
            if piece.part != "thinking":
                yield {"response": piece.text}
            elif self._shows_thinking:
                yield {"response": "", "thinking": piece.text}

    def said(self, content: str) -> Line:
        return {"response": content}

    def whole(self, lines: list[Line]) -> Line:
        said = {"response": "".join(line["response"] for line in lines)}
        thinking = "".join(line.get("thinking", "") for line in lines)
        return said | ({"thinking": thinking} if thinking else {})


async def _answered(
    request: Request, service: Service, body: Asked, question: Question, words: _ChatWords | _GenerateWords
) -> Response:
    """The answer, as lines or, without a stream, as one."""
    started = time.perf_counter()
    job = service.ask(question, client_of(request))

    async def lines() -> AsyncIterator[Line]:
        async for piece in pieces_of(job):
            base = {"model": body.model, "created_at": _now()}
            for line in [words.said("")] if piece is None else words.lines(piece):  # an empty one: still here
                yield {**base, **line, "done": False}
            if isinstance(piece, Done):
                service.note(piece)
                yield {**base, **words.said(""), **_figures(piece, time.perf_counter() - started)}

    async def whole() -> Response:
        *given, last = [line async for line in lines()]
        return JSONResponse(last | words.whole(given))

    if body.stream is False:
        return await whole()
    return line_stream(lines())


def _figures(done: Done, total_s: float) -> Line:
    """What the last line says; times in nanoseconds."""
    return {
        "done": True,
        "done_reason": "length" if done.reason == "length" else "stop",
        "total_duration": round(total_s * 1e9),
        "load_duration": 0,
        "prompt_eval_count": done.usage.prompt,
        "prompt_eval_duration": round(done.prefill_s * 1e9),
        "eval_count": done.usage.completion,
        "eval_duration": round(done.decode_s * 1e9),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
