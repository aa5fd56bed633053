"""A model that answers the lines of a batch: the application, without a server around it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localoss.engine.engine import Engine
from localoss.options import MOST_SLOTS
from localoss.server.app import build_app
from localoss.server.batches.journal import Request
from localoss.server.batches.running import asking
from localoss.server.core.models import only
from localoss.server.core.pool import SequencePool
from localoss.server.core.scheduler import Scheduler
from localoss.server.core.service import Service


@dataclass(frozen=True)
class Answering:
    """How lines are answered. model: a name or a folder. parallel: side by side; None for as many as there
    are slots. replaces_model: whatever model a line names is this one. served: the model's name to lines;
    None for its folder's.
    """

    model: str
    parallel: int | None = None
    think_budget: int | None = None
    replaces_model: bool = False
    served: str | None = None


class Answerer:
    """Answers requests on `engine`, whose model lies in `folder`. Used on one event loop.

    at_once: how many it should be asked for at a time. name: what the model is called. app: the application.
    """

    def __init__(self, engine: Engine, folder: Path, how: Answering) -> None:
        side_by_side = min(how.parallel or MOST_SLOTS, engine.slots)
        self.at_once = side_by_side + 1  # one more is ready when another ends
        # The store writes a repository's name so.
        self.name = how.served or folder.absolute().name.replace("--", "/", 1)
        self._replaces_model = how.replaces_model
        self._scheduler = Scheduler(engine, self.at_once, side_by_side)
        pool = SequencePool(engine, engine.slots)
        self._service = Service(
            engine, self.name, self._scheduler, pool, default_think_budget=how.think_budget
        )
        self.app = build_app(only(self._service, folder), hosts=None)
        self._ask = asking(self.app)

    async def ask(self, request: Request) -> tuple[int, dict[str, Any]]:
        """The status and the body of the answer. Raises: Stopped."""
        if self._replaces_model:
            request = replace(request, body=request.body | {"model": self.name})
        return await self._ask(request)

    def close(self) -> None:
        self._scheduler.stop()
        self._service.store.close()
