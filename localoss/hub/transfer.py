"""One file from the hub to the disk: several ranges at a time, hashed in order, resumed by its length.

What has come lies in NAME.part, without holes: its length is all that a later run needs to know. A kill loses
the pieces in flight, at most IN_FLIGHT of PIECE_BYTES.
"""

import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from io import FileIO
from pathlib import Path
from threading import Thread
from typing import Any

from localoss.hub.client import Hub, Piece
from localoss.hub.errors import WrongFileError
from localoss.hub.listing import RemoteFile
from localoss.hub.retry import TIMES
from localoss.hub.store import HASH_BYTES, sha256_of
from quant.format import disk
from quant.format.writer import PART

PIECE_BYTES = 3 << 20
IN_FLIGHT = 5  # pieces, each on a connection of its own: 15.7 MB in all
POLL_S = 0.2  # between two looks at how much has come
Advance = Callable[[int], None]  # told how many bytes of the file are here


class _Reading:
    """A piece, and the thread that fills it. A daemon: nobody waits for a stalled one at the end."""

    def __init__(self, hub: Hub, name: str, start: int, stop: int):
        self.piece = Piece(start, stop)
        self._over: Future[None] = Future()
        Thread(target=self._run, args=(hub, name), daemon=True).start()

    def _run(self, hub: Hub, name: str) -> None:
        try:
            hub.fill(name, self.piece)
        except BaseException as error:
            self._over.set_exception(error)
        else:
            self._over.set_result(None)

    def is_over(self) -> bool:
        """Whether the piece is whole, after a wait of POLL_S at most. Raises: DownloadError."""
        try:
            self._over.result(POLL_S)
        except TimeoutError:
            return False
        return True


def fetch(hub: Hub, file: RemoteFile, folder: Path, say: Callable[[str], None], advance: Advance) -> Path:
    """`file` in `folder`, whole and of the right sha256, from wherever an earlier run stopped.

    A file that comes damaged is fetched again, alone. Raises: DownloadError, QuantError for the disk's.
    """
    path = folder / file.name
    part = folder / (file.name + PART)
    for _ in range(TIMES):
        try:
            digest = _complete(hub, file, part, advance)
            if digest == (file.sha256 or digest):
                disk.replace(part, path)
                disk.sync_folder(folder)
                return path
            say(f"{file.name} came damaged; fetching it again")
            disk.remove(part)
        except OSError as error:
            raise disk.disk_error(error, part) from None
    raise WrongFileError(
        f"{hub.repository}: {file.name} came damaged {TIMES} times; try again later, or another HF_ENDPOINT"
    )


def _complete(hub: Hub, file: RemoteFile, part: Path, advance: Advance) -> str:
    """Append to `part` what it lacks of `file`; gives the sha256 of all of it.

    Raises: DownloadError, OSError.
    """
    with FileIO(part, "a+") as out:
        if out.seek(0, 2) > file.size:  # of another file of that name
            out.truncate(0)
        out.seek(0)
        sha256 = hashlib.sha256()
        done = 0
        while chunk := out.read(HASH_BYTES):
            sha256.update(chunk)
            done += len(chunk)
            advance(done)
        _append(hub, file, out, sha256, done, advance)
        disk.sync(out)
    return sha256.hexdigest()


def _append(hub: Hub, file: RemoteFile, out: FileIO, sha256: Any, done: int, advance: Advance) -> None:
    """Write bytes `done` to the end of `file`, in order, as they come on several connections."""
    readings: deque[_Reading] = deque()
    start = done
    try:
        while done < file.size:
            while start < file.size and len(readings) < IN_FLIGHT:
                readings.append(_Reading(hub, file.name, start, min(start + PIECE_BYTES, file.size)))
                start = readings[-1].piece.stop
            is_whole = readings[0].is_over()
            advance(done + sum(len(reading.piece.data) for reading in readings))
            if is_whole:
                data = readings.popleft().piece.data
                disk.write(out, data)
                sha256.update(data)
                done += len(data)
    except BaseException:
        hub.cancelled.set()
        raise


def is_whole(path: Path, file: RemoteFile, advance: Advance) -> bool:
    """Whether `path` holds just what the hub lists; reads all of it. False too if it cannot be read."""
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        advance(done)

    try:
        if path.stat().st_size != file.size:
            return False
        with open(path, "rb") as opened:
            return sha256_of(opened, count) == file.sha256
    except OSError:
        return False
