"""Conversations set aside on disk: what had to make room in memory comes back without being read again."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from localoss import settings
from localoss.engine.saved_cache import SavedCache, UnusableCacheError
from localoss.engine.sequence import Sequence, common_prefix
from localoss.errors import LocalossError
from quant.errors import BusyError
from quant.format import disk

LEAST_TOKENS = 1024  # of a conversation: fewer are read in some seconds
LEAST_GAIN = 256  # tokens more than are in memory: fewer are read as fast as they are loaded
_SAME_SHARE = 0.8  # of a conversation's tokens, which a later state of it begins with
_FREE_SHARE = 0.1  # of the disk's free bytes
_BUSY = "another server keeps conversations there"


@dataclass
class Parked:
    """One conversation: its tokens, whose it is, and how many bytes its files have."""

    saved: SavedCache
    tokens: list[int]
    whose: tuple[str, str | None]
    nbytes: int


class ParkedCaches:
    """The KV caches of up to `most_bytes` in files below `folder`, least recently used first.

    They are this process's own: gone when it closes, and those of one that was killed are removed by the
    next. Nothing raises: a disk that is full or fails costs time alone. Used on the engine's thread.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._root, self._most_bytes = folder, most_bytes
        self._folder: Path | None = None
        self._parked: list[Parked] = []
        self._lock = ExitStack()

    @staticmethod
    def of_server() -> "ParkedCaches":
        """In the store, with as much of the disk as sessions may have."""
        return ParkedCaches(settings.home() / "parked", settings.session_disk())

    def park(self, sequence: Sequence, whose: tuple[str, str | None]) -> None:
        """Keep what `sequence` holds, if it is worth that and there is room."""
        tokens = list(sequence.tokens)
        if len(tokens) < LEAST_TOKENS:
            return
        earlier = next((one for one in self._parked if one.whose == whose and _goes_on(tokens, one)), None)
        if earlier and earlier.tokens == tokens:
            self._touch(earlier)
            return
        parked = earlier
        try:
            needed = _needed_bytes(sequence)
            if not self._make_room(needed, earlier):
                return
            if parked is None:
                folder = self._own_folder() / secrets.token_hex(8)
                parked = Parked(SavedCache(folder, {}), [], whose, 0)
            self._parked = [one for one in self._parked if one is not parked] + [parked]
            parked.saved.save(sequence, len(tokens))
            parked.tokens, parked.nbytes = tokens, _bytes_of(parked.saved.folder)
        except (OSError, BusyError, LocalossError):
            if parked:  # half written; the others are as they were
                self._drop(parked)

    def shared(self, tokens: Seq[int], whose: tuple[str, str | None]) -> tuple[int, Parked | None]:
        """The most of `tokens` that one of `whose` begins with, and which that is."""
        mine = [(common_prefix(one.tokens, tokens), one) for one in self._parked if one.whose == whose]
        return max(mine, key=lambda found: found[0], default=(0, None))

    def load(self, parked: Parked, sequence: Sequence, room: int) -> bool:
        """Fill `sequence` with it; whether that worked. What doesn't load is dropped."""
        sequence.restore([], [])
        try:
            parked.saved.load(sequence, room)
        except (UnusableCacheError, LocalossError, OSError):
            sequence.restore([], [])
            self._drop(parked)
            return False
        self._touch(parked)
        return True

    def close(self) -> None:
        """Remove the files."""
        self._parked = []
        self._lock.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _own_folder(self) -> Path:
        """This process's, made when it is wanted first; those of dead ones go. Raises: OSError."""
        if self._folder is None:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for other in self._root.iterdir():
                with contextlib.suppress(BusyError, OSError), disk.locked(other, _BUSY):
                    shutil.rmtree(other, ignore_errors=True)
            folder = self._root / f"{os.getpid()}-{secrets.token_hex(4)}"
            folder.mkdir(mode=0o700)
            self._lock.enter_context(disk.locked(folder, _BUSY))
            self._folder = folder
        return self._folder

    def _make_room(self, needed: int, kept: Parked | None) -> bool:
        """Drop those used longest ago until `needed` bytes fit. Raises: OSError."""
        free = disk.free_bytes(disk.existing_folder(self._root))
        taken = sum(one.nbytes for one in self._parked)
        most = min(self._most_bytes, int(_FREE_SHARE * (free + taken)))
        if needed > most:
            return False
        for one in list(self._parked):
            if sum(other.nbytes for other in self._parked if other is not kept) + needed <= most:
                break
            if one is not kept:
                self._drop(one)
        return True

    def _touch(self, parked: Parked) -> None:
        self._parked = [one for one in self._parked if one is not parked] + [parked]

    def _drop(self, parked: Parked) -> None:
        self._parked = [one for one in self._parked if one is not parked]
        shutil.rmtree(parked.saved.folder, ignore_errors=True)


def _needed_bytes(sequence: Sequence) -> int:
    """What the files will take: the positions, and the windows of all snapshots and one more."""
    cache = sequence.cache
    positions = sum(layer.nbytes * len(sequence.tokens) // layer.slots for layer in cache.full)
    return positions + sum(ring.nbytes for ring in cache.rings) * (len(sequence.snapshots) + 1)


def _goes_on(tokens: list[int], parked: Parked) -> bool:
    """Whether `tokens` are most likely a later state of the same conversation: its files are gone on with.

    An answer's thoughts are not in the next prompt, so that the end of what was parked isn't in it, either.
    """
    return common_prefix(tokens, parked.tokens) >= _SAME_SHARE * max(len(parked.tokens), 1)


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
