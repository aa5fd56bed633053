"""Layers whose experts come from the model's files through a bounded cache: a model larger than memory."""

import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from localoss.model.buffers import Buffers
from localoss.model.cpu_layers import CpuLayers, RowChunk
from localoss.model.expert_cache import ExpertCache
from localoss.model.rope import Rope
from localoss.model.stack import F32Array, Rows
from localoss.model.weights import Weights
from quant.format.config import ModelConfig
from quant.format.direct import DirectFile
from quant.format.layout import layer_file
from quant.format.safetensors import read_header

_NEWEST = 64  # tokens of a prompt whose choices tell best what the next ones choose
_NEARLY_ALL = 0.8  # of its experts: a layer that wants so many is followed by one that does


class StreamedExperts(NamedTuple):
    """Where a model's experts come from, and how many tokens go through each layer while these are there."""

    cache: ExpertCache
    pass_tokens: int


class ExpertFiles:
    """The experts' records in a model's files. is_direct: whether they are read past the page cache."""

    def __init__(self, folder: Path, layers: int, direct: bool = True, first: int = 0) -> None:
        """first: the model's layer that is number 0 here. Raises: QuantError."""
        paths = [folder / layer_file(first + i) for i in range(layers)]
        self._places = [read_header(path)[0]["experts"] for path in paths]
        self._files = [DirectFile(path, direct) for path in paths]
        self.is_direct = all(file.is_direct for file in self._files)

    def read(self, layer: int, expert: int, view: memoryview) -> None:
        """Fill `view` with a record. Raises: QuantError."""
        self._files[layer].read_into(view, self._places[layer].offset + expert * len(view))

    def close(self) -> None:
        for file in self._files:
            file.close()


class StreamedLayers(CpuLayers):
    """CpuLayers with the experts of `cache`, which is to have written weights' table of addresses.

    A pass of several thousand tokens goes through it layer by layer, while the next layer is read.
    """

    acts_between = True  # fetches what was chosen

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        rope: Rope,
        buffers: Buffers,
        cache: ExpertCache,
    ) -> None:
        super().__init__(config, weights, rope, buffers, 0, config.layers)
        self.cache = cache
        self._cancelled: Callable[[], bool] = lambda: False
        self._last_chunk = 0
        self._passes: dict[int, int] = {}  # the cache's number of each, by its residual stream
        weakref.finalize(self, cache.close)

    def forward(self, x: F32Array, rows: Sequence[Rows], cancelled: Callable[[], bool]) -> None:
        """See CpuLayers. Raises: QuantError for experts that can't be read, after which all is as after a
        cancelled pass.
        """
        start, stream = time.perf_counter(), self.buffers.at.x
        # Between two layers of a pass others may run, each on a residual stream of its own.
        number = self._passes[stream] if self.first else None
        self._passes[stream] = self.cache.begin_pass(len(x) > len(rows), number)
        self._cancelled, self._last_chunk = cancelled, self._chunks(rows)[-1].x
        try:
            super().forward(x, rows, cancelled)
            self.cache.counts.tokens += len(x) if self.first + self.count == self.config.layers else 0
            self.cache.counts.pass_s += time.perf_counter() - start
        except BaseException:
            self.cache.forget_queued()
            raise

    def close(self) -> None:
        self.cache.close()

    def _run_experts(self, index: int, chunk: RowChunk, count: int) -> None:
        b, cache = self.buffers, self.cache
        active = b.active[:count]
        used = None
        if chunk.x == self._last_chunk:
            newest = b.expert_ids[max(0, chunk.tokens - _NEWEST) : chunk.tokens]
            used = np.bincount(newest.reshape(-1), minlength=self.config.experts)
        wanted = active.tolist()
        looks_ahead = chunk.x == b.at.x and count >= _NEARLY_ALL * self.config.experts
        done = 0
        with closing(cache.fetch(index, wanted, self._cancelled, used)) as groups:
            for group in groups:
                if looks_ahead and index + 1 < self.config.layers:
                    cache.look_ahead(index + 1, range(self.config.experts))
                looks_ahead = False
                # The kernel takes neighbours of `active`; their order changes nothing, not even a bit.
                active[done : done + len(group)] = group
                self._run_some(index, chunk, (done, done + len(group), count))
                done += len(group)
