"""/v1/responses."""

import logging
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from localoss.chat.agent import CallDone
from localoss.chat.harmony import ChatSetup, Message
from localoss.server.chat.prompts import JSON_OBJECT, Format, compiled_rules, split_instructions
from localoss.server.core.answering import Done, Question, Usage
from localoss.server.core.bodies import BodyRoute
from localoss.server.core.errors import ApiError, as_api_error
from localoss.server.core.fields import leave_out, note_unknown
from localoss.server.core.hosted import RequestTools
from localoss.server.core.jobs import Job
from localoss.server.core.json_text import printable
from localoss.server.core.keys import Client, client_of
from localoss.server.core.mcp_links import ServedMcp
from localoss.server.core.mcp_requests import is_mcp, parse_wanted
from localoss.server.core.models import acquire
from localoss.server.core.response_store import Record, StoreError
from localoss.server.core.schemas import STREAMS, effort_of, limit_of, refuse_unless
from localoss.server.core.service import (
    Service,
    event_stream,
    sampling_of,
)
from localoss.server.core.threads import in_thread
from localoss.server.core.toolbox import Toolbox, open_toolbox
from localoss.server.core.turns import Approved, Turns, put
from localoss.server.responses.hosted_items import item_id
from localoss.server.responses.items import Event, Output
from localoss.server.responses.prompts import convert_items, with_references
from localoss.server.responses.schemas import (
    INCLUDABLE,
    LOGPROBS,
    NEUTRAL,
    InputItem,
    ResponseRequest,
)

router = APIRouter(route_class=BodyRoute)
logger = logging.getLogger("localoss.server")


@router.post("/v1/responses", responses=STREAMS, summary="Create a response")
async def create_response(body: ResponseRequest, request: Request) -> Response:
    refuse_unless(body, NEUTRAL)
    service = await acquire(request, body.model)
    client = client_of(request)
    toolbox, served = await _tools(service, body, client)
    toolbox = toolbox.choose(body.tool_choice)
    note_unknown(body, request, [*toolbox.left_out, *_unheeded(body)])
    question, said = await _question(service, body, toolbox, client)
    leave_out(request, said.left_out)
    tools = None
    if service.hosted and (toolbox.hosted or served):
        tools = RequestTools(await service.hosted.workshop(body.previous_response_id), served)
    if said.approved and not (tools and tools.runs(said.approved.call.recipient)):
        raise ApiError("the call that was approved is of no tool of type mcp in this request", param="tools")
    if said.approved and service.hosted and service.hosted.mcp:
        service.hosted.mcp.use_approval(client.key, item_id("mcpr", said.approved.id))
    answer = _Answer(service, body, question, said, tools)

    def ask(question: Question, follows: bool) -> Job:
        return service.ask(question, client, follows)

    turns = Turns(service, question, said.prompted, tools, ask, said.approved)
    if body.stream:
        return event_stream(answer.events(turns.pieces()), named=True, last=None)
    return await answer.whole(turns.pieces())


@router.post("/v1/responses/input_tokens", summary="Count a response's input tokens")
async def count_input_tokens(body: ResponseRequest, request: Request) -> Response:
    service, client = await acquire(request, body.model), client_of(request)
    toolbox = (await _tools(service, body, client))[0].choose("none")
    note_unknown(body, request, toolbox.left_out)
    question, _ = await _question(service, body, toolbox, client)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(question.prompt)})


async def _tools(service: Service, body: ResponseRequest, client: Client) -> tuple[Toolbox, list[ServedMcp]]:
    """The request's tools, and those of them that are MCP servers'. Raises: ApiError."""
    hosted, given = service.hosted, body.tools or []
    servers = hosted.mcp.servers if hosted and hosted.mcp else ()
    wanted = parse_wanted(given, servers)
    others = [tool for tool in given if not (servers and is_mcp(tool))]  # else it is left out, and named
    toolbox = await in_thread(open_toolbox, others, hosted.names if hosted else ())
    served = await hosted.open_mcp(wanted, client.key) if hosted else []
    return toolbox.with_mcp(served), served


@router.get("/v1/responses/{response_id}")
async def get_response(response_id: str, request: Request) -> Response:
    """A stored response."""
    return JSONResponse(_found(await _store_call(request, "response", response_id), response_id))


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, request: Request) -> Response:
    """Forget a stored response."""
    _found(await _store_call(request, "delete", response_id) or None, response_id)
    return JSONResponse({"id": response_id, "object": "response.deleted", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items")
async def list_input_items(response_id: str, request: Request) -> Response:
    """What a stored response was asked with."""
    items = _found(await _store_call(request, "input_items", response_id), response_id)
    ids = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {}
    return JSONResponse({"object": "list", "data": items, "has_more": False, **ids})


async def _store_call(request: Request, method: str, response_id: str) -> Any:
    store = request.app.state.models.store
    return await in_thread(getattr(store, method), response_id, client_of(request).key)


def _found(value: Any, response_id: str) -> Any:
    if value is None:
        raise ApiError(f"Response with id '{response_id}' not found.", status=404, code="not_found")
    return value


@dataclass(frozen=True)
class _Said:
    """What the new input adds to the conversation, and the calls that results may name.

    prompted: all messages of the prompt. toolbox: the request's tools. left_out: types of items that say
    nothing to this model. approved: the call that is to be made first.
    """

    messages: list[Message]
    calls: dict[str, str]
    toolbox: Toolbox
    left_out: list[str]
    prompted: list[Message]
    approved: Approved | None


def _unheeded(body: ResponseRequest) -> list[str]:
    """What is asked for and isn't done: a prompt is never cut in silence, and nothing searches the web."""
    names = [f"include:{name}" for name in body.include or [] if name not in INCLUDABLE]
    return names + ["truncation"] * (body.truncation not in (None, "disabled"))


async def _question(
    service: Service, body: ResponseRequest, toolbox: Toolbox, client: Client
) -> tuple[Question, _Said]:
    """Raises: ApiError."""
    wanted = _format(body)
    rules = await compiled_rules(toolbox, wanted)
    before, calls = await _previous(service, body.previous_response_id, client.key)
    items = [InputItem(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    items = await in_thread(with_references, items, lambda name: service.store.item(name, client.key))
    said = convert_items(items, service.thoughts.of(client.key), calls, before, toolbox)
    new = said.messages
    if not new and not before and not body.instructions:
        raise ApiError("input holds nothing that this model can read", param="input")
    instructions, messages = split_instructions([*before, *new])
    parts = [body.instructions, *instructions, wanted.instructions if wanted else None]
    effort = body.reasoning.effort if body.reasoning else None
    setup = ChatSetup(effort_of(effort), "\n\n".join(filter(None, parts)) or None, toolbox.functions)
    if service.hosted:
        setup = service.hosted.add_to(setup, toolbox.hosted, toolbox.has_mcp)
    prompt = await service.prompt(setup, messages, "input")
    params = sampling_of(body, limit_of(body.max_output_tokens), body.seed)
    params = replace(params, logprobs=body.top_logprobs or 0)
    rules = replace(rules, think_budget=service.think_budget(body.think_budget, effort))
    question = Question(prompt, setup, rules, params)
    return question, _Said(new, calls, toolbox, said.left_out, messages, said.approved)


async def _previous(
    service: Service, response_id: str | None, key: str
) -> tuple[list[Message], dict[str, str]]:
    if response_id is None:
        return [], {}
    try:
        found = await in_thread(service.store.conversation, response_id, key)
    except StoreError as error:
        raise ApiError(str(error), param="previous_response_id") from None
    if found is None:
        raise ApiError(
            f"Previous response with id '{response_id}' not found.",
            code="previous_response_not_found",
            param="previous_response_id",
        )
    return found


def _format(body: ResponseRequest) -> Format | None:
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JSON_OBJECT
    if wanted.schema_ is None:
        raise ApiError("text.format of type json_schema needs a schema", param="text.format.schema")
    return Format(wanted.schema_, wanted.name, wanted.description, bool(wanted.strict))


class _Answer:
    """One response as it comes about."""

    def __init__(
        self,
        service: Service,
        body: ResponseRequest,
        question: Question,
        said: _Said,
        tools: RequestTools | None,
    ) -> None:
        self._service, self._body, self._said, self._tools = service, body, said, tools
        workshop, approved = tools and tools.workshop, said.approved
        self._output = Output(
            said.toolbox,
            with_logprobs=LOGPROBS in (body.include or []),
            with_summary=bool(body.reasoning and body.reasoning.summary),
            cited=workshop.toolset.citation if workshop else lambda cursor: None,
            container=workshop.container if workshop else "",
            approvals={approved.id: item_id("mcpr", approved.id)} if approved else {},
        )
        self._response = _blank(service.model, body, question.setup.effort if question.setup else "medium")

    async def whole(self, pieces: AsyncIterator[Any]) -> JSONResponse:
        async for _ in self.events(pieces, raises=True):
            pass
        return JSONResponse(self._response)

    async def events(self, pieces: AsyncIterator[Any], raises: bool = False) -> AsyncIterator[Event]:
        """The stream's events, numbered. raises: give no event for an error but raise it."""
        number = 0
        try:
            async for event in self._events(pieces):
                yield event | {"sequence_number": number}
                number += 1
        except Exception as error:
            if raises:
                raise
            told = as_api_error(error).body()["error"]
            failed = {"code": "server_error", "message": told["message"]}
            self._response |= {"status": "failed", "error": failed}
            yield {"type": "response.failed", "response": self._response, "sequence_number": number}

    async def _events(self, pieces: AsyncIterator[Any]) -> AsyncIterator[Event]:
        yield {"type": "response.created", "response": dict(self._response)}
        yield {"type": "response.in_progress", "response": dict(self._response)}
        for served in self._newly_listed():
            for event in self._output.listed(served):
                yield event
        async for piece in pieces:
            if piece is None:  # a sign of life that is no comment: Codex doesn't count those
                yield {"type": "response.in_progress", "response": dict(self._response)}
                continue
            if isinstance(piece, CallDone):
                self._note_approved(piece)
            told = self._output.hosted_events if isinstance(piece, CallDone) else self._output.events
            for event in told(piece):
                yield event
            if isinstance(piece, Done):
                await self._finish(piece)
                yield {"type": f"response.{self._response['status']}", "response": self._response}

    def _newly_listed(self) -> list[ServedMcp]:
        """The MCP servers whose tools the conversation doesn't hold a list of yet."""
        sent = self._body.input if isinstance(self._body.input, list) else []
        listed = {item.server_label for item in sent if item.type == "mcp_list_tools"}
        listed |= {label for item, label in self._said.calls.items() if item.startswith("mcpl_")}
        return [one for one in self._tools.served if one.label not in listed] if self._tools else []

    def _note_approved(self, done: CallDone) -> None:
        """Have what an approved call gave stand where the input's answer did."""
        approved = self._said.approved
        if approved and done.call is approved.call:
            put(self._said.messages, approved.result, done.result)

    async def _finish(self, done: Done) -> None:
        self._service.note(done)
        is_whole = done.reason != "length"
        self._response |= {
            "status": "completed" if is_whole else "incomplete",
            "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
            "completed_at": int(time.time()) if is_whole else None,
            "output": self._output.items,
            "usage": _usage(done.usage),
        }
        if self._tools and self._service.hosted:
            self._service.hosted.keep(self._response["id"], self._tools.workshop)
        if self._response["store"]:
            try:
                await in_thread(self._service.store.put, self._record(done))
            except StoreError as error:  # the answer is there: it only can't be asked for again
                logger.warning("%s; it is answered as if store were false", error)
                self._response["store"] = False

    def _record(self, done: Done) -> Record:
        items = self._body.input
        shown = [InputItem(role="user", content=items)] if isinstance(items, str) else items
        return Record(
            self._response,
            self._body.previous_response_id,
            [*self._said.messages, *done.messages],
            self._said.calls | self._output.calls,
            [_shown(item) for item in shown],
            done.key,
        )


def _shown(item: InputItem) -> dict[str, Any]:
    fields = item.model_dump(exclude_none=True)
    if isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        fields["content"] = [{"type": kind, "text": item.content}]
    return printable({"id": f"msg_{secrets.token_hex(16)}", "type": "message", **fields})


def _told_back(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as the response says it back; what a client sends to an MCP server is neither told nor kept."""
    if is_mcp(tool):
        return {name: value for name, value in tool.items() if name not in ("headers", "authorization")}
    return {"strict": False, "parameters": None, **tool}


def _blank(model: str, body: ResponseRequest, effort: str) -> dict[str, Any]:
    """The response before anything was generated: what was asked, as OpenAI says it back."""
    sent = printable(body.model_dump(exclude_none=True, by_alias=True))
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": sent.get("instructions"),
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": sent.get("metadata", {}),
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": sent.get("previous_response_id"),
        "reasoning": {"effort": effort, "summary": sent.get("reasoning", {}).get("summary")},
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": sent.get("text", {}).get("format", {"type": "text"})},
        "tool_choice": sent.get("tool_choice", "auto"),
        "tools": [_told_back(tool) for tool in sent.get("tools", [])],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": sent.get("user"),
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
