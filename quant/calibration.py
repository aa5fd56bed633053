"""Second moments of what each matrix is multiplied with, measured on a text: they weigh int4's rounding.

Whoever runs the model measures them (localoss/measure/calibration.py); here is what the converter asks for,
and the file in the model directory that keeps them: an interrupted conversion goes on with the same numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.errors import QuantError
from quant.format.config import ModelConfig
from quant.format.layout import CALIBRATION_FILE, TensorSpec
from quant.format.manifest import Dtypes, Text
from quant.format.numbers import F32
from quant.format.safetensors import TensorFiles, read_header
from quant.format.weight_formats import WEIGHT_FORMATS
from quant.sources import Source

FLOOR = np.float32(0.01)  # of a matrix's mean: a column that the text left still counts a little
Measured = Iterator[tuple[str, NDArray[np.float32]]]


@dataclass(frozen=True)
class Calibration:
    """`measure(source, names)` gives the moments of `names`, keys of calibration_specs, in that order.

    Each is the mean square of a matrix's inputs over the tokens of `text`, column by column.
    """

    text: Text
    measure: Callable[[Source, list[str]], Measured]


def calibration_specs(config: ModelConfig, dtypes: Dtypes) -> dict[str, TensorSpec]:
    """The moments that int4 matrices ask for. Raises: QuantError if none is int4."""
    specs: dict[str, TensorSpec] = {}
    for layer in range(config.layers):
        if WEIGHT_FORMATS[dtypes.attention].calibrated:
            specs[f"layer-{layer:03d}.qkv"] = TensorSpec("F32", (config.hidden,))
            specs[f"layer-{layer:03d}.output"] = TensorSpec("F32", (config.q_rows,))
        if WEIGHT_FORMATS[dtypes.experts].calibrated:
            specs[f"layer-{layer:03d}.gate_up_proj"] = TensorSpec("F32", (config.experts, config.hidden))
            specs[f"layer-{layer:03d}.down_proj"] = TensorSpec("F32", (config.experts, config.intermediate))
    if WEIGHT_FORMATS[dtypes.unembedding].calibrated:
        specs["unembedding"] = TensorSpec("F32", (config.hidden,))
    if not specs:
        raise QuantError(
            "calibrating weighs the rounding of int4 weights, and none are: ask for --unembedding int4"
        )
    return specs


class Moments(TensorFiles):
    """The moments in a model directory; without a file, none. Use as a context manager."""

    def __init__(self, folder: Path | None):
        super().__init__(folder or Path())
        if folder:
            path = folder / CALIBRATION_FILE
            self.tensors = {name: (path, info) for name, info in read_header(path)[0].items()}

    def __enter__(self) -> "Moments":
        return self

    def of(self, name: str, expert: int | None = None) -> F32 | None:
        """The weights (C,) of a matrix's columns, 1 on average; None for columns that weigh the same.

        Raises: QuantError if they are not finite.
        """
        if name not in self.tensors:
            return None
        if expert is None:
            moments = self.read_rows(name, 0, self.tensors[name][1].shape[0])
        else:
            moments = self.read_rows(name, expert, expert + 1)[0]
        mean = moments.mean()
        if not np.isfinite(moments).all() or not np.isfinite(mean):
            raise QuantError(
                f"{name}: the calibration text made activations of NaN or infinity; take another"
            )
        if not mean:  # an expert that no token of the text chose
            return None
        relative: F32 = np.maximum(moments / mean, FLOOR)
        return relative
