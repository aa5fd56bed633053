"""From a MODEL argument to an engine, with a word about what takes long."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from localoss.cli.terminal import StatusLine, say

if TYPE_CHECKING:
    from localoss.chat.remote import RemoteModel
    from localoss.engine.engine import Engine
    from localoss.options import LoadOptions

_KERNELS = 86  # functions that a first start compiles; where there are more, the count tells so
_KERNELS_BEFORE_GUESS = 4


def introduction(model: str) -> str | None:
    """What to say before a conversation with `model`; None for a model that needs no explaining."""
    from localoss.hub.registry import DEMO, known_models

    if model != DEMO:
        return None
    description = known_models()[DEMO].description
    return f"This is {DEMO}, {description}.\nFor a real one: localoss pull gpt-oss-20b"


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Meanwhile garbage is left lying: imports make next to none, and looking for it costs a start 8 %."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class CompileProgress:
    """Told each kernel that is compiled, says how many there are and how long the rest will take."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._began_s = show, 0.0
        self._compiled: set[str] = set()

    def __call__(self, kernel: str) -> None:
        self._began_s = self._began_s or time.monotonic()
        self._compiled.add(kernel)
        done = len(self._compiled) - 1
        total = max(_KERNELS, done + 1)
        left = ""
        if done >= _KERNELS_BEFORE_GUESS:
            seconds = (time.monotonic() - self._began_s) / done * (total - done)
            left = f", about {max(round(seconds), 1)} s"
        self._show(f"compiling kernels, once on this machine: {done + 1} of {total}{left}")


class SpacedLines:
    """Says what takes long in lines of their own, the first at once and then one now and then: for a log."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s, self._said_s = every_s, -every_s

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if now - self._said_s >= self._every_s:
            self._said_s = now
            say(line)


def load_model(
    name: str,
    options: "LoadOptions",
    progress: Callable[[str], None] | None = None,
    notice: Callable[[str], None] = say,
    has_names: bool = False,
) -> tuple[Path, "Engine"]:
    """Give the folder that `name` stands for and its engine.

    progress: told what takes long; by default the terminal is. notice: told what must be said. has_names:
    whether somebody can ask for an adapter by its name. Raises: UsageError for one with a name else.
    """
    import localoss
    from localoss.errors import UsageError
    from localoss.hub.registry import find_model
    from localoss.options import Listener

    folder = find_model(name, progress or say)
    if options.adapters and not has_names:
        from quant.sources.adapter import split_name

        for text in options.adapters:
            if split_name(text)[0]:
                raise UsageError(f"--adapter {text}: names are for serve; give the adapter's folder alone")
    line = StatusLine()
    show = progress or line.show
    listener = Listener(
        notice=notice,
        compiling=CompileProgress(show),
        uploading=lambda done, total: show(f"copying layers to the GPU: {done} of {total}"),
    )
    try:
        if options.ray and not options.spread:
            raise UsageError("--ray alone is for batch and serve; --spread shares a model out")
        if options.spread:
            from localoss.cluster.spread import load_spread

            return load_spread(name, options, listener)
        with _nothing_collected():
            return folder, localoss.load(folder, options, listener=listener)
    finally:
        line.clear()


def find_or_load(
    name: str,
    options: "LoadOptions",
    given: Sequence[str] | None,
    progress: Callable[[str], None] | None = None,
    notice: Callable[[str], None] = say,
    least_context: int = 0,
) -> "tuple[Path, Engine | RemoteModel]":
    """The folder that `name` stands for, and its model: in a running server, or else loaded here.

    given: options of the command that a server's model doesn't have, as --threads; None: no server is asked.
    progress, notice: see load_model. least_context: tokens; a server with less isn't asked.
    """
    from localoss.chat.remote import find_remote
    from localoss.hub.registry import find_model

    folder = find_model(name, progress or say)
    if given is not None and (remote := find_remote(folder)):
        missing = given[0] if given else None
        if remote.context_tokens < min(least_context, remote.config.context):
            missing = f"a context of {least_context:,} tokens"
        if missing is None:
            return folder, remote
        notice(f"({remote.server.url} has {folder.name} without {missing}: it is loaded here)")
    return load_model(name, options, progress, notice)
