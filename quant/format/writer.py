"""Writes files of the model directory: under a temporary name, hashed on the way, synced, then renamed."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quant.format import disk
from quant.format.layout import FORMAT_VERSION, PAGE, TensorSpec, round_up
from quant.format.manifest import FileEntry
from quant.format.safetensors import DTYPE_BYTES

PART = ".part"
OURS = {"localoss_format": str(FORMAT_VERSION)}  # metadata of a model directory's files
PARTS_IN_FLIGHT = 4  # arrays that wait to be hashed and written; bounds memory
FILES_UNSYNCED = 2  # that are complete; what a kill can lose
Done = Callable[[FileEntry], None]


def _ignore(_: FileEntry) -> None:
    pass


def spec_bytes(spec: TensorSpec) -> int:
    return prod(spec.shape) * DTYPE_BYTES[spec.dtype]


def header_of(specs: dict[str, TensorSpec], metadata: dict[str, str] = OURS, alignment: int = PAGE) -> bytes:
    """The safetensors header of `specs` in order, padded with spaces so that data starts on `alignment`."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec_bytes(spec)
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(round_up(8 + len(text), alignment) - 8)
    return len(text).to_bytes(8, "little") + text


def file_bytes(specs: dict[str, TensorSpec]) -> int:
    return len(header_of(specs)) + sum(map(spec_bytes, specs.values()))


class Writer:
    """Writes whole files, one after the other; threads of its own hash, write and sync them meanwhile.

    A file is synced and renamed while the next one is made; `flush` and the end of the `with` wait for it.
    Files get their names in the order in which they were given. When an exception leaves it, the unfinished
    file is removed, and those that were complete get their names first.
    """

    def __init__(self, advance: Callable[[int], None]):
        self._advance = advance  # called in the caller's thread with the bytes just written
        self._hasher = ThreadPoolExecutor(1, "hash")
        self._disk = ThreadPoolExecutor(1, "write")
        self._syncer = ThreadPoolExecutor(1, "sync")
        self._pending: deque[tuple[int, Future[Any], Future[Any]]] = deque()
        self._finishing: deque[Future[None]] = deque()
        self._failed = False  # then no later file gets its name

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            for executor in (self._hasher, self._disk, self._syncer):
                executor.shutdown()

    def write_tensors(
        self,
        path: Path,
        specs: dict[str, TensorSpec],
        parts: Iterable[tuple[str, NDArray[Any]]],
        done: Done = _ignore,
        header: bytes | None = None,
    ) -> None:
        """Write safetensors file `path` from `parts`: tensors in the order of `specs`, each in any slices.

        `header`: another than header_of(specs). Otherwise as `write`.
        """

        def chunks() -> Iterable[Any]:
            yield header or header_of(specs)
            left = {name: spec_bytes(spec) for name, spec in specs.items()}
            for name, part in parts:
                if name != next(key for key, size in left.items() if size) or part.nbytes > left[name]:
                    raise ValueError(f"{path.name}: {name} does not come next, or is too long")
                left[name] -= part.nbytes
                yield part.reshape(-1).view("u1").data
            if any(left.values()):
                raise ValueError(f"{path.name}: tensors are incomplete")

        try:
            self.write(path, chunks(), done)
        finally:
            # Ended here, with its threads. Left to the garbage collector after an error, it may be ended
            # while another thread starts, and then waits for ever: seen once, Python 3.11.
            if isinstance(parts, Generator):
                parts.close()

    def write(self, path: Path, chunks: Iterable[Any], done: Done = _ignore) -> None:
        """Write `path` from `chunks` of bytes, which must not change afterwards.

        `done` is called in another thread once the file is on the disk under its name. Raises: QuantError if
        the disk is full or refuses, for this file or one before it.
        """
        part = _Part(path)
        try:
            for chunk in chunks:
                self._submit(part, chunk)
            self._wait_for_names(FILES_UNSYNCED - 1)
        except BaseException:
            self._pending.clear()
            part.cancel()
            part.remove()
            raise
        self._finishing.append(self._syncer.submit(self._finish, part, done))

    def flush(self) -> None:
        """Wait until every file that was given is on the disk. Raises: QuantError as `write`."""
        self._wait_for_parts(0)
        self._wait_for_names(0)

    def _submit(self, part: "_Part", chunk: Any) -> None:
        hashed = self._hasher.submit(part.sha256.update, chunk)
        written = self._disk.submit(part.write, chunk)
        part.work += [hashed, written]
        self._pending.append((len(chunk), hashed, written))
        self._wait_for_parts(PARTS_IN_FLIGHT)
        while self._finishing and self._finishing[0].done():
            self._wait_for_names(len(self._finishing) - 1)

    def _wait_for_parts(self, most: int) -> None:
        while len(self._pending) > most:
            size, hashed, written = self._pending.popleft()
            hashed.result()
            written.result()
            self._advance(size)

    def _wait_for_names(self, most: int) -> None:
        while len(self._finishing) > most:
            self._finishing.popleft().result()

    def _finish(self, part: "_Part", done: Done) -> None:
        try:
            if not self._failed:
                done(part.finish())
        except BaseException:
            self._failed = True
            raise
        finally:
            part.remove()


class _Part:
    """A file on its way to the disk, under its temporary name. Raises: QuantError if the disk refuses."""

    def __init__(self, path: Path):
        self._path = path
        self._part_path = path.with_name(path.name + PART)
        self.sha256 = hashlib.sha256()
        self.work: list[Future[Any]] = []  # hashing and writing of its chunks
        self._size = 0
        self._named = False
        with disk.errors_told(path):
            self._file = FileIO(self._part_path, "w")

    def write(self, chunk: Any) -> None:
        self._size += len(chunk)
        with disk.errors_told(self._path):
            disk.write(self._file, chunk)

    def finish(self) -> FileEntry:
        """Give the file its name, once all of it is on the disk."""
        for future in self.work:
            future.result()
        with disk.errors_told(self._path):
            with self._file:
                disk.sync(self._file)
            disk.replace(self._part_path, self._path)
            self._named = True
            disk.sync_folder(self._path.parent)
        return FileEntry(self._size, self.sha256.hexdigest())

    def cancel(self) -> None:
        """Don't begin to hash and write what has not begun."""
        for future in self.work:
            future.cancel()

    def remove(self) -> None:
        """Remove it, unless it has its name; no thread writes to it afterwards."""
        wait(self.work)
        self._file.close()
        if not self._named:
            disk.try_to_remove(self._part_path)
