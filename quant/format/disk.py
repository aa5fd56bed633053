"""What the converter does to a disk. Each step may fail, or be the process's last: tests try both."""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from quant.errors import BusyError, QuantError

LOCK_FILE = "localoss.lock"  # on Windows only, where a folder itself cannot be locked
SPARE_BYTES = 64 << 20  # for small files and the file system's own needs
BUSY = "another localoss quantize is writing there; wait for it, or name another folder"


def write(file: FileIO, chunk: Any) -> None:
    """Write all of `chunk`, anything with the buffer protocol, at the position of `file`."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]
    if sys.platform == "linux":
        # Linux starts to write these pages out now, without a wait; else the disk idles until the fsync.
        start = file.tell() - len(chunk)
        os.posix_fadvise(file.fileno(), start, len(chunk), os.POSIX_FADV_DONTNEED)


def sync(file: FileIO) -> None:
    os.fsync(file.fileno())


def replace(old: Path, new: Path) -> None:
    os.replace(old, new)


def remove(path: Path) -> None:
    path.unlink()


def make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last through a power cut, where the system lets folders be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write a small file, and see it on the disk before it returns."""
    with FileIO(path, "w") as file:
        write(file, content)
        sync(file)


def disk_error(error: OSError, path: Path) -> QuantError:
    """What the user can do about an `error` while `path` was written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return QuantError(
            f"{path}: the disk is full; free some space and run the same command again to go on"
        )
    if error.errno == errno.EFBIG:
        return QuantError(f"{path}: too large a file for this disk; name a folder on another one")
    return QuantError(
        f"{path}: cannot be written ({error.strerror}); mend that, and run the same command again"
    )


@contextmanager
def errors_told(path: Path) -> Iterator[None]:
    """What the disk refuses while `path` is written is a QuantError that says so."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from None


@contextmanager
def locked(folder: Path, busy: str = BUSY) -> Iterator[None]:
    """Keep other converters out of `folder`. The lock dies with the process, however that ends.

    Raises: BusyError, which says `busy`, if another process has it.
    """
    try:
        descriptor = _open_lock(folder)
    except OSError:  # a folder of somebody else's: the first write will tell
        yield
        return
    try:
        if not take_lock(descriptor):
            raise BusyError(f"{folder}: {busy}")
        yield
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _open_lock(folder: Path) -> int:
        # O_TEMPORARY: the system removes the file with its last user, even one that was killed.
        return os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_TEMPORARY)

    def take_lock(descriptor: int) -> bool:
        """Lock the file behind `descriptor` until it is closed; whether no other process has it."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _open_lock(folder: Path) -> int:
        return os.open(folder, os.O_RDONLY)

    def take_lock(descriptor: int) -> bool:
        """Lock the file behind `descriptor` until it is closed; whether no other process has it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system that has no locks: better unguarded than not at all
            return True
        return True


def existing_folder(folder: Path) -> Path:
    """`folder` itself, or the one in which it will be."""
    return next(path for path in (folder, *folder.resolve().parents) if path.exists())


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(existing_folder(folder)).free


def check_room(path: Path, needed_bytes: int, free_bytes: int) -> None:
    """Raises: QuantError if `free_bytes` are too few to write `needed_bytes` to `path`."""
    if free_bytes < needed_bytes + SPARE_BYTES:
        raise QuantError(
            f"{path}: needs {needed_bytes / 1e9:.1f} GB, but {free_bytes / 1e9:.1f} GB are free; "
            "make room or name a folder on another disk"
        )


def stamps_of(paths: list[Path]) -> dict[str, list[int]]:
    """Size in bytes and time of the last change in ns of each of `paths`, by name. Raises: QuantError."""
    stamps = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise QuantError(f"{path}: cannot be read ({error.strerror})") from None
        stamps[path.name] = [status.st_size, status.st_mtime_ns]
    return stamps


def try_to_remove(path: Path) -> None:
    """Remove `path` if that works: the next run would remove it too."""
    with suppress(OSError):
        remove(path)
