"""Reads GGUF files: a header parser that trusts nothing, and unpacking of their number formats.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is read in slices, never mapped:
mapped pages would count as resident memory.
"""

import re
import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import QuantError
from quant.format import jit_loops as fast
from quant.format.layout import round_up
from quant.format.numbers import F32, U8, decode_mxfp4, unpack_blocks
from quant.format.safetensors import DAMAGED, TensorFiles, TensorInfo
from quant.format.weight_formats import TILE_COLUMNS

# gpt-oss-120b has 13 MB, nearly all of it vocabulary, 700 tensors and 50 pairs.
MOST_HEADER_BYTES = 40 << 20
MOST_TEXT_BYTES = 1 << 20
MOST_TENSORS, MOST_PAIRS = 16_384, 4_096
MOST_SPLITS = 1_000
MOST_NUMBERS = 4_096  # in an array that is kept: one per layer
MAGIC = b"GGUF"
MXFP4_BYTES = 17  # a scale, then 16 bytes of codes
FORMATS = {  # ggml's number: (name, weights a block, bytes a block)
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    4: ("MXFP4_PUBLISHED", 32, 17),  # Ollama's first: codes in the order that OpenAI published
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}
MXFP4_FORMATS = ("MXFP4", "MXFP4_PUBLISHED")
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9


def has_magic(path: Path) -> bool:
    """Whether file `path` begins as a GGUF file does, whatever its name; False too if it can't be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def open_gguf(path: Path) -> "GgufFile":
    """GGUF file `path`, or all files of a model that llama.cpp split, of which `path` is any.

    They are called NAME-00001-of-00003.gguf and so on; the first one has the metadata. Raises: QuantError as
    GgufFile, and for a file that is missing or belongs to another model.
    """
    given = GgufFile(path)
    count = given.metadata.get("split.count", 1)
    if type(count) is not int or count > MOST_SPLITS:
        raise QuantError(f"{path}: split.count is {count!r}; {DAMAGED}")
    if count < 2:
        return given
    prefix = split_prefix(path)
    paths = [path.with_name(f"{prefix}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    if path not in paths:
        raise QuantError(
            f"{path}: one of {count} files of a model; give them their names back, "
            f"NAME-00001-of-{count:05d}.gguf and so on"
        )
    for missing in [part for part in paths if not part.exists()]:
        raise QuantError(f"{missing}: missing, one of {count} files of the model; download it too")
    first = GgufFile(paths[0])
    for number, part in enumerate([first, *map(GgufFile, paths[1:])]):
        if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (number, count):
            raise QuantError(f"{paths[number]}: not file {number + 1} of {count} of a model; {DAMAGED}")
        twice = first.tensors.keys() & part.tensors.keys() if number else ()
        if twice:
            raise QuantError(f"{paths[number]}: {min(twice)!r} is in another file too; {DAMAGED}")
        first.tensors |= part.tensors
    return first


def split_prefix(path: Path) -> str | None:
    """NAME of a file called NAME-00001-of-00003.gguf, else None."""
    match = re.fullmatch(r"(.+)-[0-9]{5}-of-[0-9]{5}\.gguf", path.name)
    return match[1] if match else None


class GgufFile(TensorFiles):
    """One GGUF file: its tensors, rows first as in NumPy, and its metadata but for texts in arrays.

    Raises: QuantError for a file that is missing, truncated, malformed, or in an unknown number format.
    """

    def __init__(self, path: Path):
        super().__init__(path, once=True)
        try:
            with open(path, "rb") as file:
                self._file_bytes = file.seek(0, 2)
                file.seek(0)
                header = _Cursor(file.read(min(MOST_HEADER_BYTES, self._file_bytes)))
        except OSError as error:
            raise QuantError(f"{path}: cannot be read ({error.strerror})") from None
        self.metadata: dict[str, Any] = {}
        try:
            self._parse(path, header)
        except (struct.error, UnicodeDecodeError):
            raise QuantError(f"{path}: its header is cut off or malformed; {DAMAGED}") from None

    def _parse(self, path: Path, header: "_Cursor") -> None:
        if header.take(len(MAGIC)) != MAGIC:
            raise QuantError(f"{path}: not a GGUF file; {DAMAGED}")
        version = header.scalar("<I")
        if version not in (2, 3):
            raise QuantError(f"{path}: GGUF version {version}; localoss reads versions 2 and 3")
        tensor_count, pair_count = header.scalar("<Q"), header.scalar("<Q")
        if tensor_count > MOST_TENSORS or pair_count > MOST_PAIRS:
            raise QuantError(f"{path}: {tensor_count:,} tensors and {pair_count:,} metadata pairs; {DAMAGED}")
        for _ in range(pair_count):
            key, kind = header.text().decode("utf-8"), header.scalar("<I")
            value = header.value(kind)
            if value is not None:
                self.metadata[key] = value
        entries = [_tensor_entry(path, header) for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in [1 << bits for bits in range(3, 17)]:
            raise QuantError(f"{path}: general.alignment is {alignment!r}, expected a power of 2; {DAMAGED}")
        data_start = round_up(header.position, alignment)
        end = data_start
        for name, info in sorted(entries, key=lambda entry: (entry[1].offset, entry[1].size)):
            placed = TensorInfo(info.dtype, info.shape, data_start + info.offset, info.size)
            if name in self.tensors or placed.offset < end or placed.offset % alignment:
                raise QuantError(f"{path}: {name!r} overlaps another tensor or lies askew; {DAMAGED}")
            end = placed.offset + placed.size
            self.tensors[name] = (path, placed)
        if end > self._file_bytes:
            raise QuantError(f"{path}: truncated, {self._file_bytes:,} of {end:,} bytes; download it again")


class _Cursor:
    """A position in a header; reading beyond its end, or larger things than there are, is a struct.error."""

    def __init__(self, data: bytes):
        self._data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        self._skip(size)
        return self._data[self.position - size : self.position]

    def _skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self._data):
            raise struct.error

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value

    def text(self) -> bytes:
        size = self.scalar("<Q")
        if size > MOST_TEXT_BYTES:
            raise struct.error
        return self.take(size)

    def value(self, kind: int) -> Any:
        """A metadata value of type `kind`; None for an array of texts or a long one, passed over."""
        if kind == _STRING:
            # Only keys and a few names are wanted: a damaged text elsewhere doesn't matter.
            return self.text().decode("utf-8", errors="replace")
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise struct.error
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if kind == _STRING:
            self._skip_texts(count)
        elif kind in _SCALARS and count <= MOST_NUMBERS:
            return [self.scalar(_SCALARS[kind]) for _ in range(count)]
        elif kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
        else:
            raise struct.error
        return None

    def _skip_texts(self, count: int) -> None:
        if count > len(self._data) // 8:
            raise struct.error
        position = fast.skip_texts(np.frombuffer(self._data, np.uint8), self.position, count)
        if position < 0:
            raise struct.error
        self.position = position


def _tensor_entry(path: Path, header: _Cursor) -> tuple[str, TensorInfo]:
    """Name and place of the next tensor, its offset counted from the start of the data."""
    name, axes = header.text().decode("utf-8"), header.scalar("<I")
    if not 0 < axes <= 4:
        raise QuantError(f"{path}: {name!r} has {axes} axes; {DAMAGED}")
    shape = tuple(header.scalar("<Q") for _ in range(axes))[::-1]
    number, offset = header.scalar("<I"), header.scalar("<Q")
    if number not in FORMATS:
        raise QuantError(
            f"{path}: {name!r} is in ggml's number format {number}, which localoss cannot read; "
            "get the model in another, such as MXFP4 with Q8_0"
        )
    dtype, weights, size = FORMATS[number]
    if shape[-1] % weights or not prod(shape):
        raise QuantError(f"{path}: {name!r} of shape {list(shape)} does not fill {dtype} blocks; {DAMAGED}")
    return name, TensorInfo(dtype, shape, offset, prod(shape) // weights * size)


def dequantize(packed: U8, dtype: str, columns: int) -> F32:
    """Weights (R, columns) f32 of `packed` bytes in `dtype`, any shape of R rows.

    Raises: QuantError if the gguf package, which unpacks all but MXFP4, Q8_0 and floats, is not installed.
    """
    if dtype == "Q8_0":
        return _dequantize_q8_0(packed, columns)
    if dtype in MXFP4_FORMATS:
        blocks, scales = published_mxfp4(packed, dtype, columns)
        return decode_mxfp4(unpack_blocks(blocks), scales)
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        raise QuantError(
            f"reading {dtype} needs the gguf package; install it: pip install 'localoss[gguf]'"
        ) from None
    _, weights, size = next(form for form in FORMATS.values() if form[0] == dtype)
    rows = packed.reshape(-1, columns // weights * size)
    try:
        return np.asarray(quants.dequantize(rows, GGMLQuantizationType[dtype]), np.float32)
    except (KeyError, NotImplementedError):
        raise QuantError(
            f"this gguf package does not read {dtype}; get a newer one: pip install -U gguf"
        ) from None


def _dequantize_q8_0(packed: U8, columns: int) -> F32:
    """Blocks of a float16 scale and 32 int8 codes. gguf's takes ten times as long."""
    blocks = packed.reshape(-1, columns // TILE_COLUMNS, 34)
    scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16).astype(np.float32)
    weights = blocks[:, :, 2:].view(np.int8).astype(np.float32)
    weights *= scales
    return weights.reshape(-1, columns)


def published_mxfp4(packed: U8, dtype: str, columns: int) -> tuple[U8, U8]:
    """Published blocks (R, columns/32, 16) and scales (R, columns/32) u8 of `packed`, a permutation.

    Ollama's first files have the codes in the published order, and only the scale before each block.
    """
    parts = packed.reshape(-1, columns // TILE_COLUMNS, MXFP4_BYTES)
    if dtype == "MXFP4":
        return fast.unpack_ggml_mxfp4(parts)
    return np.ascontiguousarray(parts[:, :, 1:]), np.ascontiguousarray(parts[:, :, 0])


def ggml_mxfp4(codes: U8, scales: U8) -> NDArray[np.uint8]:
    """ggml's MXFP4 rows (R, C/32 * 17) u8 of `codes` (R, C) u8 in 0..15 and `scales` (R, C/32) u8."""
    halves = codes.reshape(len(codes), -1, 2, 16)
    parts = np.concatenate([scales[:, :, None], halves[:, :, 0] | (halves[:, :, 1] << 4)], axis=2)
    return parts.astype(np.uint8).reshape(len(codes), -1)
