"""What a machine of a cluster does for a batch: it loads the model as it fits there, and answers lines."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localoss import __version__
from localoss.cluster.models import Fetch, Source, located
from localoss.errors import LocalossError
from localoss.options import Listener, LoadOptions
from localoss.server.batches.answerer import Answerer, Answering
from localoss.server.batches.journal import Request


@dataclass(frozen=True)
class Loaded:
    """What became of loading. fault: why it can't be used, in a line; None if it can.

    at_once: how many lines to ask it for. notes: what was to be told.
    """

    version: str
    fault: str | None = None
    at_once: int = 0
    notes: tuple[str, ...] = ()


def load_here(
    source: Source, loading: LoadOptions, fetch: Fetch | None, notice: Callable[[str], None]
) -> tuple[Path, Any]:
    """The model's folder on this machine, and its engine, of a size that fits here. Raises: LocalossError."""
    import localoss
    from localoss.chat.harmony import check_vocabulary

    folder = located(source, fetch)
    engine = localoss.load(folder, loading, listener=Listener(notice=notice))
    check_vocabulary(engine.config.vocab)
    return folder, engine


class BatchMachine:
    """An actor: one machine. If its process dies, Ray makes it anew, and the next line loads the model."""

    def __init__(self, source: Source, how: Answering, loading: LoadOptions, files: str | None) -> None:
        """files: the name of the actor with the head's files; None if the head has no such model."""
        self._source, self._how, self._files = source, how, files
        self._loading = replace(loading, slots=how.parallel, ray=None)
        self._answerer: Answerer | None = None
        self._turn = asyncio.Lock()
        self._notes: list[str] = []

    async def load(self) -> Loaded:
        """Load the model, unless it is loaded."""
        try:
            answerer = await self._ready()
        except (LocalossError, OSError, MemoryError) as error:
            return Loaded(__version__, str(error) or type(error).__name__)
        return Loaded(__version__, None, answerer.at_once, tuple(self._notes))

    async def ask(self, request: Request) -> tuple[int, dict[str, Any]]:
        """The status and the body of an answer."""
        return await (await self._ready()).ask(request)

    async def _ready(self) -> Answerer:
        async with self._turn:
            if self._answerer is None:
                folder, engine = await asyncio.to_thread(
                    load_here, self._source, self._loading, fetching(self._files), self._notes.append
                )
                self._answerer = Answerer(engine, folder, self._how)
            return self._answerer


def fetching(files: str | None) -> Fetch | None:
    """What reads the head's files from another machine."""
    if files is None:
        return None

    def fetch(name: str, offset: int, size: int) -> bytes:
        import ray

        block: bytes = ray.get(ray.get_actor(files).read.remote(name, offset, size))
        return block

    return fetch
