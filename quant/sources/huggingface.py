"""Hugging Face's layout: as published with MXFP4 experts, or fine-tuned with experts in floats."""

import re
from functools import cached_property
from pathlib import Path

import numpy as np

from quant.errors import QuantError
from quant.format.config import read_config
from quant.format.finite import require_finite_blocks
from quant.format.hf_names import EMBEDDING, UNEMBEDDING, Shape, float_shapes
from quant.format.json_file import MOST_BYTES, parse_json
from quant.format.layout import CONFIG_FILES
from quant.format.numbers import F32, Weights, decode_mxfp4, unpack_blocks
from quant.format.safetensors import DAMAGED, Checkpoint
from quant.sources.base import FLOATS, Blocks, Source
from quant.sources.hf_experts import HfExperts
from quant.sources.mlx import Packed, read_packed, require_packed
from quant.sources.names import with_hf_names

_ROWS_AT_ONCE = 4096
_BIAS = re.compile(r"model\.layers\.\d+\.self_attn\.[qkvo]_proj\.bias")


class HuggingFaceSource(Source):
    def __init__(self, folder: Path):
        if not (folder / "config.json").exists() and any(folder.glob("adapter_*")):
            raise QuantError(
                f"{folder}: a LoRA adapter, not a model; give its base model, and this with --adapter"
            )
        config = read_config(folder / "config.json")
        small_files = {name: _small(folder / name) for name in CONFIG_FILES if (folder / name).exists()}
        files = Checkpoint(folder)
        files.tensors = with_hf_names(files.tensors, folder)
        super().__init__(files, folder.resolve().name, config, small_files)

    @property
    def _experts(self) -> HfExperts:
        return HfExperts(self.files, self.config)

    @property
    def paths(self) -> list[Path]:
        return [self.files.folder / "config.json", *super().paths]

    @property
    def has_mxfp4_experts(self) -> bool:
        return self._experts.is_mxfp4()

    def require_tensors(self) -> None:
        for name in float_shapes(self.config):
            if ".experts." in name:
                continue
            stored, _ = self.locate(name)
            if self._lacks_bias and _BIAS.fullmatch(name):
                self._require_no_bias(name)
                continue
            if stored not in self.files.tensors and name == UNEMBEDDING:
                raise QuantError(
                    f"{self.files.folder}: {name} is missing, and config.json does not say "
                    '"tie_word_embeddings": true; add that if the model was trained so, else the save is '
                    "incomplete"
                )
            shape = self.stored_shape(name)
            if self._is_packed(stored):
                require_packed(self.files, _packed(stored, shape[-1]), shape)
            else:
                self.files.require(stored, FLOATS, shape)
        if self._is_tied and UNEMBEDDING in self.files.tensors:
            self._require_one_vocabulary()
        self._experts.require()

    def _require_one_vocabulary(self) -> None:
        """Raises: QuantError for an unembedding of its own where the configuration says there is none."""
        for start in range(0, self.config.vocab, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, self.config.vocab)
            if not np.array_equal(self.read(EMBEDDING, start, stop), self.read(UNEMBEDDING, start, stop)):
                raise QuantError(
                    f"{self.files.folder}: config.json says that embeddings are tied, and {UNEMBEDDING} is "
                    f'not {EMBEDDING}; set "tie_word_embeddings": false if the model was trained with both, '
                    f"else remove {UNEMBEDDING}"
                )

    def _require_no_bias(self, name: str) -> None:
        """Raises: QuantError for a bias that the configuration says isn't there: which of both is right?"""
        if name in self.files.tensors and np.any(super().read(name, 0, self.shape(name)[0])):
            raise QuantError(
                f"{self.files.folder}: config.json says that attention has no bias, and {name} is there; "
                'set "attention_bias": true there if the model was trained with it, else remove them'
            )

    def stored_shape(self, name: str) -> Shape:
        """The shape that tensor `name` has in its file."""
        return self.shape(name)

    def locate(self, name: str) -> tuple[str, int]:
        if name == UNEMBEDDING and name not in self.files.tensors and self._is_tied:
            return EMBEDDING, 0
        return name, 0

    def read(self, stored: str, start: int, stop: int) -> Weights:
        if self._lacks_bias and _BIAS.fullmatch(stored):
            return np.zeros(stop - start, np.float32)
        if not self._is_packed(stored):
            return super().read(stored, start, stop)
        matrix = read_packed(self.files, _packed(stored, self.shape(stored)[-1]), start, stop)
        if isinstance(matrix, Blocks):
            require_finite_blocks(stored, matrix.blocks, matrix.scales)
            return decode_mxfp4(unpack_blocks(matrix.blocks), matrix.scales)
        return matrix

    def expert(self, layer: int, name: str, expert: int) -> Blocks | Weights:
        return self._experts.matrix(layer, name, expert)

    def expert_bias(self, layer: int, name: str, expert: int) -> F32:
        return self._experts.bias(layer, name, expert)

    @cached_property
    def _lacks_bias(self) -> bool:
        """Whether the attention has none: what its config.json says."""
        return parse_json(self.small_files["config.json"]).get("attention_bias") is False

    @property
    def _is_tied(self) -> bool:
        return parse_json(self.small_files["config.json"]).get("tie_word_embeddings") is True

    def _is_packed(self, stored: str) -> bool:
        return stored in self.files.tensors and self.files.tensors[stored][1].dtype == "U32"


def _packed(stored: str, columns: int) -> Packed:
    module = stored.removesuffix("weight")
    return Packed(stored, f"{module}scales", f"{module}biases", columns)


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
