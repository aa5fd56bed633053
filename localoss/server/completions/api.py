"""/v1/completions: raw text goes on, with the logprobs and the echo that evaluation harnesses ask for."""

import codecs
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from localoss.chat import harmony
from localoss.engine.sampler import Token
from localoss.engine.slot import Slot
from localoss.errors import TooManyTokensError
from localoss.options import SamplingParams
from localoss.server.completions.schemas import CompletionRequest, text_chars, token_lists
from localoss.server.core.answering import Answering, Done, Question, Text, Usage
from localoss.server.core.apart import LARGE, apart
from localoss.server.core.bodies import BodyRoute
from localoss.server.core.errors import ApiError
from localoss.server.core.fields import note_unknown
from localoss.server.core.jobs import Job
from localoss.server.core.keys import Client, client_of
from localoss.server.core.logprobs import raw_token_text
from localoss.server.core.models import acquire
from localoss.server.core.schemas import (
    STREAMS,
    limit_of,
    refuse_unless,
    stops_of,
)
from localoss.server.core.service import Choices, Service, event_stream, pieces_of, sampling_of
from localoss.server.core.threads import in_thread

router = APIRouter(route_class=BodyRoute)

_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_NEUTRAL: dict[str, list[Any]] = {
    "suffix": [""],
}


@router.post("/v1/completions", responses=STREAMS, summary="Create a completion")
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    refuse_unless(body, _NEUTRAL)
    if body.best_of not in (None, 1, body.n):
        raise ApiError("best_of must be 1 or n: every choice is given", param="best_of")
    service = await acquire(request, body.model)
    note_unknown(body, request)
    try:
        read = apart if text_chars(body.prompt) > LARGE else in_thread
        prompts = await read(token_lists, body.prompt, service.engine.context_tokens)
    except TooManyTokensError as error:
        raise service.too_long(error, "prompt") from None
    for prompt in prompts:
        service.check_length(len(prompt), "prompt")
    completion = _Completion(service, body, client_of(request), prompts)
    jobs = completion.begin()
    if body.stream:
        return event_stream(completion.chunks(jobs), named=False, last="[DONE]")
    return await completion.whole(jobs)


@dataclass(frozen=True)
class _Echo:
    """A token of the prompt, said back."""

    token: Token


class _Echoing:
    """An answer after its prompt, where that is wanted: the scheduler's Work."""

    def __init__(self, answering: Answering, echoes: bool, scores: bool) -> None:
        """echoes: say the prompt back. scores: with the logprob of each of its tokens."""
        self._answering, self._echoes, self._scores = answering, echoes, echoes and scores
        self._echo: list[Token] = []  # that wasn't given yet
        self._answers = answering.params.max_tokens != 0
        self.prompt, self.pause, self.resume = answering.prompt, answering.pause, answering.resume

    @property
    def is_over(self) -> bool:
        return self._answering.is_over

    def begin(self, cancelled: Callable[[], bool]) -> Slot | None:
        if self._echoes and not self._scores:
            self._echo = [Token(token, float("nan")) for token in self.prompt]
        if not self._answers and not self._scores:
            return None
        slot = self._answering.begin(cancelled)
        slot.scored = self._echo.append if self._scores else None
        return slot

    def push(self, token: Token) -> Iterator[Any]:
        yield from self._echoed()
        yield from self._answering.push(token)

    def finish(self, error: Exception | None) -> Iterator[Any]:
        yield from self._echoed()
        if self._answers or error:
            yield from self._answering.finish(error)
        else:
            yield Done("length", Usage(len(self.prompt), 0, 0, 0), (), 0.0, 0.0, key=self._answering.key)

    def close(self) -> None:
        self._answering.close()

    def _echoed(self) -> Iterator[_Echo]:
        echo, self._echo[:] = list(self._echo), []
        yield from map(_Echo, echo)


class _Completion:
    """One request's choices, made one after the other."""

    def __init__(
        self, service: Service, body: CompletionRequest, client: Client, prompts: list[list[int]]
    ) -> None:
        self._service, self._body, self._client = service, body, client
        self._limit = limit_of(_DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens)
        self._questions = [
            Question(prompt, None, params=self._params(index), stops=stops_of(body.stop))
            for prompt in prompts
            for index in range(body.n or 1)
        ]
        self._base = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model,
        }
        self._prompts = prompts

    def begin(self) -> Choices:
        """Queue the first choices. Raises: ApiError 429 or 503."""
        return self._service.choices(len(self._questions), self._submit)

    async def whole(self, jobs: Choices) -> JSONResponse:
        choices: list[dict[str, Any]] = []
        usages: list[Usage] = []
        async for index, piece in self._pieces(jobs, None):
            if index == len(choices):
                choices.append({"index": index, "text": "", "finish_reason": "length", "logprobs": None})
                gathered = _Gathered()
            if isinstance(piece, Done):
                choices[index]["finish_reason"] = piece.reason
                usages.append(piece.usage)
            else:
                gathered.add(piece)
                choices[index]["text"] = gathered.text
                choices[index]["logprobs"] = gathered.logprobs if self._body.logprobs is not None else None
        return JSONResponse({**self._base, "choices": choices, "usage": self._usage(usages)})

    async def chunks(self, jobs: Choices) -> AsyncIterator[dict[str, Any] | None]:
        usages: list[Usage] = []
        latest, gathered = -1, _Gathered()
        async for index, piece in self._pieces(jobs, 10.0):
            if index != latest:
                latest, gathered = index, _Gathered()
            if piece is None:
                yield None
            elif isinstance(piece, Done):
                usages.append(piece.usage)
                yield self._chunk(index, "", piece.reason, None)
            else:
                text, logprobs = gathered.add(piece)
                yield self._chunk(index, text, None, logprobs if self._body.logprobs is not None else None)
        options = self._body.stream_options
        if options and options.include_usage:
            yield {**self._base, "choices": [], "usage": self._usage(usages)}

    async def _pieces(self, jobs: Choices, idle_s: float | None) -> AsyncIterator[tuple[int, Any]]:
        """The pieces of all choices, with each choice's index; at least one piece of each."""
        for index, job in enumerate(jobs):
            async for piece in pieces_of(job) if idle_s else job.items():
                if isinstance(piece, Done):
                    self._service.note(piece)
                if piece is None or isinstance(piece, Done | Text | _Echo):
                    yield index, piece

    def _submit(self, index: int) -> Job:
        service, question = self._service, self._questions[index]
        answering = Answering(
            service.engine, service.pool, service.thoughts, question, self._client.key, service.adapter
        )
        echoes, scores = bool(self._body.echo), self._body.logprobs is not None
        return service.submit(_Echoing(answering, echoes, scores), self._client, follows=index > 0)

    def _params(self, index: int) -> SamplingParams:
        params = sampling_of(self._body, self._limit, self._body.seed, index)
        return replace(params, logprobs=self._body.logprobs or 0)

    def _chunk(self, index: int, text: str, reason: str | None, logprobs: Any) -> dict[str, Any]:
        choice = {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}
        return {**self._base, "choices": [choice]}

    def _usage(self, usages: Sequence[Usage]) -> dict[str, Any]:
        prompt = sum(map(len, self._prompts))
        completion = sum(usage.completion for usage in usages)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(usage.cached for usage in usages)},
        }


class _Gathered:
    """A choice's text and the logprobs of its tokens, as they come."""

    def __init__(self) -> None:
        self.text = ""
        self.logprobs: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, piece: "Text | _Echo") -> tuple[str, dict[str, list[Any]]]:
        """The text and the logprobs that `piece` adds."""
        known = len(self.logprobs["tokens"])
        if isinstance(piece, _Echo):
            text, tokens = self._decode(piece.token.id), [piece.token]
        else:
            text, tokens = piece.text, list(piece.tokens)
        offset = len(self.text)
        for token in tokens:
            self._note(token, offset)
            offset += len(raw_token_text(token.id))
        self.text += text
        return text, {name: values[known:] for name, values in self.logprobs.items()}

    def _decode(self, token: int) -> str:
        if token >= harmony.TEXT_TOKENS:
            return self._decoder.decode(b"") + raw_token_text(token)
        return self._decoder.decode(harmony.token_bytes(token))

    def _note(self, token: Token, offset: int) -> None:
        is_judged = token.logprob == token.logprob
        self.logprobs["tokens"].append(raw_token_text(token.id))
        self.logprobs["token_logprobs"].append(token.logprob if is_judged else None)
        top = {raw_token_text(other): logprob for other, logprob in token.top}
        self.logprobs["top_logprobs"].append(top if is_judged else None)
        self.logprobs["text_offset"].append(offset)
