"""The experts of a checkpoint in Hugging Face's layout: MXFP4, floats, MLX's words; fused, split, mixed."""

from typing import Any

import numpy as np

from quant.errors import QuantError
from quant.format.config import ModelConfig
from quant.format.hf_names import EXPERT_MATRICES, block_shapes, expert_shapes, experts_prefix
from quant.format.numbers import F32, Weights, decode_mxfp4, unpack_blocks
from quant.format.safetensors import TensorFiles
from quant.sources.base import FLOATS, Blocks, as_f32
from quant.sources.mlx import Packed, read_packed, require_packed

GATE_UP = EXPERT_MATRICES[0]
_DTYPES = {"blocks": ("U8",), "scales": ("U8", "F8_E8M0")}  # the second says what the bytes are


class HfExperts:
    """Reads one expert's matrices from `files`, in whatever form each layer has them (see names.py)."""

    def __init__(self, files: TensorFiles, config: ModelConfig):
        self._files, self._config = files, config

    def is_mxfp4(self) -> bool:
        """Whether all experts' matrices are MXFP4; True too where they are missing."""
        return all(
            self._form(stored) == "blocks" or self._is_mlx_mxfp4(stored)
            for layer in range(self._config.layers)
            for name in EXPERT_MATRICES
            for stored in self._stored(layer, name)
        )

    def require(self) -> None:
        """Raises: QuantError for what is missing, or not of the configuration's shape."""
        config = self._config
        for layer in range(config.layers):
            blocks = block_shapes(config, layer)
            for name, (rows, columns) in expert_shapes(config).items():
                tensors = self._stored(layer, name)
                for stored in tensors:
                    part_rows = rows // len(tensors)
                    self._require_bias(stored, part_rows)
                    form = self._form(stored)
                    if form == "blocks":
                        for kind in ("blocks", "scales"):
                            shape = blocks[f"{experts_prefix(layer)}{name}_{kind}"]
                            part_shape = (config.experts, part_rows, *shape[2:])
                            self._files.require(f"{stored}_{kind}", _DTYPES[kind], part_shape)
                    elif form == "packed":
                        shape = (config.experts, part_rows, columns)
                        require_packed(self._files, _packed(stored, columns), shape)
                    elif form == "split":
                        for expert in range(config.experts):
                            weight = f"{_of_expert(stored, expert)}.weight"
                            self._files.require(weight, FLOATS, (part_rows, columns))
                    else:
                        rows_first = self._is_rows_first(layer)
                        axes = (part_rows, columns) if rows_first else (columns, part_rows)
                        self._files.require(stored, FLOATS, (config.experts, *axes))

    def matrix(self, layer: int, name: str, expert: int) -> Blocks | Weights:
        """Matrix `name` (gate_up_proj or down_proj) of an expert, (R, C)."""
        parts = [self._matrix(layer, name, stored, expert) for stored in self._stored(layer, name)]
        if len(parts) == 1:
            return parts[0]
        if all(isinstance(part, Blocks) for part in parts):
            return Blocks(
                _in_turns([part.blocks for part in parts]),  # type: ignore[union-attr]
                _in_turns([part.scales for part in parts]),  # type: ignore[union-attr]
            )
        return _in_turns([_floats(part) for part in parts])

    def bias(self, layer: int, name: str, expert: int) -> F32:
        """The bias (R,) of an expert's matrix `name`."""
        parts = []
        for stored in self._stored(layer, name):
            own = f"{_of_expert(stored, expert)}.bias"
            if own in self._files.tensors:
                parts.append(as_f32(_read(self._files, own, 0, self._files.tensors[own][1].shape[0])))
            else:
                parts.append(as_f32(_read(self._files, f"{stored}_bias", expert, expert + 1)[0]))
        return _in_turns(parts) if len(parts) > 1 else parts[0]

    def _matrix(self, layer: int, name: str, stored: str, expert: int) -> Blocks | Weights:
        form, read = self._form(stored), self._files.read_rows
        if form == "blocks":
            blocks = read(f"{stored}_blocks", expert, expert + 1)[0]
            return Blocks(blocks, read(f"{stored}_scales", expert, expert + 1)[0])
        if form == "packed":
            columns = expert_shapes(self._config)[name][1]
            return read_packed(self._files, _packed(stored, columns), expert, expert + 1)
        if form == "split":
            weight = f"{_of_expert(stored, expert)}.weight"
            return _read(self._files, weight, 0, self._files.tensors[weight][1].shape[0])
        weights = _read(self._files, stored, expert, expert + 1)[0]
        return weights if self._is_rows_first(layer) else np.ascontiguousarray(weights.T)

    def _stored(self, layer: int, name: str) -> list[str]:
        """The tensors that make matrix `name`, without endings; the rows of two come in turns."""
        prefix = experts_prefix(layer)
        if name == GATE_UP and self._has(f"{prefix}gate_proj") and not self._has(prefix + GATE_UP):
            return [f"{prefix}gate_proj", f"{prefix}up_proj"]
        return [prefix + name]

    def _has(self, stored: str) -> bool:
        return any(
            name in self._files.tensors
            for name in (stored, f"{stored}_blocks", f"{_of_expert(stored, 0)}.weight")
        )

    def _form(self, stored: str) -> str:
        """blocks, packed, split or dense; what isn't there counts as blocks, the published form."""
        tensors = self._files.tensors
        if f"{stored}_blocks" in tensors:
            return "blocks"
        if stored in tensors:
            return "packed" if tensors[stored][1].dtype == "U32" else "dense"
        return "split" if f"{_of_expert(stored, 0)}.weight" in tensors else "blocks"

    def _is_mlx_mxfp4(self, stored: str) -> bool:
        return self._form(stored) == "packed" and f"{stored}_biases" not in self._files.tensors

    def _is_rows_first(self, layer: int) -> bool:
        """Whether dense experts are (E, rows, columns), as MLX has them, and not (E, columns, rows).

        gate_up tells: down may be square.
        """
        fused = experts_prefix(layer) + GATE_UP
        if fused not in self._files.tensors:
            return True
        rows, columns = expert_shapes(self._config)[GATE_UP]
        return rows != columns and self._files.tensors[fused][1].shape[1:] == (rows, columns)

    def _require_bias(self, stored: str, rows: int) -> None:
        config, own = self._config, f"{_of_expert(stored, 0)}.bias"
        if own not in self._files.tensors:
            self._files.require(f"{stored}_bias", FLOATS, (config.experts, rows))
            return
        for expert in range(config.experts):
            self._files.require(f"{_of_expert(stored, expert)}.bias", FLOATS, (rows,))


def _of_expert(stored: str, expert: int) -> str:
    prefix, _, name = stored.rpartition(".")
    return f"{prefix}.{expert}.{name}"


def _packed(stored: str, columns: int) -> Packed:
    return Packed(stored, f"{stored}_scales", f"{stored}_biases", columns)


def _read(files: TensorFiles, name: str, start: int, stop: int) -> Weights:
    rows = files.read_rows(name, start, stop)
    return rows if rows.dtype == np.uint16 else rows.astype(np.float32, copy=False)


def _floats(matrix: Blocks | Weights) -> F32:
    if isinstance(matrix, Blocks):
        if (matrix.scales == 255).any():
            raise QuantError("an expert's scale is 255, NaN; the file is damaged, download it again")
        return decode_mxfp4(unpack_blocks(matrix.blocks), matrix.scales)
    return as_f32(matrix)


def _in_turns(parts: list[Any]) -> Any:
    """One array whose rows are the first rows of all `parts`, then their second rows, and so on."""
    return np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
