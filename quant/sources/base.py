"""What the converter asks of a checkpoint, in whatever layout it was published."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from quant.format import disk
from quant.format.config import ModelConfig
from quant.format.hf_names import Shape, experts_prefix, float_shapes
from quant.format.numbers import F32, U8, Weights, bf16_to_f32
from quant.format.safetensors import TensorFiles

FLOATS = ("BF16", "F16", "F32", "F64")
SAMPLE_BYTES = 4096  # of each tensor's start, for the fingerprint


@dataclass(frozen=True)
class Blocks:
    """A matrix in MXFP4 as published: blocks (R, C/32, 16) u8, scales (R, C/32) u8."""

    blocks: U8
    scales: U8


class Source(ABC):
    """A checkpoint of gpt-oss, its tensors under Hugging Face's names (quant/format/hf_names.py).

    `small_files` are the configuration's files by name, as published or made: config.json at least.
    `revision` is the hub's commit, for what was pulled from there.
    """

    revision: str | None = None

    def __init__(self, files: TensorFiles, name: str, config: ModelConfig, small_files: dict[str, bytes]):
        self.files = files
        self.name = name
        self.config = config
        self.small_files = small_files
        self._shapes = float_shapes(config)

    @property
    @abstractmethod
    def has_mxfp4_experts(self) -> bool:
        """Whether the experts are MXFP4 already."""

    @abstractmethod
    def require_tensors(self) -> None:
        """Raises: QuantError for a tensor that is missing or not of the configuration's shape."""

    @abstractmethod
    def locate(self, name: str) -> tuple[str, int]:
        """The stored tensor that holds tensor `name`, and the row at which it starts there."""

    @abstractmethod
    def expert(self, layer: int, name: str, expert: int) -> Blocks | Weights:
        """Matrix `name` (gate_up_proj or down_proj) of an expert, (R, C). Raises: QuantError."""

    @property
    def paths(self) -> list[Path]:
        """Every file that is read: a change in one of them is a change of the checkpoint."""
        return sorted({path for path, _ in self.files.tensors.values()})

    def stamps(self) -> dict[str, list[int]]:
        """What tells whether a file of the checkpoint changed, by its name. Raises: QuantError."""
        return disk.stamps_of(self.paths)

    def fingerprint(self) -> str:
        """A sha256 that tells two checkpoints apart without reading all of them. Raises: QuantError."""
        fingerprint = hashlib.sha256(self.config_sha256.encode())
        for name, (_, info) in sorted(self.files.tensors.items()):
            fingerprint.update(f"{name} {info.dtype} {info.shape}\n".encode())
            fingerprint.update(self.files.read_start(name, SAMPLE_BYTES))
        return fingerprint.hexdigest()

    @property
    def config_sha256(self) -> str:
        return hashlib.sha256(self.small_files["config.json"]).hexdigest()

    def arrange(self, outputs: list[str], flush: Callable[[], None]) -> Iterator[str]:
        """The files `outputs` of the model directory, each when its tensors can be read.

        The caller has read a file's tensors when it asks for the next, and has written all of them for good
        after `flush()`: a source whose files come one by one then lets go of what no file needs any more.
        """
        yield from outputs

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> Weights:
        """Rows start:stop of tensor `name`. Raises: QuantError if the file cannot be read."""
        stored, first = self.locate(name)
        return self.read(stored, first + start, first + stop)

    def vector(self, name: str) -> F32:
        """All of tensor `name`, which has one axis."""
        return as_f32(self.rows(name, 0, self.shape(name)[0]))

    def expert_bias(self, layer: int, name: str, expert: int) -> F32:
        """The bias (R,) of an expert's matrix `name`."""
        return as_f32(self.rows(f"{experts_prefix(layer)}{name}_bias", expert, expert + 1)[0])

    def read(self, stored: str, start: int, stop: int) -> Weights:
        """Entries start:stop of a stored tensor of floats."""
        rows = self.files.read_rows(stored, start, stop)
        return rows if rows.dtype == np.uint16 else rows.astype(np.float32, copy=False)

    def close(self) -> None:
        self.files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def as_f32(weights: Weights) -> F32:
    """`weights`, of any shape, as float32: exact."""
    return bf16_to_f32(weights) if weights.dtype == np.uint16 else weights
