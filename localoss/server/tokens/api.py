"""/localoss/tokens: a prompt's tokens in, the answer's tokens out.

`localoss run` and `chat` ask so where a server has their model (chat/remote.py): prompts, tools and sessions
stay theirs, and the engine is the server's. It may change with any version, so it is in no document.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from localoss.chat.grammar import Budget, Grammar
from localoss.chat.harmony import ChatSetup, Function
from localoss.chat.rules import AnswerRules
from localoss.engine.sampler import Token
from localoss.options import SamplingParams
from localoss.server.core.answering import Answering, Done, Question
from localoss.server.core.bodies import BodyRoute
from localoss.server.core.catalogue import Entry
from localoss.server.core.keys import Client, client_of
from localoss.server.core.models import Models, acquire
from localoss.server.core.service import Service, event_stream, pieces_of
from localoss.server.core.threads import compiling, in_thread
from localoss.server.tokens.schemas import Rules, TokensRequest
from quant.sources.adapter import split_name

router = APIRouter(prefix="/localoss", route_class=BodyRoute, include_in_schema=False)

_LOOK_S = 0.5  # how often a client is told how far its prompt is read


@router.get("/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The models that are asked here without being loaded for it: those in memory, and the first one.

    adapters: those that every answer has.
    """
    models: Models = request.app.state.models
    entries = {one.name: one for one in (models.catalogue.first, *(held.entry for held in models.held()))}
    return {"models": await in_thread(_described, models, list(entries.values()))}


def _described(models: Models, entries: list[Entry]) -> list[dict[str, Any]]:
    """Raises: LocalossError, OSError."""
    adapters = [text for text in models.catalogue.options.adapters if not split_name(text)[0]]
    return [
        {
            "name": entry.name,
            "digest": entry.digest,
            "context_tokens": models.context_tokens(entry),
            "adapters": adapters if entry.name == models.catalogue.first.name else [],
        }
        for entry in entries
    ]


@router.post("/tokens")
async def create_tokens(body: TokensRequest, request: Request) -> Response:
    service = await acquire(request, body.model)
    service.check_length(len(body.prompt), "prompt")
    names = ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "logprobs")
    params = SamplingParams(**{name: getattr(body, name) for name in names})
    setup, rules = await compiling(_rules, body.rules) if body.rules else (None, AnswerRules())
    question = Question(body.prompt, setup, rules, params)
    return event_stream(_events(service, question, client_of(request)), named=False, last="[DONE]")


def _rules(wanted: Rules, budget: Budget) -> tuple[ChatSetup, AnswerRules]:
    """Raises: UsageError for a name or a schema that can't be followed."""
    setup = ChatSetup(
        functions=tuple(Function(name) for name in wanted.functions),
        builtin_tools=wanted.builtin_tools,
    )
    given = wanted.arguments or {}
    arguments = {name: Grammar(one.schema_, one.strict, budget) for name, one in given.items()}
    return setup, AnswerRules(
        must_call=wanted.must_call,
        preambles=wanted.preambles,
        arguments=arguments,
        think_budget=wanted.think_budget,
    )


async def _events(
    service: Service, question: Question, client: Client
) -> AsyncIterator[dict[str, Any] | None]:
    reading, told = question.reading, False
    answering = Answering(
        service.engine, service.pool, service.thoughts, question, client.key, service.adapter
    )
    piece: Any
    async for piece in pieces_of(service.submit(_Drawn(answering), client), _LOOK_S):
        if reading.total and not told:
            told = reading.done == reading.total
            yield {"read": reading.done, "cached": reading.cached, "of": reading.total}
        if isinstance(piece, Done):
            service.note(piece)
        elif piece or told or not reading.total:
            yield piece


class _Drawn:
    """An answer of which the tokens are wanted, and no more: the scheduler's Work."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self.prompt, self.begin, self.close = answering.prompt, answering.begin, answering.close
        self.pause, self.resume = answering.pause, answering.resume

    is_over = False

    def push(self, token: Token) -> Iterator[Any]:
        for _ in self._answering.push(token):
            pass
        yield {"id": token.id, "logprob": token.logprob, "top": token.top}

    def finish(self, error: Exception | None) -> Iterator[Any]:
        yield from (piece for piece in self._answering.finish(error) if isinstance(piece, Done))
