"""The demo model's weights, shipped in a few MB, become an ordinary model directory at their first use."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from localoss.errors import ModelError
from quant.convert import convert, origin_of
from quant.errors import BusyError, QuantError
from quant.format import disk
from quant.format.layout import JOURNAL, MANIFEST
from quant.format.manifest import Dtypes, Manifest, Origin, parse_manifest, read_manifest
from quant.sources import open_source

NAME = "demo"
WEIGHTS = (
    Path(__file__).parent.parent / "demo" / "weights"
)  # a reduced checkpoint: see quant/sources/reduced.py
_LOOK_AGAIN_S = 0.1


def install(folder: Path, report: Callable[[str], None]) -> None:
    """See that `folder`, in the models folder, holds the demo model of this localoss, and write it if not.

    `report` gets one line before that, which takes a second or two. Processes that do it at once wait for the
    first. Raises: ModelError if another model has that name or the weights aren't there, QuantError if it
    cannot be written.
    """
    if not WEIGHTS.is_dir():
        raise ModelError(f"{WEIGHTS}: missing; install localoss again, or name another model")
    with open_source(WEIGHTS) as source:
        origin = origin_of(source, NAME)
    if _is_installed(folder, origin):
        return
    report("making the demo model ready, once on this machine: a second or two")
    try:
        disk.make_folder(folder.parent)
    except OSError as error:
        raise disk.disk_error(error, folder.parent) from None
    with _locked(folder.parent):
        if not _is_installed(folder, origin):
            convert(WEIGHTS, folder, force=True, name=NAME)


def _is_installed(folder: Path, origin: Origin) -> bool:
    """Raises: ModelError for another model, which nobody asked to replace."""
    for name in (MANIFEST, JOURNAL):
        there = _manifest(parse_manifest, folder / name)
        if there and there.source.name != NAME:
            raise ModelError(
                f"{folder}: made from {there.source.name}, but {NAME} is the model that comes with localoss; "
                "give that folder another name"
            )
    there = _manifest(read_manifest, folder)
    return there is not None and (there.source, there.dtypes) == (origin, Dtypes())


def _manifest(read: Callable[[Path], Manifest], path: Path) -> Manifest | None:
    """What `read` gives for `path`; None where there is no manifest, or a damaged one."""
    try:
        return read(path)
    except QuantError:
        return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock on `folder`, and wait for it as long as another process has it."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(disk.locked(folder))
                break
            except BusyError:
                time.sleep(_LOOK_AGAIN_S)
        yield
