"""The replicas behind an endpoint, and which of them is asked."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from starlette.types import Message

from localoss.server.balancing.prefixes import Beginnings, PrefixTable
from localoss.server.core.keys import Client

PATIENCE_S = 300.0  # for a replica to come back, where all are away


class Gone(Exception):
    """A replica didn't answer to the end: it is gone, or about to be."""


@dataclass(frozen=True)
class Asked:
    """A request as it came, its body whole. client: who asks, which was found out already."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    client: Client


Ask = Callable[[Asked], AsyncIterator[Message]]  # ASGI's messages of the answer; raises Gone


@dataclass(eq=False)
class Member:
    """A replica. slots: answers that it writes side by side. is_open: whether it is given requests."""

    name: str
    slots: int
    ask: Ask
    is_open: bool = True
    running: int = 0
    asked: int = 0  # requests in all
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def waiting(self) -> int:
        return max(self.running - self.slots, 0)


class Members:
    """Chooses among the replicas. Used on the event loop alone."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self.all: list[Member] = []
        self.spilled = self.hits = 0  # requests that went elsewhere than their conversation, and there
        self._table, self._patience_s = PrefixTable(), patience_s
        self._changed = asyncio.Condition()

    async def add(self, member: Member) -> None:
        self.all.append(member)
        await self.changed()

    async def remove(self, member: Member) -> None:
        self.all.remove(member)
        self._table.forget(member.name)
        await self.changed()

    async def changed(self) -> None:
        """Look again, those that wait for a replica: one was opened, or is free."""
        async with self._changed:
            self._changed.notify_all()

    async def take(self, asked: Beginnings, without: set[str]) -> Member | None:
        """The replica for a request, which `give_back` lets go; None if there is none for long.

        without: names of those that failed with it: they are asked again only once they were opened again.
        """
        try:
            async with asyncio.timeout(self._patience_s), self._changed:
                while not (chosen := self._choose(asked, without)):
                    await self._changed.wait()
        except TimeoutError:
            return None
        chosen.running += 1
        chosen.asked += 1
        chosen.idle.clear()
        self._table.note(asked, chosen.name)
        return chosen

    def give_back(self, member: Member) -> None:
        member.running -= 1
        if not member.running:
            member.idle.set()

    def note_response(self, key: str, member: Member) -> None:
        """A stored response is that replica's: what follows it goes there."""
        self._table.note(Beginnings([key]), member.name)

    def began_anew(self, member: Member) -> None:
        self._table.forget(member.name)

    def _choose(self, asked: Beginnings, without: set[str]) -> Member | None:
        """The one that has the beginning, unless its queue is long and another is free; else the idlest."""
        there = [one for one in self.all if one.is_open and one.name not in without]
        if not there:
            return None
        least = min(there, key=lambda one: (one.running / one.slots, one.asked))
        name = self._table.find(asked)
        best = next((one for one in there if one.name == name), None)
        if best is None:
            return least
        if best.waiting > best.slots // 2 and least.running < least.slots:
            self.spilled += 1
            return least
        self.hits += 1
        return best
