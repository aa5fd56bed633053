"""The output folder of a conversion: may it be written, what is there already, what is left to do."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from quant.errors import QuantError
from quant.format import disk
from quant.format.json_file import read_json
from quant.format.layout import CALIBRATION_FILE, CONFIG_FILES, JOURNAL, MANIFEST, VOCABULARY_FILE
from quant.format.manifest import FileEntry, Manifest, parse_manifest
from quant.format.writer import PART

NEW_JOURNAL = f"{JOURNAL}.new"


class Target:
    """Keeps a journal of the files that are complete, so that a second run can go on.

    The journal is the manifest so far, under the name localoss.json.part, and `source_files`, the sizes and
    times that `stamps` gives of the checkpoint's files. Use as a context manager: it locks the folder.
    """

    def __init__(self, folder: Path, manifest: Manifest, stamps: Callable[[], dict[str, list[int]]]):
        self.folder = folder
        self.manifest = manifest  # grows with every file
        self._stamps_now = stamps
        self._stamps = stamps()
        self._held = ExitStack()

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def look(self, force: bool) -> bool:
        """Take what is there into `manifest`, and change nothing; True if the model is complete.

        Raises: QuantError if the folder holds something else that `force` doesn't replace.
        """
        self._check_foreign()
        if (self.folder / MANIFEST).exists():
            return not force and self._take_complete()
        self._take_partial(force)
        return False

    def prepare(self, sizes: dict[str, int], force: bool) -> bool:
        """Lock the folder and make it ready for files of `sizes` bytes; True if the model is complete.

        Raises: QuantError if it holds something else, another process writes it, or the disk has no room.
        """
        self._check_foreign()
        with disk.errors_told(self.folder):
            if not self.folder.exists():
                self._check_room(sizes)
                disk.make_folder(self.folder)
            self._held.enter_context(disk.locked(self.folder))
            if self.look(force):
                for name in (JOURNAL, NEW_JOURNAL):  # left if the last run ended just before it would have
                    disk.try_to_remove(self.folder / name)
                return True
            self._check_room(sizes)
            self._save()  # first, so that the folder is known as ours whatever happens
            self._clear()
        return False

    def add(self, name: str, entry: FileEntry) -> None:
        """File `name` is complete and on disk; may be told in any thread, one file at a time.

        Raises: QuantError if the source changed meanwhile.
        """
        for path in self._changed(self._stamps_now()):
            raise QuantError(f"{path}: changed while it was converted; convert it again with --force")
        self.manifest = self.manifest.with_file(name, entry)
        with disk.errors_told(self.folder):
            self._save()

    def finish(self) -> None:
        """The model is complete: from now on it has its manifest."""
        with disk.errors_told(self.folder):
            disk.write_file(self.folder / NEW_JOURNAL, self.manifest.to_json())
            disk.replace(self.folder / NEW_JOURNAL, self.folder / MANIFEST)
            disk.sync_folder(self.folder)
        disk.try_to_remove(self.folder / JOURNAL)

    def _check_foreign(self) -> None:
        """Raises: QuantError if the folder holds anything that a conversion does not write."""
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise QuantError(f"{self.folder}: a file; name a new folder for the model")
        names = {path.name for path in self.folder.iterdir()} - {disk.LOCK_FILE}
        if names and not names & {MANIFEST, JOURNAL, NEW_JOURNAL}:
            raise QuantError(
                f"{self.folder}: holds something else ({min(names)}); name a new or empty folder"
            )
        foreign = {name for name in names if not _is_ours(name)}
        if foreign:
            raise QuantError(
                f"{self.folder}: holds {min(foreign)} beside a model; move it, or name a new folder"
            )

    def _take_complete(self) -> bool:
        path = self.folder / MANIFEST
        try:
            there = parse_manifest(path)
        except QuantError as error:
            raise QuantError(f"{error}, or write it again with --force") from None
        self._check_same(there)
        made_ns = path.stat().st_mtime_ns
        for name, (_, changed_ns) in self._stamps.items():
            if changed_ns > made_ns:
                raise QuantError(
                    f"{self.folder}: older than {name} of the checkpoint; if that is another one now, "
                    "write the model again with --force"
                )
        self.manifest = there
        for name, entry in there.files.items():
            path = self.folder / name
            if not path.exists() or path.stat().st_size != entry.bytes:
                raise QuantError(f"{path}: missing or damaged; write the model again with --force")
        return True

    def _take_partial(self, force: bool) -> None:
        """Go on from an interrupted conversion: files that it finished, and that are whole, stay.

        A file in the journal was synced before it got its name, so its size says enough.
        """
        try:
            there = parse_manifest(self.folder / JOURNAL)
            stamps = read_json(self.folder / JOURNAL).get("source_files")
        except (QuantError, OSError, ValueError):
            return  # there is none, or it is damaged: start afresh
        try:
            self._check_same(there)
            for name in self._changed(stamps):
                raise QuantError(
                    f"{self.folder}: {name} of the checkpoint changed since this conversion began; "
                    "begin again with --force"
                )
        except QuantError:
            if force:
                return
            raise
        if there.localoss_version != self.manifest.localoss_version:
            return  # it may have rounded differently: start afresh
        for name, entry in there.files.items():
            path = self.folder / name
            if _is_ours(name) and path.exists() and path.stat().st_size == entry.bytes:
                self.manifest = self.manifest.with_file(name, entry)

    def _check_same(self, there: Manifest) -> None:
        wanted = self.manifest
        if there.dtypes != wanted.dtypes:
            what = f"{there.source.name} in other number formats"
        elif there.calibration != wanted.calibration:
            how = "without a" if not there.calibration else "with another" if wanted.calibration else "with a"
            what = f"{there.source.name} rounded {how} calibration text"
        elif there.source.fingerprint != wanted.source.fingerprint:
            what = f"a model made from another checkpoint ({there.source.name})"
        else:
            return
        raise QuantError(f"{self.folder}: holds {what}; name another folder, or replace it with --force")

    def _changed(self, stamps: Any) -> list[str]:
        """The source files that aren't as `stamps` tell."""
        if not isinstance(stamps, dict):
            return sorted(self._stamps)
        return sorted(
            name for name in self._stamps.keys() | stamps.keys() if self._stamps.get(name) != stamps.get(name)
        )

    def _clear(self) -> None:
        """Remove what this conversion will not keep; the old manifest for good before anything it names."""
        if (self.folder / MANIFEST).exists():
            disk.remove(self.folder / MANIFEST)
            disk.sync_folder(self.folder)
        for path in self._unfinished():
            disk.remove(path)

    def _unfinished(self) -> list[Path]:
        """Everything in the folder that this conversion will not keep."""
        keep = {*self.manifest.files, JOURNAL, disk.LOCK_FILE}
        return [path for path in self.folder.iterdir() if path.name not in keep]

    def _check_room(self, sizes: dict[str, int]) -> None:
        needed_bytes = sum(size for name, size in sizes.items() if name not in self.manifest.files)
        disk.check_room(self.folder, needed_bytes, self.free_bytes())

    def free_bytes(self) -> int:
        """What the conversion can use: free space, and that of files in the folder that it will remove."""
        free_bytes = disk.free_bytes(self.folder)
        if self.folder.exists():
            free_bytes += sum(path.stat().st_size for path in self._unfinished())
        return free_bytes

    def _save(self) -> None:
        new = self.folder / NEW_JOURNAL
        disk.write_file(new, self.manifest.to_json(source_files=self._stamps))
        disk.replace(new, self.folder / JOURNAL)


def reopen(folder: Path, manifest: Manifest, bad: set[str]) -> None:
    """Make an interrupted conversion of a pulled model: one that lacks its files `bad`.

    Raises: QuantError.
    """
    files = {name: entry for name, entry in manifest.files.items() if name not in bad}
    there = replace(manifest, files=files)
    with disk.errors_told(folder), disk.locked(folder):
        disk.write_file(folder / NEW_JOURNAL, there.to_json(source_files={}))
        disk.replace(folder / NEW_JOURNAL, folder / JOURNAL)
        disk.remove(folder / MANIFEST)
        disk.sync_folder(folder)


def _is_ours(name: str) -> bool:
    name = name.removesuffix(PART)
    return name in (*CONFIG_FILES, MANIFEST, NEW_JOURNAL, VOCABULARY_FILE, CALIBRATION_FILE) or (
        name.startswith("layer-") and name.endswith(".safetensors")
    )
