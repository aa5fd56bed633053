"""A model for each machine: its own, one in a folder that all see, or a copy of the head's.

A copy comes file by file, each written beside its name, checked by its sha256 and renamed; localoss.json
comes last, so that what has one is whole, and a copy that was cut goes on with the next file.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localoss import settings
from localoss.errors import LocalossError, ModelError
from localoss.hub.registry import canonical_name, find_model, store_folder
from quant.format.layout import MANIFEST, layer_file
from quant.format.manifest import FileEntry, parse_manifest, read_manifest

BLOCK_BYTES = 8 << 20  # of a file at a time: Ray's object store may be small
_DIGEST_LETTERS = 8

Fetch = Callable[[str, int, int], bytes]  # a file's name, where to begin, how much


@dataclass(frozen=True)
class Source:
    """A model as its user named it. folder, manifest: where the head has it, and its localoss.json there;
    None where the head has none of that name.
    """

    name: str
    folder: str | None = None
    manifest: bytes | None = None

    @property
    def served(self) -> str:
        """What requests call it, as on one machine."""
        return self.name if self.folder is None else Path(self.folder).name.replace("--", "/", 1)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.manifest or b"").hexdigest()[:_DIGEST_LETTERS]


class HeadFiles:
    """The head's files of a model, for whoever asks; an actor there."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._names = {MANIFEST, *read_manifest(self._folder).files}

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Raises: ModelError for a file that isn't the model's."""
        if name not in self._names:
            raise ModelError(f"{name} is no file of {self._folder}")
        with open(self._folder / name, "rb") as file:
            file.seek(offset)
            return file.read(min(size, BLOCK_BYTES))


def source_of(name: str) -> Source:
    """What the head, where this runs, has of `name`. Raises: LocalossError for one that is damaged."""
    try:
        folder = find_model(name)
    except ModelError:
        return Source(name)
    read_manifest(folder)
    return Source(name, str(folder.absolute()), (folder / MANIFEST).read_bytes())


def _here(source: Source) -> Path | None:
    """The model's folder where it needs no copy: this machine's own, or one that machines share."""
    if own := _own(source):
        return own
    shared = Path(source.folder) if source.folder else None
    return shared if shared and _is_same(shared, source) else None


def located(source: Source, fetch: Fetch | None, told: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of that model on this machine, copied from the head if need be.

    fetch: reads a part of a file of the head's; None where there is nobody to ask. told: hears a line as
    files come. Raises: ModelError.
    """
    if here := _here(source):
        return here
    if source.manifest is None or fetch is None:
        raise ModelError(
            f"{source.name} isn't on this machine, nor on the one that asks; "
            f"`localoss pull {source.name}` on one of them"
        )
    folder = _target(source)
    if not _is_same(folder, source):
        _copy(folder, source.manifest, fetch, told)
    return folder


def _own(source: Source) -> Path | None:
    try:
        folder = find_model(source.name)
    except LocalossError:
        return None
    return folder if source.manifest is None or _is_same(folder, source) else None


def _is_same(folder: Path, source: Source) -> bool:
    """Whether `folder` has the same files as the head's, by their sha256, all of them whole."""
    try:
        return read_manifest(folder).files == _files(source.manifest or b"")
    except (LocalossError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _files(manifest: bytes) -> dict[str, FileEntry]:
    raw = json.loads(manifest)["files"]
    return {name: FileEntry(entry["bytes"], entry["sha256"]) for name, entry in raw.items()}


def _target(source: Source) -> Path:
    """Where a copy goes: under the model's name in the store, or beside another model of that name."""
    name = canonical_name(source.name)
    try:
        folder = store_folder(name)
    except LocalossError:  # a path was given
        folder = store_folder(Path(source.name).name)
    if (folder / MANIFEST).exists():
        return folder.with_name(f"{folder.name}-{source.digest}")
    return folder


def _copy(folder: Path, manifest: bytes, fetch: Fetch, told: Callable[[str], None]) -> None:
    """Raises: ModelError for a file that comes otherwise than localoss.json has it, OSError as ModelError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{MANIFEST}.part"
        new.write_bytes(manifest)
        files = parse_manifest(new).files  # names are checked there: none leads elsewhere
        for number, (name, entry) in enumerate(files.items(), 1):
            path = folder / name
            if not _is_whole(path, entry):
                told(f"copying {name}, {number} of {len(files)}")
                _copy_file(path, entry, fetch)
        os.replace(new, folder / MANIFEST)
    except OSError as error:
        raise ModelError(f"{folder}: can't be written ({error.strerror or error})") from None


def _is_whole(path: Path, entry: FileEntry) -> bool:
    """Whether an earlier copy brought this file."""
    if not path.exists() or path.stat().st_size != entry.bytes:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256


def _copy_file(path: Path, entry: FileEntry, fetch: Fetch) -> None:
    part, digest, done = path.with_name(f"{path.name}.part"), hashlib.sha256(), 0
    with open(part, "wb") as file:
        while done < entry.bytes:
            block = fetch(path.name, done, min(BLOCK_BYTES, entry.bytes - done))
            if not block:
                break
            file.write(block)
            digest.update(block)
            done += len(block)
        file.flush()
        os.fsync(file.fileno())
    if done != entry.bytes or digest.hexdigest() != entry.sha256:
        part.unlink()
        raise ModelError(f"{path.name} came damaged from the head; `localoss verify` there says more")
    os.replace(part, path)


def located_part(source: Source, fetch: Fetch | None, first: int, count: int) -> Path:
    """A folder of this machine with the files of those layers, of which a copy needs no others.

    Raises: ModelError.
    """
    if here := _here(source):
        return here
    if source.manifest is None or fetch is None:
        return located(source, fetch)  # which says what is missing
    folder = settings.home() / "parts" / f"{Path(source.name).name}-{source.digest}"
    files, wanted = _files(source.manifest), [layer_file(layer) for layer in range(first, first + count)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            if not _is_whole(folder / name, files[name]):
                _copy_file(folder / name, files[name], fetch)
    except OSError as error:
        raise ModelError(f"{folder}: can't be written ({error.strerror or error})") from None
    return folder
