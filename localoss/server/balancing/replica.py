"""One replica behind an endpoint: a model, and the application on it, which is asked without HTTP."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.types import Message, Scope

from localoss.engine.engine import Engine
from localoss.options import MOST_SLOTS
from localoss.server.app import build_app
from localoss.server.balancing.members import Asked
from localoss.server.core.keys import CLIENT
from localoss.server.core.models import only
from localoss.server.core.pool import SequencePool
from localoss.server.core.response_store import ResponseStore
from localoss.server.core.scheduler import Scheduler
from localoss.server.core.service import Service


@dataclass(frozen=True)
class ReplicaOptions:
    """How a replica answers; as server.run.ServeOptions."""

    name: str  # the model's, to clients
    aliases: Sequence[str] = ()
    strict: bool = False
    parallel: int | None = None
    queue: int = 64
    think_budget: int | None = None


class Replica:
    """Used on one event loop. slots: answers that are written side by side."""

    def __init__(self, engine: Engine, folder: Path, options: ReplicaOptions, store: ResponseStore) -> None:
        """store: responses, which all replicas share."""
        self.slots = min(options.parallel or MOST_SLOTS, engine.slots)
        self._service = Service(
            engine,
            options.name,
            Scheduler(engine, options.queue, self.slots),
            SequencePool(engine, engine.slots),
            store,
            options.think_budget,
        )
        models = only(self._service, folder, options.aliases)
        self._app = build_app(models, hosts=None, strict=options.strict)

    async def answer(self, asked: Asked) -> AsyncIterator[Message]:
        """ASGI's messages of the answer. Who leaves early cancels it."""
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": asked.method,
            "scheme": "http",
            "path": asked.path,
            "raw_path": asked.path.encode(),
            "root_path": "",
            "query_string": asked.query,
            "headers": asked.headers,
            "client": (asked.client.address, 0),
            "server": None,
            CLIENT: asked.client,
        }
        incoming: list[Message] = [{"type": "http.request", "body": asked.body, "more_body": False}]
        outgoing: asyncio.Queue[Message | None] = asyncio.Queue(64)
        has_left = asyncio.Event()

        async def receive() -> Message:
            if incoming:
                return incoming.pop()
            await has_left.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app(scope, receive, outgoing.put)
            finally:
                await outgoing.put(None)

        task = asyncio.create_task(run())
        try:
            while (message := await outgoing.get()) is not None:
                yield message
            await task
        finally:
            has_left.set()
            task.cancel()

    def metrics(self) -> bytes:
        return self._service.metrics.text()

    def close(self) -> None:
        self._service.close()
