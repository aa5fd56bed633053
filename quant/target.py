"""The output folder of a conversion: may it be written, what is there already, what is left to do."""

import os
import shutil
from pathlib import Path

from quant.errors import QuantError
from quant.layout import MANIFEST, VOCABULARY_FILE
from quant.manifest import PARTIAL, FileEntry, Manifest, parse_manifest
from quant.writer import PART, disk_error, sync_folder

CONFIG_FILES = ("config.json", "generation_config.json")
SPARE_BYTES = 64 << 20  # for the small files and the file system's own needs
NEW_PARTIAL = f"{PARTIAL}.new"


class Target:
    """Keeps the manifest on disk in step with the files that are complete, so that a second run can go on.

    `manifest` grows with every file; before the last one its name is localoss.json.part.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest

    def prepare(self, sizes: dict[str, int], force: bool) -> bool:
        """Make the folder ready for files of `sizes` bytes; True if the model is there, complete.

        Raises: QuantError if it holds something else, or the disk has no room.
        """
        self._check_foreign()
        if not force:
            if (self.folder / MANIFEST).exists():
                return self._take_complete()
            self._take_partial()
        self._check_room(sum(size for name, size in sizes.items() if name not in self.manifest.files))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._save()  # first, so that the folder is known as ours whatever happens
            for path in self._unfinished():
                path.unlink()
        except OSError as error:
            raise disk_error(error, self.folder) from None
        return False

    def add(self, name: str, entry: FileEntry) -> None:
        """File `name` is complete and on disk."""
        self.manifest = self.manifest.with_file(name, entry)
        try:
            self._save()
        except OSError as error:
            raise disk_error(error, self.folder) from None

    def finish(self) -> None:
        os.replace(self.folder / PARTIAL, self.folder / MANIFEST)
        sync_folder(self.folder)

    def _check_foreign(self) -> None:
        """Raises: QuantError if the folder holds anything that a conversion does not write."""
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise QuantError(f"{self.folder}: a file; name a new folder for the model")
        names = {path.name for path in self.folder.iterdir()}
        if names and not names & {MANIFEST, PARTIAL, NEW_PARTIAL}:
            raise QuantError(
                f"{self.folder}: holds something else ({min(names)}); name a new or empty folder"
            )
        foreign = {name for name in names if not _is_ours(name)}
        if foreign:
            raise QuantError(
                f"{self.folder}: holds {min(foreign)} beside a model; move it, or name a new folder"
            )

    def _take_complete(self) -> bool:
        try:
            there = parse_manifest(self.folder / MANIFEST)
        except QuantError as error:
            raise QuantError(f"{error}, or write it again with --force") from None
        self._check_same(there)
        self.manifest = there
        for name, entry in there.files.items():
            path = self.folder / name
            if not path.exists() or path.stat().st_size != entry.bytes:
                raise QuantError(f"{path}: missing or damaged; write the model again with --force")
        return True

    def _take_partial(self) -> None:
        """Go on from an interrupted conversion: files that it finished, and that are whole, stay."""
        try:
            there = parse_manifest(self.folder / PARTIAL)
        except QuantError:
            return  # there is none, or it is damaged: start afresh
        self._check_same(there)
        for name, entry in there.files.items():
            path = self.folder / name
            if path.exists() and path.stat().st_size == entry.bytes:
                self.manifest = self.manifest.with_file(name, entry)

    def _check_same(self, there: Manifest) -> None:
        wanted = self.manifest
        if there.dtypes != wanted.dtypes:
            what = f"{there.source.name} in other number formats"
        elif there.source.fingerprint != wanted.source.fingerprint:
            what = f"a model made from another checkpoint ({there.source.name})"
        else:
            return
        raise QuantError(f"{self.folder}: holds {what}; name another folder, or replace it with --force")

    def _unfinished(self) -> list[Path]:
        """Everything in the folder that this conversion will not keep, the old manifest first."""
        keep = {*self.manifest.files, PARTIAL}
        paths = [path for path in self.folder.iterdir() if path.name not in keep]
        return sorted(paths, key=lambda path: path.name != MANIFEST)

    def _check_room(self, needed_bytes: int) -> None:
        existing = next(path for path in (self.folder, *self.folder.resolve().parents) if path.exists())
        free_bytes = shutil.disk_usage(existing).free
        if self.folder.exists():
            free_bytes += sum(path.stat().st_size for path in self._unfinished())
        if free_bytes < needed_bytes + SPARE_BYTES:
            raise QuantError(
                f"{self.folder}: needs {needed_bytes / 1e9:.1f} GB, but {free_bytes / 1e9:.1f} GB are free; "
                "make room or name a folder on another disk"
            )

    def _save(self) -> None:
        new = self.folder / NEW_PARTIAL
        with open(new, "w", encoding="utf-8") as file:
            file.write(self.manifest.to_json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.folder / PARTIAL)


def _is_ours(name: str) -> bool:
    name = name.removesuffix(PART)
    return name in (*CONFIG_FILES, MANIFEST, NEW_PARTIAL, VOCABULARY_FILE) or (
        name.startswith("layer-") and name.endswith(".safetensors")
    )
