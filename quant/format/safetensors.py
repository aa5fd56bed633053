"""Reads safetensors files: a header parser that trusts nothing, and the tensors of a checkpoint.

Tensors are read in slices, never mapped: mapped pages would count as resident memory.
"""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import QuantError
from quant.format.json_file import MOST_BYTES, parse_json, read_json

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ADAPTER = "adapter_"  # begins the names of what PEFT saves
LFS_POINTER = b"version https://git-lfs"
MOST_AXES = 8
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
NUMPY_DTYPES = {
    **{"U8": np.uint8, "I8": np.int8, "U32": np.uint32, "F8_E8M0": np.uint8},
    **{"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64},
}
WANTED = "give a gpt-oss checkpoint: a folder with its safetensors files, or a .gguf file"
DAMAGED = "the file is damaged; download it again"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in its file: safetensors dtype name, shape, offset from the file's start and size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(path: Path) -> tuple[dict[str, TensorInfo], int]:
    """The tensors of a safetensors file by name, and the offset at which its data starts.

    Everything is checked against the file's size before it is believed. Raises: QuantError for a missing,
    truncated or malformed file.
    """
    try:
        with open(path, "rb") as file:
            file_bytes = file.seek(0, 2)
            file.seek(0)
            start = file.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                raise QuantError(
                    f"{path}: Git LFS's pointer, not the weights; fetch them with `git lfs pull`"
                )
            header_bytes = int.from_bytes(start[:8], "little")
            file.seek(8)
            if file_bytes < 8 or header_bytes > min(MOST_BYTES, file_bytes - 8):
                raise QuantError(f"{path}: not safetensors, or cut off in its header; download it again")
            text = file.read(header_bytes)
    except FileNotFoundError:
        raise QuantError(f"{path}: missing; download it again") from None
    except OSError as error:
        raise QuantError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_header(path, text, file_bytes), 8 + header_bytes


def parse_header(path: Path, text: bytes, file_bytes: int) -> dict[str, TensorInfo]:
    """The tensors that `text` tells of, the header of a safetensors file `path` of `file_bytes` bytes.

    Raises: QuantError for a malformed header, or one that a file of this size cannot have.
    """
    try:
        header = parse_json(text)
    except ValueError as error:
        raise QuantError(f"{path}: its header is not JSON ({error}); {DAMAGED}") from None
    if not isinstance(header, dict):
        raise QuantError(f"{path}: its header is not a JSON object; {DAMAGED}")
    data_start = 8 + len(text)
    tensors = {
        name: _tensor_info(f"{path}: {name}", entry, data_start)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _check_extent(path, tensors, data_start, file_bytes)
    return tensors


def _tensor_info(where: str, entry: Any, data_start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            pass
        case _:
            raise QuantError(f"{where}: no dtype, shape and data_offsets; {DAMAGED}")
    if dtype not in DTYPE_BYTES:
        raise QuantError(f"{where}: dtype {dtype} is not known; expected one of {', '.join(DTYPE_BYTES)}")
    numbers = (*shape, begin, end)
    if len(shape) > MOST_AXES or any(type(value) is not int or not 0 <= value < 2**63 for value in numbers):
        raise QuantError(f"{where}: shape or data_offsets are not natural numbers below 2^63; {DAMAGED}")
    if end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise QuantError(f"{where}: {end - begin} bytes for {dtype} of shape {shape}; {DAMAGED}")
    return TensorInfo(dtype, tuple(shape), data_start + begin, end - begin)


def _check_extent(path: Path, tensors: dict[str, TensorInfo], data_start: int, file_bytes: int) -> None:
    """The tensors follow each other without overlap or gap, and end where the file does."""
    end = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if info.offset != end:
            raise QuantError(f"{path}: {name} overlaps another tensor or leaves a gap; {DAMAGED}")
        end = info.offset + info.size
    if end > file_bytes:
        raise QuantError(f"{path}: truncated, {file_bytes:,} of {end:,} bytes; download it again")
    if end < file_bytes:
        raise QuantError(f"{path}: {file_bytes - end:,} bytes more than its header tells; {DAMAGED}")


def parse_weight_map(where: Path, value: Any) -> dict[str, str]:
    """Tensor -> shard, of `value`, the JSON of the index in file `where`. No shard is anything like a path.

    Raises: QuantError.
    """
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise QuantError(f"{where}: no weight_map; {DAMAGED}")
    for shard in weight_map.values():
        if not _is_shard(shard):
            raise QuantError(f"{where}: {shard!r} does not name a file in the same folder; {DAMAGED}")
    return weight_map


def _is_shard(name: Any) -> bool:
    """Whether `name` is that of a safetensors file and nothing like a path."""
    if not isinstance(name, str) or not name.isprintable() or set(name) & set("/\\:"):
        return False
    return name.endswith(".safetensors")


class TensorFiles:
    """The tensors of one checkpoint: `tensors` is name -> (file, where in it).

    `once`: each tensor will be read once, so the system need not keep what was read in memory.
    """

    def __init__(self, folder: Path, once: bool = False):
        self.folder = folder
        self._once = once
        self._files: dict[Path, FileIO] = {}
        self.tensors: dict[str, tuple[Path, TensorInfo]] = {}
        self.notes: list[str] = []  # what a user should know of how the files were read

    def require(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        """Raises: QuantError if tensor `name` is missing, or not of `shape` and one of `dtypes`."""
        if name not in self.tensors:
            raise QuantError(
                f"{self.folder}: tensor {name} is missing; the checkpoint is incomplete, or in a layout that "
                "localoss does not know: get it as Hugging Face publishes it, or as GGUF"
            )
        path, info = self.tensors[name]
        if info.dtype not in dtypes and info.shape == shape:
            raise QuantError(
                f"{path}: {name} is stored as {info.dtype}, which localoss cannot read there; it takes "
                f"{', '.join(dtypes[:4])}: save the model in bfloat16, or get it as Hugging Face publishes it"
            )
        if info.dtype not in dtypes or info.shape != shape:
            raise QuantError(
                f"{path}: {name} is {info.dtype} {list(info.shape)} where the configuration makes it "
                f"{dtypes[0]} {list(shape)}; the two do not belong together"
            )

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Entries start:stop of tensor `name`'s first axis, as a new array.

        BF16 comes as its bits in uint16, F16 and F32 as such, everything else as bytes: U8 in its own
        shape, packed formats as (stop - start, bytes of one entry). Raises: QuantError if the file cannot
        be read.
        """
        path, info = self.tensors[name]
        row_bytes = info.size // info.shape[0]
        shape = info.shape[1:] if info.dtype in NUMPY_DTYPES else (row_bytes,)
        rows = np.empty((stop - start, *shape), NUMPY_DTYPES.get(info.dtype, np.uint8))
        offset = info.offset + start * row_bytes
        self._read_into(path, offset, rows.reshape(-1).view(np.uint8).data)
        if sys.platform == "linux":
            file, size = self._open(path).fileno(), rows.nbytes
            # The next rows are likely next: let the disk bring them meanwhile.
            os.posix_fadvise(file, offset + size, size, os.POSIX_FADV_WILLNEED)
            if self._once:  # pages used again cost Linux a fraction of fresh ones
                os.posix_fadvise(file, offset, size, os.POSIX_FADV_DONTNEED)
        return rows

    def read_start(self, name: str, most_bytes: int) -> bytes:
        """The first `most_bytes` bytes of tensor `name`, or all of it. Raises: QuantError."""
        path, info = self.tensors[name]
        start = bytearray(min(most_bytes, info.size))
        self._read_into(path, info.offset, memoryview(start))
        return bytes(start)

    def _read_into(self, path: Path, offset: int, view: memoryview) -> None:
        try:
            file = self._open(path)
            file.seek(offset)
            while view:
                count = file.readinto(view)
                if not count:
                    raise QuantError(f"{path}: became shorter while it was read; {DAMAGED}")
                view = view[count:]
        except OSError as error:
            raise QuantError(f"{path}: cannot be read ({error.strerror})") from None

    def _open(self, path: Path) -> FileIO:
        if path not in self._files:
            self._files[path] = FileIO(path)
        return self._files[path]

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Checkpoint(TensorFiles):
    """The tensors of a folder: those that model.safetensors.index.json names, else those of its weight_files.

    Every header is read and checked at the start. Raises: QuantError, naming the file at fault.
    """

    def __init__(self, folder: Path):
        super().__init__(folder, once=True)
        index, single = folder / INDEX_FILE, folder / SINGLE_FILE
        if index.exists() and single.exists() and self._is_left_over(index):
            self.notes.append(f"none of the files that {INDEX_FILE} names is there: {SINGLE_FILE} was taken")
        elif index.exists():
            self._read_index(index)
            if _is_newer(single, index) and all(single != path for path, _ in self.tensors.values()):
                self.notes.append(
                    f"{SINGLE_FILE} is newer than {INDEX_FILE}: the files that the index names were taken; "
                    "move the index away to take the other"
                )
            return
        for path in weight_files(folder):
            for name, info in read_header(path)[0].items():
                if name in self.tensors:
                    both = f"{self.tensors[name][0].name} and in {path.name}"
                    raise QuantError(
                        f"{folder}: tensor {name} is in {both}, and no {INDEX_FILE} says which one is meant; "
                        "move away the file that is not"
                    )
                self.tensors[name] = (path, info)
        if not self.tensors:
            if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
                raise QuantError(
                    f"{folder}: weights in PyTorch's own files, which can run code when read; save the model "
                    "with save_pretrained(safe_serialization=True)"
                )
            raise QuantError(f"{folder}: no {INDEX_FILE} and no *.safetensors; {WANTED}")

    def _is_left_over(self, index: Path) -> bool:
        """Whether none of the files that the index names is there: shards that were merged to one file."""
        return not any((self.folder / shard).exists() for shard in self._weight_map(index).values())

    def _weight_map(self, index: Path) -> dict[str, str]:
        try:
            return parse_weight_map(index, read_json(index))
        except OSError as error:
            raise QuantError(f"{index}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise QuantError(f"{index}: not JSON ({error}); {DAMAGED}") from None

    def _read_index(self, index: Path) -> None:
        shards: dict[str, Mapping[str, TensorInfo]] = {}
        for name, shard in self._weight_map(index).items():
            path = self.folder / shard
            if shard not in shards:
                shards[shard] = read_header(path)[0]
            if name not in shards[shard]:
                raise QuantError(
                    f"{path}: {name} is not in it though {INDEX_FILE} says so; download both again, or save "
                    "the model again"
                )
            self.tensors[name] = (path, shards[shard][name])


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights where no index tells: model.safetensors, else all there are.

    Other programs leave more beside it: adapters, older saves, consolidated copies.
    """
    single = folder / SINGLE_FILE
    if single.exists():
        return [single]
    return [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith(ADAPTER)]


def _is_newer(path: Path, other: Path) -> bool:
    return path.exists() and path.stat().st_mtime_ns > other.stat().st_mtime_ns
