"""A turn of a conversation: what its user says, and the answer as it is written."""

import base64
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from localoss.chat import branches, harmony
from localoss.chat.conversation import Conversation
from localoss.chat.documents import read_document
from localoss.chat.harmony import ChatSetup, File
from localoss.chat.session import Session
from localoss.errors import ContextFullError, UsageError
from localoss.options import SamplingParams
from localoss.server.core.answering import Question
from localoss.server.core.errors import ApiError
from localoss.server.core.jobs import Job
from localoss.server.core.keys import client_of
from localoss.server.core.models import Held, Models
from localoss.server.core.service import Service, event_stream
from localoss.server.core.threads import in_thread
from localoss.server.core.turns import Turns
from localoss.server.page.answers import Answers, LiveAnswer
from localoss.server.page.origin import PageRoute
from localoss.server.page.saved import SessionAnswering
from localoss.server.page.schemas import Approval, Document, Nothing, Sampling, Turn
from localoss.server.page.sessions import apply_setup, as_refusal, missing, opened, told
from localoss.server.page.tools import reaches, tools_of_turn

router = APIRouter(prefix="/localoss", route_class=PageRoute, include_in_schema=False)
_TRIMMED_SHARE = 0.5  # of the context: what a trimmed conversation takes, as in the terminal


@router.get("/about")
async def about(request: Request) -> Response:
    """What there is to talk with."""
    models: Models = request.app.state.models
    first = models.catalogue.first
    defaults = SamplingParams()
    return told(
        {
            "model": first.name,
            "context_tokens": await in_thread(models.context_tokens, first),
            "efforts": list(harmony.EFFORTS),
            "introduction": request.app.state.page.introduction,
            "sampling": {"temperature": defaults.temperature, "top_p": defaults.top_p},
            "tools": reaches(models.hosted),
        }
    )


@router.post("/turns")
async def take_turn(body: Turn, request: Request) -> Response:
    """Keep what the user says, and stream the answer. Raises: ApiError, and then nothing is changed."""
    models: Models = request.app.state.models
    answers: Answers = request.app.state.answers
    taken: list[Held] = []
    session = await in_thread(_open, body)
    try:
        held, service = await models.take(models.catalogue.first.name, taken)
        conversation, other = await in_thread(_changed, session, body)
        offered = await tools_of_turn(service.hosted, conversation, session.folder.as_posix())
        tools = offered.tools
        prompt = await _prompt(service, conversation, body.trim)
        question = Question(
            prompt,
            conversation.setup,
            replace(offered.rules, think_budget=service.think_budget(body.sampling.think_budget)),
            _params(body.sampling),
        )
        page, client = request.app.state.page, client_of(request)

        def ask(question: Question, follows: bool) -> Job:
            if page.folder is None:
                return service.ask(question, client, follows)
            return service.submit(SessionAnswering(service, question, session, page.folder), client, follows)

        turns = Turns(service, question, conversation.messages[conversation.left_out :], tools, ask)
        try:
            await in_thread(session.save_messages, conversation, page.opens_as)
        except BaseException:
            turns.cancel()
            raise
    except BaseException:
        for one in taken:
            models.give_back(one)
        session.close()
        raise
    find = tools.workshop.toolset.citation if tools else _nothing_shown
    answer = LiveAnswer(
        held, session, conversation, page.opens_as, turns, len(prompt), find, question.reading, other, tools
    )
    answer.send({"type": "started", "session": session.name, "prompt_tokens": len(prompt)})
    if offered.left_out:
        answer.send({"type": "left_out", "servers": offered.left_out})
    if tools:
        tools.tell, tools.is_closing = answer.send, lambda: models.is_closing
    answers.follow(answer)
    return event_stream(answer.told(), named=False, last=None)


@router.get("/sessions/{name}/answer")
async def look_on(name: str, request: Request) -> Response:
    """The answer that is being written there, from its beginning."""
    answers: Answers = request.app.state.answers
    answer = answers.of(name)
    if answer is None:
        raise missing(name)
    return event_stream(answer.told(), named=False, last=None)


@router.post("/sessions/{name}/stop")
async def stop(body: Nothing, request: Request) -> Response:
    """End the answer that is being written there; what was said stays."""
    answers: Answers = request.app.state.answers
    answer = answers.of(request.path_params["name"])
    if answer is not None and not answer.is_over:
        answer.turns.cancel()
    return told({"stopped": answer is not None})


@router.post("/sessions/{name}/approval")
async def approve(body: Approval, request: Request) -> Response:
    """What the user says to a call that waits for it; the first to say something is heard."""
    answers: Answers = request.app.state.answers
    answer = answers.of(request.path_params["name"])
    is_open = answer is not None and answer.tools is not None and answer.tools.answer(body.id, body.said)
    return told({"taken": is_open})


@router.post("/documents")
async def read_file(body: Document, request: Request) -> Response:
    """The text of a file, as the terminal's /read makes it, and its tokens."""
    models: Models = request.app.state.models
    most = await in_thread(models.context_tokens, models.catalogue.first)

    def read() -> dict[str, Any]:
        name = Path(body.name.replace("\\", "/")).name or "file"
        try:
            data = base64.b64decode(body.data, validate=True)
        except ValueError:
            raise ApiError("data: not Base64", param="data") from None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"file{Path(name).suffix.lower()}"
            path.write_bytes(data)
            try:
                text = read_document(path)
                tokens = len(harmony.encode_text(text, most))
            except ContextFullError:
                raise ApiError(f"{name} has more than the {most:,} tokens that the context holds") from None
            except UsageError as error:
                raise ApiError(str(error).replace(str(path), name)) from None
        return {"name": name, "text": text, "tokens": tokens}

    return told(await in_thread(read))


def _nothing_shown(cursor: int) -> None:
    """No browser, nothing to cite."""


def _open(turn: Turn) -> Session:
    try:
        return Session() if turn.session is None else opened(turn.session, turn.revision)
    except (OSError, UsageError) as error:
        raise as_refusal(error) from None


def _changed(session: Session, turn: Turn) -> tuple[Conversation, tuple[int, int] | None]:
    """The session's conversation with the turn's question; and what it is another answer to, if so.

    Raises: ApiError for what can't be done to it.
    """
    conversation = session.conversation or Conversation(ChatSetup())
    apply_setup(conversation, turn.setup)
    files = [File(file.name, file.text) for file in turn.files]
    number, other = turn.exchange, None
    try:
        if number is None:
            if turn.text is None:
                raise ApiError("text: say something", param="text")
            conversation.ask(turn.text, files)
        elif turn.text is None:
            rank = branches.rank(conversation, (number, True))
            branches.part(conversation, number, is_answer=True)
            other = (number, rank) if branches.ways(conversation, (number, True)) > 1 else None
        else:
            asked = [message for message in conversation.messages if message.role == "user"]
            before = asked[number].files if number < len(asked) else ()
            kept = [before[index] for index in turn.kept_files if 0 <= index < len(before)]
            branches.part(conversation, number, is_answer=False)
            conversation.ask(turn.text, [*kept, *files])
    except UsageError as error:
        raise as_refusal(error) from None
    return conversation, other


async def _prompt(service: Service, conversation: Conversation, trims: bool) -> list[int]:
    """The prompt's tokens. trims: whether the oldest messages may go. Raises: ApiError if it doesn't fit."""
    room = service.engine.context_tokens
    if trims:
        await in_thread(conversation.leave_out_oldest, lambda tokens: tokens <= _TRIMMED_SHARE * room)
    seen = conversation.messages[conversation.left_out :]
    try:
        return await service.prompt(conversation.setup, seen, "conversation")
    except ApiError as error:
        if error.code != "context_length_exceeded":
            raise
        what, remedy = "the conversation has, with your message,", ", or leave the oldest messages out"
        if trims or len(seen) == 1:
            what, remedy = "your message alone has", ""
        raise ApiError(
            f"{what} more tokens than the context of {room:,} holds; shorten it{remedy}", code=error.code
        ) from None


def _params(sampling: Sampling) -> SamplingParams:
    given = {
        name: value
        for name, value in sampling.model_dump(exclude={"think_budget"}).items()
        if value is not None
    }
    return replace(SamplingParams(), **given)
