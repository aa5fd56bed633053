"""Hugging Face's layout: as published with MXFP4 experts, or fine-tuned with experts in floats."""

from pathlib import Path

import numpy as np

from quant.errors import QuantError
from quant.format.config import read_config
from quant.format.hf_names import Shape, block_shapes, dense_shapes, experts_prefix, float_shapes
from quant.format.json_file import MOST_BYTES
from quant.format.layout import CONFIG_FILES
from quant.format.numbers import Weights
from quant.format.safetensors import DAMAGED, Checkpoint
from quant.sources.base import FLOATS, Blocks, Source


class HuggingFaceSource(Source):
    def __init__(self, folder: Path):
        config = read_config(folder / "config.json")
        small_files = {name: _small(folder / name) for name in CONFIG_FILES if (folder / name).exists()}
        super().__init__(Checkpoint(folder), folder.resolve().name, config, small_files)

    @property
    def paths(self) -> list[Path]:
        return [self.files.folder / "config.json", *super().paths]

    @property
    def has_mxfp4_experts(self) -> bool:
        return experts_prefix(0) + "gate_up_proj" not in self.files.tensors

    def require_tensors(self) -> None:
        for name in float_shapes(self.config):
            self.files.require(name, FLOATS, self.stored_shape(name))
        for layer in range(self.config.layers):
            if self.has_mxfp4_experts:
                for name, shape in block_shapes(self.config, layer).items():
                    self.files.require(name, ("U8",), shape)
            else:
                for name, shape in dense_shapes(self.config, layer).items():
                    self.files.require(name, FLOATS, shape)

    def stored_shape(self, name: str) -> Shape:
        """The shape that tensor `name` has in its file."""
        return self.shape(name)

    def locate(self, name: str) -> tuple[str, int]:
        return name, 0

    def expert(self, layer: int, name: str, expert: int) -> Blocks | Weights:
        stored = experts_prefix(layer) + name
        if self.has_mxfp4_experts:
            blocks = self.files.read_rows(f"{stored}_blocks", expert, expert + 1)[0]
            return Blocks(blocks, self.files.read_rows(f"{stored}_scales", expert, expert + 1)[0])
        return np.ascontiguousarray(self.read(stored, expert, expert + 1)[0].T)


def _small(path: Path) -> bytes:
    """The content of a configuration's file. Raises: QuantError for one that is much too large to be one."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise QuantError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > MOST_BYTES:
        raise QuantError(f"{path}: longer than {MOST_BYTES:,} bytes; {DAMAGED}")
    return content
