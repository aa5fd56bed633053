"""What the engine's thread makes, and how what it gives comes to the event loop."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from localoss.engine.slot import Slot
from localoss.errors import Cancelled
from localoss.server.core.keys import Client

if TYPE_CHECKING:
    from localoss.engine.sampler import Token

# Items that a client is sent before others' turn comes. Only then does the loop learn that a client left, and
# from the fifth write to one on asyncio logs a line for each.
_AT_ONCE = 2
_END = object()
_gathering = threading.local()


@contextmanager
def gathered() -> Iterator[None]:
    """What jobs give meanwhile on this thread comes to the event loop in one go, at the end.

    Each time that the loop is woken the engine's thread lets go of Python's lock, and waits for it again.
    """
    given: list[tuple[Job, Any]] = []
    _gathering.given = given
    try:
        yield
    finally:
        del _gathering.given
        for loop in {job.loop for job, _ in given}:
            its = [(job, item) for job, item in given if job.loop is loop]
            with suppress(RuntimeError):  # the server is down, and its loop closed
                loop.call_soon_threadsafe(_put_all, its)


def _put_all(given: "list[tuple[Job, Any]]") -> None:
    for job, item in given:
        job.put(item)


class Work(Protocol):
    """An answer in the making. All is called on the engine's thread."""

    @property
    def prompt(self) -> list[int]:
        """The tokens of the whole conversation so far."""

    def begin(self, cancelled: Callable[[], bool]) -> Slot | None:
        """What the batch is to run; None if there is nothing to."""

    @property
    def is_over(self) -> bool:
        """Whether no more tokens are wanted."""

    def push(self, token: "Token") -> Iterator[Any]:
        """What the next token brings about."""

    def finish(self, error: Exception | None) -> Iterator[Any]:
        """The last pieces, after the last token or what cut the answer. Raises: `error`, or Cancelled."""

    def pause(self) -> None:
        """Give back what it holds until `resume`, for the slot is left alone meanwhile."""

    def resume(self, slot: Slot) -> None:
        """Have `slot` go on from its prompt."""

    def close(self) -> None:
        """Give back what it holds; whatever happened, this is called at the end."""


@dataclass(eq=False)
class Job:
    """Work for the engine's thread; iterate it on the event loop for what the work gives."""

    work: Work
    client: Client
    follows: bool = False  # part of a request that was let in already: never refused
    adapter: str | None = None  # that its sequence runs with
    slot: Slot | None = None  # once it runs
    is_paused: bool = False  # it waits to go on
    # Whose prompt is being read, and of how many tokens its begin is this one's, too.
    behind: tuple[Slot, int] | None = None
    submitted_s: float = field(default_factory=time.monotonic)
    started_s: float = 0.0
    token_s: float = 0.0  # when its last token came
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _items: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Nobody waits for this any more: it ends between two layers, or isn't begun."""
        self._cancelled.set()

    async def items(self, idle_s: float | None = None) -> AsyncIterator[Any]:
        """What the work gives, and None after every `idle_s` without anything. Raises: what the work raised.

        Leaving this early cancels the job.
        """
        at_once = 0
        try:
            while True:
                try:
                    item = self._items.get_nowait()
                except asyncio.QueueEmpty:
                    try:
                        at_once = 0
                        async with asyncio.timeout(idle_s):
                            item = await self._items.get()
                    except TimeoutError:
                        yield None
                        continue
                if item is _END:
                    return
                if isinstance(item, Exception):
                    raise item
                yield item
                at_once += 1
                if at_once == _AT_ONCE:  # many that wait would all be sent to a client that left, too
                    at_once = 0
                    await asyncio.sleep(0)
        finally:
            self.cancel()

    def give(self, item: Any) -> None:
        given = getattr(_gathering, "given", None)
        if given is not None:
            given.append((self, item))
            return
        with suppress(RuntimeError):  # the server is down, and its loop closed
            self.loop.call_soon_threadsafe(self.put, item)

    def put(self, item: Any) -> None:
        """On the event loop."""
        self._items.put_nowait(item)

    def give_all(self, pieces: Callable[[], Iterator[Any]]) -> bool:
        """Give what `pieces` gives, or what it raises instead; whether it came to its end."""
        try:
            for piece in pieces():
                self.give(piece)
            return True
        except Cancelled:
            pass
        except Exception as error:
            self.give(error)
        except BaseException as error:  # a panic of a Rust library is no Exception
            self.give(RuntimeError(f"{type(error).__name__}: {error}"))
        return False

    def end(self) -> None:
        with suppress(Exception):
            self.work.close()
        self.give(_END)
