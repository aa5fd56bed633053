"""A conversation's KV cache on disk: what a restart need not prefill again.

A folder with three kinds of files. `positions`: a record for each token, what every full layer keeps of it;
it only grows, or is cut. `window-N`: what the rings keep of the window before position N. `index.json`: whose
cache it is, the tokens, and checksums; replaced as a whole, and always true of the other files, so that the
process may die at any moment. After a power cut the checksums may not fit: then it counts as damaged.
"""

import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from localoss.engine.sequence import Sequence, Snapshot, common_prefix
from localoss.model.kv_cache import KVCache
from localoss.model.stack import Array, LayerCaching
from quant.format.config import ModelConfig

_FORMAT = 1
_LAYOUTS = {"int8": 2}  # kinds of cache whose numbers came to mean something else, so that old ones don't fit
_BLOCK = 256  # positions that share a checksum, and are in memory twice while they are saved or loaded
_NEAR = 16  # tokens: one snapshot serves for positions that lie as close
_INDEX, _POSITIONS, _WINDOW = "index.json", "positions", "window-"
_PRIVATE = 0o600


class UnusableCacheError(Exception):
    """The files are damaged, or belong to another model or kind of cache; the message says which."""


def identity(
    model_sha256: str, config: ModelConfig, kv_dtype: str, adapter_sha256: str | None = None
) -> dict[str, Any]:
    """What a saved cache is tied to: the model's bytes, its adapters', and how its cache is laid out."""
    return {
        "model_sha256": model_sha256,
        **({"adapter_sha256": adapter_sha256} if adapter_sha256 else {}),
        "kv_dtype": kv_dtype,
        **({"kv_layout": _LAYOUTS[kv_dtype]} if kv_dtype in _LAYOUTS else {}),
        "is_sliding": list(config.is_sliding),
        "sliding_window": config.sliding_window,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
    }


@dataclass
class _Index:
    """tokens: those of the saved positions. blocks: a crc32 for each _BLOCK of records. windows: for each."""

    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    windows: dict[int, int] = field(default_factory=dict)


class SavedCache:
    """The files in `folder` that follow one sequence, whose `identity` is given."""

    def __init__(self, folder: Path, whose: dict[str, Any]) -> None:
        self.folder, self._whose = folder, whose
        self._index = _Index()

    def shared(self, tokens: Seq[int]) -> int:
        """How many of `tokens` the saved ones begin with: what `load` would save. Raises: as load."""
        if not (self.folder / _INDEX).exists():
            return 0
        self._index = self._read_index()
        return common_prefix(self._index.tokens, tokens)

    def load(self, sequence: Sequence, room: int) -> int:
        """Fill an empty `sequence`, which has room for `room` tokens; gives how many it holds then.

        Raises: UnusableCacheError, OSError; the sequence is as good as empty then.
        """
        if not (self.folder / _INDEX).exists():
            return 0
        index = self._read_index()
        layers, count = sequence.cache.full, min(len(index.tokens), room)
        with open(self.folder / _POSITIONS, "rb") as file:
            for number, first in enumerate(range(0, len(index.tokens), _BLOCK)):
                size = min(_BLOCK, len(index.tokens) - first)
                data = file.read(size * _record_bytes(layers))
                if zlib.crc32(data) != index.blocks[number]:
                    raise UnusableCacheError("it is damaged")
                if first < count:
                    _unpack(layers, first, data[: (min(first + size, count) - first) * _record_bytes(layers)])
        snapshots = [self._load_window(sequence.cache, index, n) for n in sorted(index.windows) if n <= count]
        sequence.restore(index.tokens[:count], snapshots)
        self._index = index
        return count

    def save(self, sequence: Sequence, count: int) -> None:
        """Bring the files to the first `count` tokens of `sequence`; only what is new is written.

        Raises: OSError.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any(count - _NEAR < snapshot.position <= count for snapshot in sequence.snapshots):
            sequence.checkpoint(count)
        common = common_prefix(self._index.tokens, sequence.tokens[:count])
        if common < len(self._index.tokens) or not (self.folder / _INDEX).exists():
            self._cut(common, _record_bytes(sequence.cache.full))
        self._append(sequence, count)
        for snapshot in sequence.snapshots:
            if snapshot.position <= count and snapshot.position not in self._index.windows:
                data = b"".join(array.tobytes() for ring in snapshot.window for array in ring)
                with _open(self.folder / f"{_WINDOW}{snapshot.position}", "wb") as file:
                    file.write(data)
                self._index.windows[snapshot.position] = zlib.crc32(data)
        kept = {snapshot.position for snapshot in sequence.snapshots}
        self._index.windows = {n: crc for n, crc in self._index.windows.items() if n in kept}
        self._write_index()
        self._remove_strays()

    def _append(self, sequence: Sequence, count: int) -> None:
        index, layers = self._index, sequence.cache.full
        with _open(self.folder / _POSITIONS, "r+b") as file:
            file.seek(len(index.tokens) * _record_bytes(layers))
            while (first := len(index.tokens)) < count:
                end = min(first - first % _BLOCK + _BLOCK, count)
                data = _pack(layers, first, end)
                file.write(data)
                if first % _BLOCK:
                    index.blocks[-1] = zlib.crc32(data, index.blocks[-1])
                else:
                    index.blocks.append(zlib.crc32(data))
                index.tokens += sequence.tokens[first:end]

    def _cut(self, count: int, record_bytes: int) -> None:
        """Make the index one of the first `count` tokens, before anything after them is overwritten."""
        index, whole = self._index, count - count % _BLOCK
        blocks = index.blocks[: whole // _BLOCK]
        if count > whole:
            with open(self.folder / _POSITIONS, "rb") as file:
                file.seek(whole * record_bytes)
                blocks.append(zlib.crc32(file.read((count - whole) * record_bytes)))
        windows = {n: crc for n, crc in index.windows.items() if n <= count}
        self._index = _Index(index.tokens[:count], blocks, windows)
        self._write_index()

    def _load_window(self, cache: KVCache, index: _Index, position: int) -> Snapshot:
        data = (self.folder / f"{_WINDOW}{position}").read_bytes()
        if zlib.crc32(data) != index.windows[position]:
            raise UnusableCacheError("it is damaged")
        window, start = [], 0
        for ring in cache.rings:
            arrays = []
            for array in ring.read(max(position - cache.window, 0), position):
                part = np.frombuffer(data, array.dtype, array.size, start)
                arrays.append(part.reshape(array.shape))
                start += array.nbytes
            window.append(arrays)
        return Snapshot(position, window)

    def _read_index(self) -> _Index:
        try:
            document = json.loads((self.folder / _INDEX).read_bytes())
            if document["format"] != _FORMAT:
                raise UnusableCacheError("another version of localoss wrote it")
            if document["whose"] != self._whose:
                raise UnusableCacheError("it belongs to another model or kind of cache")
            tokens, blocks = [int(t) for t in document["tokens"]], [int(c) for c in document["blocks"]]
            windows = {int(n): int(crc) for n, crc in document["windows"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UnusableCacheError("it is damaged") from None
        if len(blocks) != math.ceil(len(tokens) / _BLOCK) or not all(0 < n <= len(tokens) for n in windows):
            raise UnusableCacheError("it is damaged")
        return _Index(tokens, blocks, windows)

    def _write_index(self) -> None:
        document = {
            "format": _FORMAT,
            "whose": self._whose,
            "tokens": self._index.tokens,
            "blocks": self._index.blocks,
            "windows": self._index.windows,
        }
        new = self.folder / f"{_INDEX}.new"
        with _open(new, "wb") as file:
            file.write(json.dumps(document).encode())
        os.replace(new, self.folder / _INDEX)

    def _remove_strays(self) -> None:
        known = {f"{_WINDOW}{position}" for position in self._index.windows}
        for path in self.folder.iterdir():
            if path.name.startswith(_WINDOW) and path.name not in known:
                path.unlink(missing_ok=True)


def _record_bytes(layers: Seq[LayerCaching]) -> int:
    return sum(array.nbytes for layer in layers for array in layer.read(0, 1))


def _pack(layers: Seq[LayerCaching], first: int, end: int) -> bytes:
    """Records of positions first to end - 1: for each layer keys, values and, for int8, their scales."""
    return np.concatenate([_bytes(array) for array in _arrays(layers, first, end)], axis=1).tobytes()


def _unpack(layers: Seq[LayerCaching], first: int, data: bytes) -> None:
    count = len(data) // _record_bytes(layers)
    records = np.frombuffer(data, np.uint8).reshape(count, -1)
    start = 0
    for layer in layers:
        arrays = []
        for like in layer.read(0, 1):
            if like.size:
                part = records[:, start : start + like.nbytes].copy()
                arrays.append(part.view(like.dtype).reshape(count, *like.shape[1:]))
            else:
                arrays.append(like)
            start += like.nbytes
        layer.write(first, arrays)


def _arrays(layers: Seq[LayerCaching], first: int, end: int) -> Iterator[Array]:
    for layer in layers:
        yield from (array for array in layer.read(first, end) if array.size)


def _bytes(array: Array) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)


@contextlib.contextmanager
def _open(path: Path, mode: str) -> Iterator[BinaryIO]:
    """A file that its owner alone can read, made if it isn't there; "wb" empties it."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | (os.O_TRUNC if mode == "wb" else 0)
    with os.fdopen(os.open(path, flags, _PRIVATE), mode) as file:
        yield file  # type: ignore[misc]
