"""Runs a text through a checkpoint and measures what its matrices are multiplied with, for quant.calibration.

One layer is in memory at a time: all tokens go through it before the next is read, so that a checkpoint of
any size is calibrated in less than 2 GB.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localoss.errors import UsageError
from localoss.model.buffers import Buffers
from localoss.model.cpu_layers import CpuLayers, RowChunk
from localoss.model.forward import Chunk, Model
from localoss.model.kv_cache import KVCache
from localoss.model.rope import Rope
from localoss.model.weights import Weights, blank_weights
from quant.calibration import Calibration, Measured
from quant.encode_tensors import Part, layer_parts
from quant.format.config import ModelConfig
from quant.format.fold import shift_of
from quant.format.hf_names import EMBEDDING, FINAL_NORM
from quant.format.manifest import Dtypes, Text
from quant.sources import Source
from quant.sources.base import as_f32

MOST_TOKENS = 4096
CHUNK_TOKENS = 512
_DTYPES = Dtypes("bf16", "bf16", "bf16", "mxfp4")  # experts in bfloat16 would take 6 GB a layer in 120b
F32Array = NDArray[np.float32]


def calibration_of(tokens: Sequence[int], sha256: str, threads: int) -> Calibration:
    """What quant.convert takes: it measures with the first MOST_TOKENS of `tokens`.

    `sha256` is that of the text's file.
    """
    used = list(tokens[:MOST_TOKENS])

    def measure(source: Source, names: list[str]) -> Measured:
        return _measure(source, names, used, threads)

    return Calibration(Text(sha256, len(used)), measure)


def _measure(source: Source, names: list[str], tokens: list[int], threads: int) -> Measured:
    config = source.config
    if max(tokens) >= config.vocab:
        raise UsageError(
            f"the text's tokens are not in this model's vocabulary of {config.vocab:,}; "
            "only a model with gpt-oss's vocabulary can be calibrated"
        )
    rows = {token: as_f32(source.rows(EMBEDDING, token, token + 1))[0] for token in set(tokens)}
    residual = np.stack([rows[token] for token in tokens])
    model = _OneLayer(config, threads, min(len(tokens), CHUNK_TOKENS))
    for layer in range(config.layers):
        model.load(layer_parts(source, layer, _DTYPES))
        model.run(residual, config.is_sliding[layer])
        prefix = f"layer-{layer:03d}."
        for name in [name for name in names if name.startswith(prefix)]:
            yield name, model.moments(name.removeprefix(prefix))
    if "unembedding" in names:
        gain = source.vector(FINAL_NORM)
        gain = np.ldexp(gain, -shift_of(gain).astype(np.int32))  # the columns are weighed as they are stored
        normed = _norm(residual, gain, config.rms_norm_eps)
        yield "unembedding", np.square(normed).mean(axis=0)


class _OneLayer(Model):
    """A model of one layer, whose weights are replaced, and whose embedding is the residual stream so far.

    After `run`, `moments` are the mean squares of what the matrices were given.
    """

    def __init__(self, config: ModelConfig, threads: int, max_tokens: int):
        one = replace(config, layers=1, is_sliding=(False,), vocab=8)
        super().__init__(one, blank_weights(one, _DTYPES), threads, exact=True, max_tokens=max_tokens)
        self._tensors = self.weights.tensors[0]
        self._residual = np.empty(0, np.float32)

    def load(self, parts: Iterator[Part]) -> None:
        """Take the layer's weights from `parts`, where the kernels know them already."""
        filled = dict.fromkeys(self._tensors, 0)
        for name, part in parts:
            array = self._tensors[name]
            array.flags.writeable = True
            begin, end = filled[name], filled[name] + part.nbytes
            array.reshape(-1).view(np.uint8)[begin:end] = part.reshape(-1).view(np.uint8)
            array.flags.writeable = False  # as kernels are compiled for it
            filled[name] = end

    def run(self, residual: F32Array, sliding: bool) -> None:
        """Run all tokens, whose residual stream (T, D) f32 is brought from before the layer to after it."""
        config = replace(self.config, is_sliding=(sliding,))
        self._measured = _MeasuredLayer(config, self.weights, self.rope, self.buffers, 0, 1)
        self.stacks, self._residual = (self._measured,), residual
        cache = KVCache(config, len(residual), self.buffers.tokens, "f32")
        for first in range(0, len(residual), self.buffers.tokens):
            places = range(first, min(first + self.buffers.tokens, len(residual)))
            residual[places.start : places.stop] = self.forward([Chunk(places, first, cache)])

    def moments(self, name: str) -> F32Array:
        """(C,) f32 of "qkv" and "output"; (E, C) of "gate_up_proj" and "down_proj": 0 without tokens."""
        measured = self._measured
        return (measured.sums[name] / np.maximum(measured.counts[name], 1)).astype(np.float32)

    def _embed(self, x: F32Array, tokens: list[int]) -> None:
        x[:] = self._residual[tokens]


class _MeasuredLayer(CpuLayers):
    """A layer that adds up the squares of what its matrices are given.

    sums, counts: by the matrix's name, (C,) f64 and () i64, for experts (E, C) and (E, 1).
    """

    acts_between = True

    def __init__(
        self, config: ModelConfig, weights: Weights, rope: Rope, buffers: Buffers, first: int, count: int
    ):
        super().__init__(config, weights, rope, buffers, first, count)
        experts = (config.experts,)
        shapes = {
            "qkv": ((), config.hidden),
            "output": ((), config.q_rows),
            "gate_up_proj": (experts, config.hidden),
            "down_proj": (experts, config.intermediate),
        }
        self.sums = {name: np.zeros((*first, columns)) for name, (first, columns) in shapes.items()}
        self.counts = {name: np.zeros((*first, 1), np.int64) for name, (first, _) in shapes.items()}

    def _attention(self, index: int, chunk: RowChunk) -> None:
        tokens, norm = chunk.tokens, self.weights.tensors[0]["attention_norm"]
        normed = _norm(self.buffers.x[:tokens], norm, self.config.rms_norm_eps)
        self.sums["qkv"] += np.square(normed).sum(axis=0)
        super()._attention(index, chunk)
        self.sums["output"] += _squares(self.buffers.blocks, tokens, self.config.q_rows)
        for name in ("qkv", "output"):
            self.counts[name] += tokens

    def _run_experts(self, index: int, chunk: RowChunk, count: int) -> None:
        super()._run_experts(index, chunk, count)
        b, pairs = self.buffers, chunk.tokens * self.config.active_experts
        for name, inputs in (("gate_up_proj", b.gathered), ("down_proj", b.h)):
            columns = self.sums[name].shape[1]
            for expert in range(self.config.experts):
                places = slice(int(b.starts[expert]), int(b.starts[expert + 1]))
                self.sums[name][expert] += _squares(inputs, pairs, columns, places)
                self.counts[name][expert] += places.stop - places.start


def _squares(
    inputs: NDArray[Any], count: int, columns: int, places: slice = slice(None)
) -> NDArray[np.float64]:
    """Sums over `places` of the squares of `inputs`, which begin with (C/32, count, 32): (C,)."""
    blocks = inputs[: count * columns].reshape(columns // 32, count, 32)[:, places]
    sums: NDArray[np.float64] = np.square(blocks).sum(axis=1, dtype=np.float64).reshape(-1)
    return sums


def _norm(x: F32Array, weight: F32Array, eps: float) -> F32Array:
    """RMS norm of x (T, D)."""
    normed: F32Array = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + np.float32(eps)) * weight
    return normed
