"""An answer in a session: what the session's KV cache holds need not be read again, and it is saved anew."""

import logging
from collections.abc import Callable
from pathlib import Path

from localoss.chat.session import Session
from localoss.engine.slot import Slot
from localoss.server.core.answering import Answering, Question
from localoss.server.core.service import Service

logger = logging.getLogger("localoss.server")


class SessionAnswering(Answering):
    """As any answer, but that its sequence follows the session's files. All on the engine's thread."""

    def __init__(self, service: Service, question: Question, session: Session, folder: Path) -> None:
        """folder: the model's, which tells whether the files are its."""
        super().__init__(service.engine, service.pool, service.thoughts, question)
        self._session, self._folder = session, folder

    def begin(self, cancelled: Callable[[], bool]) -> Slot:
        slot = super().begin(cancelled)
        assert self._sequence
        self._note_problem(self._session.attach(self._folder, self._engine, self._sequence, self.prompt))
        return slot

    def close(self) -> None:
        if self._sequence:  # the answer to come is read anew, for its thinking is left out then
            self._note_problem(self._session.save_cache(self.prompt, self._sequence))
        super().close()

    def _note_problem(self, problem: str | None) -> None:
        if problem:
            logger.warning("%s", problem)
