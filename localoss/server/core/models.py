"""Which models are in memory, and who uses them just now.

A request holds the model that it names until it is answered. One that isn't in memory is loaded: beside the
others if the plan allows it, else once nobody holds those any more and they were let go. Requests get their
turn in order, so that no model waits for ever behind another.
"""

import asyncio
import time
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from localoss.engine.engine import Engine
from localoss.options import LoadOptions
from localoss.server.core.bodies import Bodies
from localoss.server.core.catalogue import Catalogue, Entry
from localoss.server.core.errors import ApiError
from localoss.server.core.garbage import collect
from localoss.server.core.pulls import Pulls
from localoss.server.core.scheduler import going_down
from localoss.server.core.service import Service
from localoss.server.core.threads import in_thread

if TYPE_CHECKING:
    from localoss.server.batches.batches import Batches

_SCOPE = "localoss.held"
# One thread: kernels that are warmed up keep their threads for the one that started them.
_loading = ThreadPoolExecutor(1, thread_name_prefix="loading")


@dataclass(eq=False)
class Held:
    """A model in memory. idle_s: after how long without a request it is let go; None for never."""

    entry: Entry
    service: Service
    idle_s: float | None
    uses: int = 0
    used_at: float = field(default_factory=time.monotonic)
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None

    @property
    def idle_left_s(self) -> float | None:
        """Seconds until it is let go, if nobody asks for it; None for never."""
        return None if self.idle_s is None else max(self.used_at + self.idle_s - time.monotonic(), 0.0)


class Models:
    """All models of a server. Used on the event loop alone."""

    def __init__(
        self,
        first: Service,
        catalogue: Catalogue,
        start: Callable[[Engine, str], Service],
        *,
        idle_s: float | None = None,
        capacity: int = 64,
    ) -> None:
        """first: the model that is in memory already. start: makes a service of an engine and its name.

        idle_s: after how long without a request a model is let go. capacity: how many requests may wait for
        a model to be loaded.
        """
        self.catalogue, self.bodies, self.pulls = catalogue, Bodies(), Pulls()
        self.store, self.metrics, self.hosted = first.store, first.metrics, first.hosted
        self._start, self._idle_s, self._capacity = start, idle_s, capacity
        self._held = {first.model: Held(catalogue.first, first, idle_s)}
        self._turn = asyncio.Lock()  # fair: who waits longest is next
        self._waiting = 0
        self._closed = False
        self.batches: Batches | None = None  # files of requests, where they are answered

    def held(self) -> list[Held]:
        """Those in memory: first the one to let go of first."""
        return sorted(self._held.values(), key=lambda held: (held.uses > 0, held.used_at))

    def context_tokens(self, entry: Entry) -> int:
        """The context that `entry` has, or would get. Looks at the disk. Raises: LocalossError."""
        held = self._held.get(entry.loaded_as)
        return held.service.engine.context_tokens if held else self.catalogue.context_tokens(entry)

    async def find(self, name: str) -> Entry:
        """Raises: ApiError 404 for a name that no model has."""
        if name in self._held:  # without a look at the disk
            return self._held[name].entry
        entry = await in_thread(self.catalogue.find, name)
        if entry is None:
            there = ", ".join(f"`{entry.name}`" for entry in await in_thread(self.catalogue.entries))
            raise ApiError(
                f"The model `{name}` does not exist; this server has {there}",
                status=404,
                code="model_not_found",
                param="model",
            )
        return entry

    async def take(self, name: str, taken: list[Held]) -> tuple[Held, Service]:
        """The model `name`, loaded if need be, which is added to `taken`; `give_back` lets go of it.

        And its service: an adapter's is that of the model which it runs beside, under its own name.
        Raises: ApiError 404, 429 or 503, LocalossError for a model that can't be loaded.
        """
        entry = await self.find(name)
        base = self.catalogue.first if entry.adapter else entry
        if self._waiting >= self._capacity:
            raise ApiError(
                f"{self._waiting} requests are waiting for a model already; try again in 5 s",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": "5"},
            )
        self._waiting += 1
        try:
            async with self._turn:
                if self._closed:
                    raise going_down()
                held = self._held.get(base.name) or await self._load(base)
                held.uses += 1
                held.unused.clear()
                taken.append(held)
        finally:
            self._waiting -= 1
        _stop_timer(held)
        return held, held.service.of(entry.name, entry.adapter) if entry.adapter else held.service

    def give_back(self, held: Held) -> None:
        """A request that took `held` is over."""
        held.uses -= 1
        held.used_at = time.monotonic()
        if not held.uses:
            held.unused.set()
            self._wait_idle(held)

    async def unload(self, entry: Entry) -> bool:
        """Let go of a model once nobody uses it; whether it was in memory."""
        async with self._turn:
            held = self._held.get(entry.loaded_as)
            if held is None:
                return False
            await self._let_go(held)
        return True

    async def begin(self) -> None:
        """The first model is in memory already."""

    async def end(self) -> None:
        """`stop` lets go of the models, once the server is gone."""
        await self.pulls.ended()

    @property
    def is_closing(self) -> bool:
        return self._closed

    def refuse_waiting(self) -> None:
        """Begin to go down: what runs goes on, what waits is refused."""
        self._closed = True
        self.pulls.stop()
        for held in self._held.values():
            held.service.scheduler.refuse_waiting()

    def cut_short(self) -> None:
        """Go down at once."""
        self._closed = True
        for held in self._held.values():
            held.service.scheduler.cut_short()

    def stop(self) -> None:
        """Cancel what runs and end all threads; once the event loop is gone."""
        for held in self._held.values():
            held.service.scheduler.stop()
            held.service.pool.close()

    async def _load(self, entry: Entry) -> Held:
        """Load a model, after letting go of as many as must be; it is this request's turn."""
        while (others := self.held()) and (limit := await self._limit_beside(entry, others)) is None:
            await self._let_go(others[0])
        limit_bytes = limit if others else None
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(_loading, self.catalogue.load, entry, limit_bytes)
        held = Held(entry, self._start(engine, entry.name), self._idle_s)
        self._held[entry.name] = held
        return held

    async def _limit_beside(self, entry: Entry, others: list[Held]) -> int | None:
        engines = [held.service.engine for held in others]
        sizes = [(engine.context_tokens, engine.slots) for engine in engines]
        there = [(held.entry, *size) for held, size in zip(others, sizes, strict=True)]
        return await in_thread(self.catalogue.limit_beside, entry, there)

    async def _let_go(self, held: Held) -> None:
        """Unload a model as soon as nobody uses it; it is the caller's turn, so that nobody else takes it."""
        if held.uses:
            await held.unused.wait()
        _stop_timer(held)
        del self._held[held.entry.name]
        await in_thread(held.service.close)
        del held
        await in_thread(collect)  # an engine has cycles, and gigabytes

    def _wait_idle(self, held: Held) -> None:
        _stop_timer(held)
        if held.idle_s is not None:
            loop = asyncio.get_running_loop()
            held.timer = loop.call_later(held.idle_s, self._let_go_if_unused, held)

    def _let_go_if_unused(self, held: Held) -> None:
        async def let_go() -> None:
            async with self._turn:
                if not held.uses and self._held.get(held.entry.name) is held:
                    await self._let_go(held)

        self._letting_go = asyncio.create_task(let_go())  # a task that nobody holds may be lost


def only(service: Service, folder: Path, aliases: Sequence[str] = ()) -> Models:
    """The models of an application that has one, in `folder`, which stays in memory."""

    def never(*_: Any) -> NoReturn:
        raise AssertionError("it stays in memory")

    catalogue = Catalogue(Entry(service.model, folder), LoadOptions(), never, aliases, has_others=False)
    return Models(service, catalogue, never)


def _stop_timer(held: Held) -> None:
    if held.timer:
        held.timer.cancel()
        held.timer = None


async def acquire(request: Request, name: str) -> Service:
    """The service of the model that `request` names, which it holds until it is answered.

    Raises: as Models.take.
    """
    models: Models = request.app.state.models
    taken = request.scope.setdefault(_SCOPE, [])
    _, service = await models.take(name, taken)  # cancelled if the client goes away
    return service


def keep_for(request: Request, idle_s: float | None) -> None:
    """Keep what `request` holds for so long after it; None for ever."""
    for held in request.scope.get(_SCOPE, []):
        held.idle_s = idle_s


class HoldsModels:
    """ASGI middleware that gives back what a request held, once its answer is out."""

    def __init__(self, app: ASGIApp, models: Models) -> None:
        self._app, self._models = app, models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            self._give_back(scope)

    def _give_back(self, scope: MutableMapping[str, Any]) -> None:
        for held in scope.pop(_SCOPE, []):
            self._models.give_back(held)
