"""From a model's name to a model in the store: fetched, converted and checked, or gone on with."""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from localoss import settings
from localoss.errors import ModelError, UsageError
from localoss.hub import store
from localoss.hub.client import Hub
from localoss.hub.errors import DownloadError, GoneError
from localoss.hub.local import Found, discover, open_local
from localoss.hub.progress import Progress
from localoss.hub.registry import (
    REPOSITORY,
    canonical_name,
    known_models,
    sources_folder,
    store_folder,
    unknown,
)
from localoss.hub.retry import Patience
from localoss.hub.source import PulledSource
from localoss.plan.machine import this_machine
from localoss.plan.memory import Plan, check
from quant.convert import Summary, convert_source, output_bytes
from quant.format import disk
from quant.format.json_file import read_json
from quant.format.layout import JOURNAL, MANIFEST
from quant.format.manifest import Dtypes, parse_manifest
from quant.output_folder import reopen

NOTE = "pull.json"  # which commit lies in a folder of sources
BUSY = "another `localoss pull` of this model is running; wait for it, or stop it"


@dataclass(frozen=True)
class Order:
    """What to pull. `name` is a known model's or owner/name; `stored_as` its name in the store.

    Raises: ModelError, UsageError for a name that stands for nothing on the hub.
    """

    name: str
    dtypes: Dtypes = field(default_factory=Dtypes)
    revision: str | None = None
    stored_as: str | None = None
    keep_source: bool = False
    force: bool = False
    repair: bool = False

    @property
    def repository(self) -> str:
        known = known_models().get(canonical_name(self.name))
        if known is None:
            if REPOSITORY.fullmatch(self.name):
                return self.name
            raise ModelError(unknown(self.name, list(known_models())))
        if known.repository is None:
            raise UsageError(f"{self.name} comes with localoss: `localoss chat {self.name}`")
        return known.repository

    @property
    def stored_name(self) -> str:
        return self.stored_as or canonical_name(self.name)

    @property
    def folder(self) -> Path:
        return store_folder(self.stored_name)


@dataclass(frozen=True)
class Pulled:
    """What a pull did. `received_bytes` came over the network, damaged and small files included.

    `origin` is a repository, of which `commit` was taken, or a file on this machine.
    """

    folder: Path
    origin: str
    commit: str | None
    received_bytes: int
    summary: Summary


def pull(order: Order, progress: Progress, patience: Patience | None = None) -> Pulled:
    """Bring the model of `order` into the store; an interrupted pull goes on where it stopped.

    Raises: DownloadError, QuantError, ModelError, UsageError, each one line that says what to do.
    """
    repository, folder = order.repository, order.folder
    sources = sources_folder() / folder.name
    try:
        disk.make_folder(sources)
    except OSError as error:
        raise disk.disk_error(error, sources) from None
    with disk.locked(sources, BUSY):
        hub = _hub(order, sources, progress, patience)
        _note(sources, hub)
        with PulledSource(hub, sources, order.keep_source, progress) as source:
            progress.say(f"{repository} at {hub.commit[:12]}")
            _take_back(source, order, progress)
            _check_room(source, order)
            _check_memory(source, order, progress)
            summary = convert_source(source, folder, order.dtypes, order.force, progress.converted)
        if not order.keep_source:
            _clear(sources)
    with suppress(OSError):
        sources.rmdir()  # only when nothing is left in it
    return Pulled(folder, repository, hub.commit, hub.received_bytes, summary)


def take(order: Order, path: Path, progress: Progress) -> Pulled:
    """Make the model of `order` from a checkpoint on this machine. Raises: as `pull`."""
    known = known_models().get(canonical_name(order.name)) if order.stored_as is None else None
    with open_local(path, known) as source:
        name = f"{order.name} from {path.name}"
        summary = convert_source(
            source, order.folder, order.dtypes, order.force, progress.converted, name=name
        )
    return Pulled(order.folder, str(path), None, 0, summary)


def offers(order: Order) -> list[Found]:
    """Files on this machine that could stand for a download which has not begun; none if it has."""
    known = known_models().get(canonical_name(order.name))
    begun = any((order.folder / name).exists() for name in (MANIFEST, JOURNAL))
    return discover(known) if known and known.config and not begun and not order.revision else []


def _hub(order: Order, sources: Path, progress: Progress, patience: Patience | None) -> Hub:
    """The repository, at the commit of which something is here already. Raises: DownloadError."""
    begun = (order.folder / JOURNAL).exists() or any(path.name != NOTE for path in sources.iterdir())
    noted = _noted_commit(sources, order.repository) if begun and not order.revision else None
    if noted:
        with suppress(GoneError):  # the repository's history was rewritten
            return Hub(order.repository, noted, say=progress.say, patience=patience)
    return Hub(order.repository, order.revision, say=progress.say, patience=patience)


def _noted_commit(sources: Path, repository: str) -> str | None:
    """The commit of which an interrupted pull has fetched something: it is gone on with."""
    try:
        note = read_json(sources / NOTE)
        return str(note["commit"]) if note["repository"] == repository else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _note(sources: Path, hub: Hub) -> None:
    """Note the commit in folder `sources`, after removing what another one left there."""
    if _noted_commit(sources, hub.repository) == hub.commit:
        return
    _clear(sources)
    content = json.dumps({"repository": hub.repository, "commit": hub.commit}).encode()
    try:
        disk.write_file(sources / (NOTE + ".part"), content)
        disk.replace(sources / (NOTE + ".part"), sources / NOTE)
    except OSError as error:
        raise disk.disk_error(error, sources) from None


def _clear(sources: Path) -> None:
    for path in sources.iterdir():
        if path.name != disk.LOCK_FILE:
            disk.try_to_remove(path)


def _take_back(source: PulledSource, order: Order, progress: Progress) -> None:
    """Make an interrupted conversion of this very model if some of its files are bad; it is gone on with.

    Sizes are looked at always, every byte with `order.repair`. Raises: QuantError.
    """
    folder = order.folder
    if order.force or not (folder / MANIFEST).exists():
        return
    manifest = parse_manifest(folder / MANIFEST)
    if (manifest.source.fingerprint, manifest.dtypes) != (source.fingerprint(), order.dtypes):
        return  # another model: the converter says so
    if order.repair:
        progress.say(f"checking {len(manifest.files)} files")
        bad = {state.name for state in store.verify(folder) if state.state != store.OK}
    else:
        sizes = {name: entry.bytes for name, entry in manifest.files.items()}
        bad = {name for name, size in sizes.items() if not _has_size(folder / name, size)}
    if bad:
        progress.say(f"to be made again: {', '.join(sorted(bad))}")
        reopen(folder, manifest, bad)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _check_room(source: PulledSource, order: Order) -> None:
    """Raises: DownloadError if the disk cannot hold what is still to come."""
    sizes = output_bytes(source, order.dtypes)
    done = {name for name, size in sizes.items() if _has_size(order.folder / name, size)}
    left = sizes if order.force else {name: size for name, size in sizes.items() if name not in done}
    needed_bytes = source.peak_bytes(left) + disk.SPARE_BYTES
    free_bytes = shutil.disk_usage(sources_folder()).free
    if needed_bytes > free_bytes:
        less = "leave out --keep-source, " if order.keep_source else ""
        raise DownloadError(
            f"{order.name} needs {needed_bytes / 1e9:.1f} GB of disk, and {free_bytes / 1e9:.1f} GB are free "
            f"in {settings.home()}: {less}make room, or set LOCALOSS_HOME to a folder on another disk"
        )


def _check_memory(source: PulledSource, order: Order, progress: Progress) -> None:
    """Say if the model will be slow on this machine, even an idle one. Raises: UsageError if too large."""
    slow = check(Plan(source.config, order.dtypes), this_machine().idle_limit_bytes)
    if slow:
        progress.say(f"note: {slow}")
