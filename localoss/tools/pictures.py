"""Pictures that tools draw: files in localoss's own folder, whose paths are shown."""

import contextlib
import datetime
import time
from collections.abc import Sequence
from pathlib import Path

from localoss import settings
from quant.format import disk

_PNG = b"\x89PNG\r\n\x1a\n"
_KEPT_S = 30 * 86_400.0


def folder() -> Path:
    return settings.home() / "pictures"


def keep(drawn: Sequence[bytes]) -> tuple[str, ...]:
    """Write PNG files and give their paths; what is no PNG is dropped. Old ones are removed."""
    paths: list[str] = []
    if not any(data.startswith(_PNG) for data in drawn):
        return ()
    folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    _sweep()
    began = f"{datetime.datetime.now():%Y-%m-%d-%H%M%S-%f}"
    for number, data in enumerate(data for data in drawn if data.startswith(_PNG)):
        path = folder() / f"{began}-{number + 1}.png"
        disk.write_file(path, data)
        paths.append(str(path))
    return tuple(paths)


def _sweep() -> None:
    oldest = time.time() - _KEPT_S
    for path in folder().glob("*.png"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
