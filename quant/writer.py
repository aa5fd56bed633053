"""Writes files of the model directory: under a temporary name, hashed on the way, synced, then renamed."""

import errno
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quant.checkpoint import DTYPE_BYTES
from quant.errors import QuantError
from quant.layout import FORMAT_VERSION, PAGE, TensorSpec, round_up
from quant.manifest import FileEntry

PART = ".part"
PARTS_IN_FLIGHT = 4  # arrays that wait to be hashed and written; bounds memory


def spec_bytes(spec: TensorSpec) -> int:
    return prod(spec.shape) * DTYPE_BYTES[spec.dtype]


def header_of(specs: dict[str, TensorSpec]) -> bytes:
    """The safetensors header of `specs` in order, padded with spaces so that data starts on a page."""
    header: dict[str, Any] = {"__metadata__": {"localoss_format": str(FORMAT_VERSION)}}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec_bytes(spec)
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(round_up(8 + len(text), PAGE) - 8)
    return len(text).to_bytes(8, "little") + text


def file_bytes(specs: dict[str, TensorSpec]) -> int:
    return len(header_of(specs)) + sum(map(spec_bytes, specs.values()))


class Writer:
    """Writes whole files; two threads of its own hash and write while the caller makes the next array.

    Use as a context manager. When an exception leaves it, the unfinished file is removed.
    """

    def __init__(self, advance: Callable[[int], None]):
        self._advance = advance  # called in the caller's thread with the bytes just written
        self._hasher = ThreadPoolExecutor(1, "hash")
        self._disk = ThreadPoolExecutor(1, "write")
        self._pending: deque[tuple[int, Future[Any], Future[Any]]] = deque()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._hasher.shutdown(cancel_futures=True)
        self._disk.shutdown(cancel_futures=True)

    def write_tensors(
        self, path: Path, specs: dict[str, TensorSpec], parts: Iterable[tuple[str, NDArray[Any]]]
    ) -> FileEntry:
        """Write safetensors file `path` from `parts`: tensors in the order of `specs`, each in any slices.

        Raises: QuantError if the disk is full or refuses.
        """

        def chunks() -> Iterable[Any]:
            yield header_of(specs)
            left = {name: spec_bytes(spec) for name, spec in specs.items()}
            for name, part in parts:
                if name != next(key for key, size in left.items() if size) or part.nbytes > left[name]:
                    raise ValueError(f"{path.name}: {name} does not come next, or is too long")
                left[name] -= part.nbytes
                yield part.reshape(-1).view("u1").data
            if any(left.values()):
                raise ValueError(f"{path.name}: tensors are incomplete")

        return self.write(path, chunks())

    def write(self, path: Path, chunks: Iterable[Any]) -> FileEntry:
        """Write `path` from `chunks` of bytes. Raises: QuantError if the disk is full or refuses."""
        part_path = path.with_name(path.name + PART)
        sha256 = hashlib.sha256()
        total_bytes = 0
        try:
            with FileIO(part_path, "w") as file:
                for chunk in chunks:
                    total_bytes += len(chunk)
                    self._submit(file, sha256, chunk)
                self._wait(0)
                os.fsync(file.fileno())
            os.replace(part_path, path)
            sync_folder(path.parent)
        except OSError as error:
            part_path.unlink(missing_ok=True)
            raise disk_error(error, path) from None
        except BaseException:
            part_path.unlink(missing_ok=True)
            raise
        return FileEntry(total_bytes, sha256.hexdigest())

    def _submit(self, file: FileIO, sha256: Any, chunk: Any) -> None:
        hashed = self._hasher.submit(sha256.update, chunk)
        written = self._disk.submit(_write_all, file, chunk)
        self._pending.append((len(chunk), hashed, written))
        self._wait(PARTS_IN_FLIGHT)

    def _wait(self, most_pending: int) -> None:
        while len(self._pending) > most_pending:
            size, hashed, written = self._pending.popleft()
            hashed.result()
            written.result()
            self._advance(size)


def _write_all(file: FileIO, chunk: Any) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]
    if hasattr(os, "posix_fadvise"):
        # Linux starts to write these pages out now, without a wait; else the disk idles until the fsync.
        start = file.tell() - len(chunk)
        os.posix_fadvise(file.fileno(), start, len(chunk), os.POSIX_FADV_DONTNEED)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last through a power cut, where the system lets folders be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def disk_error(error: OSError, path: Path) -> QuantError:
    """What the user can do about an `error` while `path` was written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return QuantError(
            f"{path}: the disk is full; free some space and run the same command again to go on"
        )
    return QuantError(f"{path}: cannot be written ({error.strerror})")
