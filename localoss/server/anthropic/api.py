"""/v1/messages: Anthropic's API, as Claude Code and its libraries speak it."""

import json
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from localoss.chat.harmony import ChatSetup
from localoss.chat.tools import ToolCall
from localoss.server.anthropic.prompts import convert_messages, toolbox_of
from localoss.server.anthropic.schemas import CountRequest, MessagesRequest
from localoss.server.chat.prompts import Format, compiled_rules, split_instructions
from localoss.server.core.answering import (
    CallOpened,
    CallText,
    Closed,
    Done,
    Opened,
    Piece,
    Question,
    Text,
    Usage,
)
from localoss.server.core.bodies import BodyRoute
from localoss.server.core.errors import anthropic_body
from localoss.server.core.fields import note_unknown
from localoss.server.core.keys import Client, client_of
from localoss.server.core.models import acquire
from localoss.server.core.schemas import STREAMS, asks_no_thinking, effort_of
from localoss.server.core.service import (
    Service,
    event_stream,
    pieces_of,
    sampling_of,
)
from localoss.server.core.threads import in_thread
from localoss.server.core.toolbox import Toolbox

router = APIRouter(route_class=BodyRoute)

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
Event = dict[str, Any]


@router.post("/v1/messages", responses=STREAMS, summary="Create a message (Anthropic)")
async def create_message(body: MessagesRequest, request: Request) -> Response:
    service = await acquire(request, body.model)
    toolbox = await in_thread(toolbox_of, body)
    note_unknown(body, request, toolbox.left_out)
    question = await _question(service, body, toolbox, client_of(request))
    stops = tuple(filter(None, body.stop_sequences or []))
    question = replace(question, params=sampling_of(body, body.max_tokens, None), stops=stops)
    job = service.ask(question, client_of(request))
    message = _Message(service, body, toolbox, len(question.prompt))
    if body.stream:
        events = message.events(pieces_of(job))
        return event_stream(events, named=True, last=None, error_body=anthropic_body)
    return await message.whole(job.items())


@router.post("/v1/messages/count_tokens", summary="Count a message's tokens (Anthropic)")
async def count_tokens(body: CountRequest, request: Request) -> Response:
    service = await acquire(request, body.model)
    toolbox = (await in_thread(toolbox_of, body)).choose("none")
    note_unknown(body, request, toolbox.left_out)
    question = await _question(service, body, toolbox, client_of(request))
    return JSONResponse({"input_tokens": len(question.prompt)})


async def _question(service: Service, body: CountRequest, toolbox: Toolbox, client: Client) -> Question:
    """Raises: ApiError."""
    config, thinking = body.output_config, body.thinking
    asked = config.format if config and config.format else body.output_format
    wanted = Format(asked.schema_, strict=True) if asked else None
    rules = await compiled_rules(toolbox, wanted)
    budget = thinking.budget_tokens if thinking else None
    rules = replace(rules, think_budget=service.think_budget(budget))
    instructions, messages = split_instructions(convert_messages(body, service.thoughts.of(client.key)))
    if wanted:
        instructions.append(wanted.instructions)
    effort = config.effort if config else None
    if effort is None and thinking and asks_no_thinking(thinking.type):
        effort = "low"
    setup = ChatSetup(effort_of(effort), "\n\n".join(instructions) or None, toolbox.functions)
    return Question(await service.prompt(setup, messages, "messages"), setup, rules)


class _Message:
    """One request's answer, in Anthropic's words. Thinking is given to clients that ask for it."""

    def __init__(self, service: Service, body: MessagesRequest, toolbox: Toolbox, prompt_tokens: int) -> None:
        self._service, self._body, self._toolbox = service, body, toolbox
        self._shows_thinking = body.thinking is not None and body.thinking.type != "disabled"
        self._content: list[dict[str, Any]] = []
        self._is_in_call = False
        self._message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": body.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(Usage(prompt_tokens, 0, 0, 0)),
        }

    async def whole(self, pieces: AsyncIterator[Any]) -> JSONResponse:
        async for _ in self.events(pieces):
            pass
        return JSONResponse(self._message | {"content": self._content})

    async def events(self, pieces: AsyncIterator[Any]) -> AsyncIterator[Event | None]:
        """A stream's events; a ping is the sign of life that Anthropic's clients know."""
        yield {"type": "message_start", "message": dict(self._message)}
        async for piece in pieces:
            if piece is None:
                yield {"type": "ping"}
            else:
                for event in self._events(piece):
                    yield event

    def _events(self, piece: Piece) -> Iterator[Event]:
        if isinstance(piece, CallOpened | CallText | ToolCall):
            yield from self._call(piece)
        elif isinstance(piece, Done):
            yield from self._finish(piece)
        elif piece.part == "thinking" and not self._shows_thinking:
            return
        elif isinstance(piece, Opened):
            block = {"type": "thinking", "thinking": "", "signature": ""}
            yield self._start(block if piece.part == "thinking" else {"type": "text", "text": ""})
        elif isinstance(piece, Text):
            kind = "thinking" if piece.part == "thinking" else "text"
            self._content[-1][kind] += piece.text
            yield self._delta({"type": f"{kind}_delta", kind: piece.text})
        elif isinstance(piece, Closed):
            if piece.part == "thinking":  # nothing is signed here, and clients want something to send back
                self._content[-1]["signature"] = "localoss"
                yield self._delta({"type": "signature_delta", "signature": "localoss"})
            yield self._event("content_block_stop")

    def _call(self, piece: CallOpened | CallText | ToolCall) -> Iterator[Event]:
        if isinstance(piece, CallOpened):
            name = self._toolbox.as_offered(piece.name).name
            self._is_in_call = True
            yield self._start({"type": "tool_use", "id": piece.id, "name": name, "input": {}})
        elif isinstance(piece, CallText):
            yield self._delta({"type": "input_json_delta", "partial_json": piece.text})
        else:
            try:
                given = json.loads(piece.arguments)
            except ValueError:  # a schema that couldn't be followed
                given = {}
            self._content[-1]["input"] = given if isinstance(given, dict) else {}
            self._is_in_call = False
            yield self._event("content_block_stop")

    def _finish(self, done: Done) -> Iterator[Event]:
        self._service.note(done)
        if self._is_in_call:  # it was cut
            yield self._event("content_block_stop")
        sequence = done.stop
        reason = _REASONS[done.reason] if sequence is None else "stop_sequence"
        usage = _usage(done.usage)
        self._message |= {"stop_reason": reason, "stop_sequence": sequence, "usage": usage}
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        yield {"type": "message_delta", "delta": delta, "usage": usage}
        yield {"type": "message_stop"}

    def _start(self, block: dict[str, Any]) -> Event:
        self._content.append(block)
        return self._event("content_block_start", content_block=dict(block))

    def _delta(self, delta: dict[str, Any]) -> Event:
        return self._event("content_block_delta", delta=delta)

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "index": len(self._content) - 1, **fields}


def _usage(usage: Usage) -> dict[str, Any]:
    """The counts; those of the prompt that were in a cache are told apart."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }
