"""The conversations: listed, opened, renamed, exported and removed. They are the terminal's sessions."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from localoss.chat import branches, export
from localoss.chat.conversation import Conversation
from localoss.chat.harmony import Message
from localoss.chat.session import Session
from localoss.chat.session_store import free_name, read_session, remove_session, revision, sessions
from localoss.errors import UsageError
from localoss.server.core.errors import ApiError
from localoss.server.core.hosted import HostedTools
from localoss.server.core.threads import in_thread
from localoss.server.page.answers import Answers
from localoss.server.page.origin import PageRoute
from localoss.server.page.schemas import Change, Edit, Nothing, Setup, Way
from localoss.server.page.view import view_of
from quant.errors import BusyError

router = APIRouter(prefix="/localoss/sessions", route_class=PageRoute, include_in_schema=False)
_MEDIA = {"md": "text/markdown", "txt": "text/plain", "json": "application/json"}


@router.get("")
async def list_sessions(request: Request) -> Response:
    answers: Answers = request.app.state.answers
    there = await in_thread(sessions)
    return told(
        {
            "sessions": [
                {
                    "name": one.name,
                    "title": one.title,
                    "model": one.model,
                    "changed": one.changed.timestamp(),
                    "problem": one.problem,
                    "is_writing": answers.is_writing(one.name),
                }
                for one in there
            ]
        }
    )


@router.get("/{name}")
async def open_session(name: str, request: Request) -> Response:
    answers: Answers = request.app.state.answers
    view = await in_thread(_view, name, _hosted(request))
    return told(view | {"is_writing": answers.is_writing(name)})


@router.get("/{name}/export/{form}")
async def export_session(name: str, form: str, request: Request) -> Response:
    if form not in export.FORMATS:
        raise ApiError(f"use one of {', '.join(export.FORMATS)}", status=404, code="not_found")
    conversation, model = await in_thread(_read, name)
    return Response(
        export.FORMATS[form](conversation, model),
        media_type=f"{_MEDIA[form]}; charset=utf-8",
        headers={
            "Content-Disposition": f'attachment; filename="{name}.{form}"',
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        },
    )


@router.delete("/{name}")
async def delete_session(name: str, request: Request) -> Response:
    await in_thread(_as_told, remove_session, name)
    return told({"deleted": True})


@router.post("/{name}/change")
async def change_session(body: Change, request: Request) -> Response:
    """Give it another title or setup."""
    return told(await in_thread(_change, request.path_params["name"], body, _hosted(request)))


@router.post("/{name}/way")
async def choose_way(body: Way, request: Request) -> Response:
    """Go on with another version of a question or an answer."""

    def choose(conversation: Conversation) -> None:
        branches.choose(conversation, body.exchange, body.is_answer, body.rank)

    return told(await in_thread(_as_told, _changed, request, body.revision, choose))


@router.post("/{name}/edit")
async def edit_answer(body: Edit, request: Request) -> Response:
    """Put other words in an answer's place; the answer before stays as a version."""

    def edit(conversation: Conversation) -> None:
        branches.part(conversation, body.exchange, is_answer=True)
        conversation.answer([Message("assistant", body.text, "final")])

    return told(await in_thread(_as_told, _changed, request, body.revision, edit))


@router.post("/{name}/copy")
async def copy_session(body: Nothing, request: Request) -> Response:
    """A new session with the same messages: to go on where another program has the first one open."""

    def copy() -> dict[str, Any]:
        conversation, model = _read(request.path_params["name"])
        new = Session()
        try:
            new.save_messages(conversation, model)
        finally:
            new.close()
        return _view(new.name, _hosted(request))

    return told(await in_thread(_as_told, copy))


def told(content: dict[str, Any]) -> JSONResponse:
    return JSONResponse(content, headers={"Cache-Control": "no-store"})


def opened(name: str, seen: str | None) -> Session:
    """The session, locked. seen: the revision that the user saw. Raises: ApiError."""
    try:
        if not revision(name):
            raise missing(name)
        session = Session(name)
    except (UsageError, BusyError) as error:
        raise as_refusal(error) from None
    if seen not in (None, revision(name)):
        session.close()
        raise ApiError(
            "this conversation went on elsewhere; here is how it stands now, and nothing was lost",
            status=409,
            code="conversation_changed",
        )
    return session


def missing(name: str) -> ApiError:
    return ApiError(f"there is no conversation {name}", status=404, code="not_found")


def as_refusal(error: Exception) -> ApiError:
    """What the page is told of an error of the session store."""
    if isinstance(error, BusyError):
        return ApiError(
            "another window or terminal has this conversation open and may write to it; "
            "go on there, close it, or go on in a copy",
            status=409,
            code="conversation_busy",
        )
    return ApiError(str(error))


def apply_setup(conversation: Conversation, setup: Setup) -> None:
    if setup.effort is not None:
        conversation.setup = replace(conversation.setup, effort=setup.effort)
    if setup.instructions is not None:
        conversation.setup = replace(conversation.setup, instructions=setup.instructions.strip() or None)


def _as_told(work: Any, *arguments: Any) -> Any:
    try:
        return work(*arguments)
    except (BusyError, UsageError) as error:
        raise as_refusal(error) from None


def _read(name: str) -> tuple[Conversation, str]:
    try:
        if not revision(name):
            raise missing(name)
        return read_session(name)
    except UsageError as error:
        raise as_refusal(error) from None


def _hosted(request: Request) -> HostedTools | None:
    """The tools that the model is told of, too."""
    hosted: HostedTools | None = request.app.state.models.hosted
    return hosted


def _view(name: str, hosted: HostedTools | None) -> dict[str, Any]:
    found = _revision(name)
    conversation, model = _read(name)
    if hosted:
        conversation.setup = hosted.add_to(conversation.setup, hosted.names)
    return view_of(name, conversation, model, found)


def _revision(name: str) -> str:
    try:
        return revision(name)
    except UsageError as error:
        raise as_refusal(error) from None


def _changed(request: Request, revision: str, change: Callable[[Conversation], None]) -> dict[str, Any]:
    """The request's session after `change`. Raises: ApiError, UsageError."""
    session = opened(request.path_params["name"], revision)
    try:
        assert session.conversation and session.model
        change(session.conversation)
        session.save_messages(session.conversation, session.model)
    finally:
        session.close()
    return _view(session.name, _hosted(request))


def _change(name: str, change: Change, hosted: HostedTools | None) -> dict[str, Any]:
    session = opened(name, change.revision)
    try:
        assert session.conversation and session.model
        apply_setup(session.conversation, change.setup)
        if change.title is not None:
            session.conversation.title = " ".join(change.title.split()) or None
        session.save_messages(session.conversation, session.model)
        if change.title is not None and (new := free_name(change.title, session.name)) != session.name:
            session.rename(new)
    except UsageError as error:
        raise as_refusal(error) from None
    finally:
        session.close()
    return _view(session.name, hosted)
