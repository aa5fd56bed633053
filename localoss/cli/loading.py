"""From a MODEL argument to an engine, with a word about what takes long."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from localoss.cli.terminal import StatusLine, say

if TYPE_CHECKING:
    from localoss.engine.engine import Engine
    from localoss.options import LoadOptions


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


def load_model(
    name: str,
    options: "LoadOptions",
    progress: Callable[[str], None] | None = None,
    notice: Callable[[str], None] = say,
) -> tuple[Path, "Engine"]:
    """Give the folder that `name` stands for and its engine.

    progress: told what takes long; by default the terminal is. notice: told what must be said.
    """
    import localoss
    from localoss.hub.registry import find_model
    from localoss.options import Listener

    folder = find_model(name, progress or say)
    line = StatusLine()
    show = progress or line.show
    listener = Listener(
        notice=notice,
        compiling=lambda kernel: show(f"compiling kernels, once on this machine: {kernel}"),
        uploading=lambda done, total: show(f"copying layers to the GPU: {done} of {total}"),
    )
    try:
        with _nothing_collected():
            return folder, localoss.load(folder, options, listener=listener)
    finally:
        line.clear()
