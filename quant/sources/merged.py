"""A checkpoint or a model with LoRA adapters added to its weights, as a source of its own."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from quant.format.hf_names import experts_prefix
from quant.format.numbers import F32, Weights, decode_mxfp4, unpack_blocks
from quant.sources.adapter import Adapter, Pair
from quant.sources.base import Blocks, Source, as_f32


class MergedSource(Source):
    """`base` plus `adapters`. What no adapter changes stays as it is, MXFP4 experts bit for bit."""

    def __init__(self, base: Source, adapters: Sequence[Adapter]):
        super().__init__(base.files, base.name, base.config, base.small_files)
        self.revision = base.revision
        self._base, self._adapters = base, adapters

    @property
    def has_mxfp4_experts(self) -> bool:
        """Whether all are the base's own: those of an adapter are rounded anew."""
        changed = any("/" in name for adapter in self._adapters for name in adapter.names)
        return self._base.has_mxfp4_experts and not changed

    def require_tensors(self) -> None:
        self._base.require_tensors()

    def locate(self, name: str) -> tuple[str, int]:
        return self._base.locate(name)

    @property
    def paths(self) -> list[Path]:
        return [*self._base.paths, *(path for adapter in self._adapters for path in adapter.paths)]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._base.fingerprint().encode())
        for adapter in self._adapters:
            digest.update(adapter.sha256().encode())
        return digest.hexdigest()

    def arrange(self, outputs: list[str], flush: Callable[[], None]) -> Iterator[str]:
        yield from self._base.arrange(outputs, flush)

    def rows(self, name: str, start: int, stop: int) -> Weights:
        return _added(self._base.rows(name, start, stop), self._pairs(name), slice(start, stop))

    def expert(self, layer: int, name: str, expert: int) -> Blocks | Weights:
        matrix = self._base.expert(layer, name, expert)
        pairs = self._pairs(f"{experts_prefix(layer)}{name}/{expert}")
        if pairs and isinstance(matrix, Blocks):
            matrix = decode_mxfp4(unpack_blocks(matrix.blocks), matrix.scales)
        return matrix if isinstance(matrix, Blocks) else _added(matrix, pairs, slice(None))

    def expert_bias(self, layer: int, name: str, expert: int) -> F32:
        return self._base.expert_bias(layer, name, expert)

    def _pairs(self, name: str) -> list[Pair]:
        return [pair for adapter in self._adapters for pair in adapter.pairs(name)]

    def close(self) -> None:
        self._base.close()


def _added(weights: Weights, pairs: Sequence[Pair], rows: slice) -> Weights:
    """`weights` plus those rows of the products of `pairs`; as they are where there are none."""
    if not pairs:
        return weights
    total = as_f32(weights).astype(np.float64)
    for pair in pairs:
        total += pair.b[rows].astype(np.float64) @ pair.a.astype(np.float64)
    return total.astype(np.float32)
