"""Writes files of the model directory: under a temporary name, hashed on the way, synced, then renamed."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quant import disk
from quant.checkpoint import DTYPE_BYTES
from quant.layout import FORMAT_VERSION, PAGE, TensorSpec, round_up
from quant.manifest import FileEntry

PART = ".part"
OURS = {"localoss_format": str(FORMAT_VERSION)}  # metadata of a model directory's files
PARTS_IN_FLIGHT = 4  # arrays that wait to be hashed and written; bounds memory


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
        self,
        path: Path,
        specs: dict[str, TensorSpec],
        parts: Iterable[tuple[str, NDArray[Any]]],
        header: bytes | None = None,
    ) -> FileEntry:
        """Write safetensors file `path` from `parts`: tensors in the order of `specs`, each in any slices.

        `header`: another than header_of(specs). Raises: QuantError if the disk is full or refuses.
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

        return self.write(path, chunks())

    def write(self, path: Path, chunks: Iterable[Any]) -> FileEntry:
        """Write `path` from `chunks` of bytes. Raises: QuantError if the disk is full or refuses."""
        part_path = path.with_name(path.name + PART)
        sha256 = hashlib.sha256()
        total_bytes = 0
        try:
            with FileIO(part_path, "w") as file, self._nothing_pending():
                for chunk in chunks:
                    total_bytes += len(chunk)
                    self._submit(file, sha256, chunk)
                self._wait(0)
                disk.sync(file)
            disk.replace(part_path, path)
            disk.sync_folder(path.parent)
        except OSError as error:
            disk.try_to_remove(part_path)
            raise disk.disk_error(error, path) from None
        except BaseException:
            disk.try_to_remove(part_path)
            raise
        return FileEntry(total_bytes, sha256.hexdigest())

    @contextmanager
    def _nothing_pending(self) -> Iterator[None]:
        """However the file ends, no thread writes to it afterwards."""
        try:
            yield
        finally:
            for _, *futures in self._pending:
                for future in futures:
                    future.cancel()
            wait([future for _, *futures in self._pending for future in futures])
            self._pending.clear()

    def _submit(self, file: FileIO, sha256: Any, chunk: Any) -> None:
        hashed = self._hasher.submit(sha256.update, chunk)
        written = self._disk.submit(disk.write, file, chunk)
        self._pending.append((len(chunk), hashed, written))
        self._wait(PARTS_IN_FLIGHT)

    def _wait(self, most_pending: int) -> None:
        while len(self._pending) > most_pending:
            size, hashed, written = self._pending[0]  # stays there until both are over, or fail
            hashed.result()
            written.result()
            self._pending.popleft()
            self._advance(size)
