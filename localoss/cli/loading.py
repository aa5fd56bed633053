"""From a MODEL argument to an engine, with a word about what takes long."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from localoss.cli.terminal import StatusLine

if TYPE_CHECKING:
    from localoss.engine import Engine


def load_model(name: str, **options: Any) -> tuple[Path, "Engine"]:
    """Give the folder that `name` stands for and its engine; `options` are localoss.load's."""
    import localoss
    from localoss.registry import find_model

    folder = find_model(name)
    line = StatusLine()
    try:
        return folder, localoss.load(
            folder,
            compiling=lambda kernel: line.show(f"compiling kernels, once on this machine: {kernel}"),
            **options,
        )
    finally:
        line.clear()
