"""What Ray Serve has on each machine: a replica; and the store of responses that they share."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

from starlette.types import Message

from localoss import __version__, settings
from localoss.cluster.models import Source
from localoss.cluster.worker import Loaded, fetching, load_here
from localoss.errors import LocalossError
from localoss.options import LoadOptions
from localoss.server.balancing.members import Asked
from localoss.server.balancing.replica import Replica, ReplicaOptions
from localoss.server.core.response_store import ResponseStore


class StoreKeeper:
    """An actor on the machine of the endpoint: the stored responses, for all replicas."""

    def __init__(self) -> None:
        self._store = ResponseStore(settings.home() / "server" / "responses.sqlite3")

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of the store. Raises: StoreError."""
        return getattr(self._store, name)(*arguments)


class RemoteStore:
    """A ResponseStore that is a StoreKeeper elsewhere."""

    def __init__(self, name: str) -> None:
        self._name, self._keeper = name, None

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)

        def called(*arguments: Any) -> Any:
            import ray
            from ray.exceptions import RayTaskError

            if self._keeper is None:
                self._keeper = ray.get_actor(self._name)
            try:
                return ray.get(cast(Any, self._keeper).call.remote(method, arguments))
            except RayTaskError as error:
                raise (error.cause if isinstance(error.cause, LocalossError) else error) from None

        return called

    def close(self) -> None:
        """It is the keeper's to close."""


class ServedMachine:
    """A replica. One that can't load the model says why, rather than be made again and again."""

    def __init__(
        self, source: Source, loading: LoadOptions, options: ReplicaOptions, files: str | None, store: str
    ) -> None:
        """files, store: names of actors."""
        self._notes: list[str] = []
        self._fault: str | None = None
        self._replica: Replica | None = None
        self._turn = asyncio.Lock()
        self._what = source, replace(loading, ray=None), options, files, store

    async def info(self) -> Loaded:
        """What became of loading, once it is over."""
        async with self._turn:
            if self._replica is None and self._fault is None:
                source, loading, options, files, store = self._what
                try:
                    folder, engine = await asyncio.to_thread(
                        load_here, source, loading, fetching(files), self._notes.append
                    )
                    shared = cast(ResponseStore, RemoteStore(store))
                    self._replica = Replica(engine, folder, options, shared)
                except (LocalossError, OSError, MemoryError) as error:
                    self._fault = str(error) or type(error).__name__
        slots = self._replica.slots if self._replica else 0
        return Loaded(__version__, self._fault, slots, tuple(self._notes))

    async def answer(self, asked: Asked) -> AsyncIterator[Message]:
        """ASGI's messages of an answer."""
        if self._replica is None:
            await self.info()
        assert self._replica, self._fault
        async for message in self._replica.answer(asked):
            yield cast(Message, dict(message))

    async def metrics(self) -> bytes:
        return self._replica.metrics() if self._replica else b""
