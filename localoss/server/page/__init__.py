"""The chat page: its files, and what it asks for. Its conversations are the terminal's sessions."""

from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from localoss.server.core.models import Models
from localoss.server.page import files, pictures, sessions, turns
from localoss.server.page.answers import Answers


@dataclass(frozen=True)
class Page:
    """What the page is told. opens_as: the name or folder that opens the model again, kept with sessions.

    introduction: a word about the model, before the first message. folder: the model's, which tells whose a
    session's saved KV cache is; without it none is read or saved.
    """

    opens_as: str
    introduction: str | None = None
    folder: Path | None = None


def add_page(app: FastAPI, page: Page, models: Models) -> None:
    """Have `app` answer / with the page, and the page's requests."""
    app.state.page, app.state.answers = page, Answers(models)
    for part in (files.router, pictures.router, sessions.router, turns.router):
        app.include_router(part)
