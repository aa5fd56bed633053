"""The store: what the installed models are, whether their files are whole, and how one is removed."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localoss.errors import ModelError, UsageError
from localoss.hub.registry import (
    DEMO,
    find_installed,
    installed_models,
    models_folder,
    sources_folder,
    store_folder,
)
from quant.errors import QuantError
from quant.format import disk
from quant.format.layout import JOURNAL, MANIFEST
from quant.format.manifest import FileEntry, Manifest, parse_manifest, read_manifest

COMPLETE, UNFINISHED, DAMAGED = "complete", "unfinished", "damaged"
OK, MISSING, UNREADABLE = "ok", "missing", "unreadable"
HASH_BYTES = 4 << 20
IN_USE = "another localoss command is writing there; wait for it, or stop it"


@dataclass(frozen=True)
class Installed:
    """A model of the store. `manifest` is None, and `problem` says why, unless `state` is COMPLETE."""

    name: str
    folder: Path
    state: str
    total_bytes: int  # with what a pull in progress has fetched
    changed: datetime
    manifest: Manifest | None
    problem: str | None


def installed() -> list[Installed]:
    """Every model of the store, by name."""
    return [describe(name) for name in installed_models()]


def describe(name: str) -> Installed:
    """Model `name` of the store. Raises: ModelError if there is none of that name."""
    name, folder = find_installed(name)
    manifest, problem, state = None, None, COMPLETE
    try:
        manifest = read_manifest(folder)
    except QuantError as error:
        is_partial = (folder / JOURNAL).exists() and not (folder / MANIFEST).exists()
        state = UNFINISHED if is_partial else DAMAGED
        problem = f"`localoss pull {name}` goes on where it stopped" if is_partial else str(error)
    head = folder / MANIFEST if (folder / MANIFEST).exists() else folder
    changed = datetime.fromtimestamp(head.stat().st_mtime, UTC)
    total_bytes = manifest.total_bytes if manifest else sum(_sizes(name).values())
    return Installed(name, folder, state, total_bytes, changed, manifest, problem)


def _sizes(name: str) -> dict[Path, int]:
    """Size in bytes of every file that the store keeps for model `name`: its own and what a pull left."""
    sizes = {}
    for folder in (store_folder(name), sources_folder() / store_folder(name).name):
        for path in sorted(folder.rglob("*")) if folder.is_dir() and not folder.is_symlink() else []:
            if path.is_file() and not path.is_symlink():
                sizes[path] = path.stat().st_size
    return sizes


def describe_folder(folder: Path) -> Installed:
    """The model in `folder`, anywhere on this machine. Raises: QuantError if it is none, or damaged."""
    manifest = read_manifest(folder)
    changed = datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime, UTC)
    return Installed(folder.name, folder, COMPLETE, manifest.total_bytes, changed, manifest, None)


# Verifying


@dataclass(frozen=True)
class FileState:
    """A file of a model as `verify` found it: OK, MISSING, DAMAGED or UNREADABLE, and what is wrong."""

    name: str
    bytes: int
    state: str
    detail: str = ""


def read_total_bytes(folder: Path) -> int:
    """How many bytes `verify` will read. Raises: QuantError as `verify` does."""
    return parse_manifest(folder / MANIFEST).total_bytes


def remedy(name: str, folder: Path) -> str:
    """How a model with bad files is mended."""
    origin = parse_manifest(folder / MANIFEST).source
    if folder.absolute().parent == models_folder():
        if origin.revision:
            return f"`localoss pull {name} --repair` fetches what the bad files are made from, and no more"
        if name == DEMO:
            return f"`localoss rm {name}`; its next use makes it anew"
    return f"make it again from {origin.name}: `localoss quantize SRC {folder} --force`"


def verify(folder: Path, advance: Callable[[int], None] = lambda size: None) -> Iterator[FileState]:
    """Hash every file of model directory `folder`, two at a time, and compare with its manifest.

    `advance(bytes)` counts what was read. Raises: QuantError if localoss.json itself can't be used.
    """
    entries = parse_manifest(folder / MANIFEST).files
    with ThreadPoolExecutor(2) as pool:
        states = pool.map(lambda item: _check(folder / item[0], item[1], advance), entries.items())
        try:
            yield from states
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check(path: Path, entry: FileEntry, advance: Callable[[int], None]) -> FileState:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            if size != entry.bytes:
                detail = f"{size:,} bytes instead of {entry.bytes:,}"
                return FileState(path.name, entry.bytes, DAMAGED, detail)
            file.seek(0)
            digest = sha256_of(file, advance)
    except FileNotFoundError:
        return FileState(path.name, entry.bytes, MISSING)
    except OSError as error:
        return FileState(path.name, entry.bytes, UNREADABLE, error.strerror or str(error))
    if digest != entry.sha256:
        return FileState(path.name, entry.bytes, DAMAGED, "another sha256 than when it was written")
    return FileState(path.name, entry.bytes, OK)


def sha256_of(file: Any, advance: Callable[[int], None]) -> str:
    """The sha256 of what is left of binary `file`, in hexadecimal; `advance(bytes)` counts."""
    sha256 = hashlib.sha256()
    while chunk := file.read(HASH_BYTES):
        sha256.update(chunk)
        advance(len(chunk))
    return sha256.hexdigest()


# Removing


def removable(name: str) -> tuple[str, int]:
    """The name in the store that `name` means, and the bytes that removing it frees. Raises: ModelError."""
    folder = Path(name).expanduser()
    if folder.is_dir() and name not in installed_models() and not _is_in_store(folder):
        raise UsageError(f"{name}: a folder outside the store; localoss removes only what it keeps itself")
    name, _ = find_installed(folder.name if folder.is_dir() and _is_in_store(folder) else name)
    return name, sum(_sizes(name).values())


def _is_in_store(folder: Path) -> bool:
    return folder.absolute().parent == models_folder()


def remove(name: str) -> int:
    """Remove model `name`, and what a pull of it left; gives the bytes freed. Raises: ModelError, QuantError.

    A link in the store goes, not what it points to.
    """
    name, freed_bytes = removable(name)
    for folder in (store_folder(name), sources_folder() / store_folder(name).name):
        try:
            if folder.is_symlink():
                folder.unlink()
            elif folder.is_dir():
                with disk.locked(folder, IN_USE):
                    (folder / MANIFEST).unlink(missing_ok=True)  # first: half a model must not look like one
                    shutil.rmtree(folder)
        except OSError as error:
            raise ModelError(f"{error.filename or folder}: cannot be removed ({error.strerror})") from None
    return freed_bytes
