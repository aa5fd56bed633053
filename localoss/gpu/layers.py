"""The model's last layers on a GPU, and the unembedding with all of them.

The residual stream comes once and leaves once; routing, the KV cache and everything between stay there. A
decoded token is one submit and one read-back. T tokens, D hidden, V vocabulary: localoss/model/forward.py.
"""

import contextlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localoss.errors import Cancelled, GpuError
from localoss.gpu.cache import GpuLayerCache
from localoss.gpu.device import Device, Dispatch, Reading, Recording
from localoss.gpu.kernels import Kernels
from localoss.gpu.weights import GpuLayer, GpuMatrix, Tensors, upload_layer, upload_matrix
from localoss.model.rope import Rope
from localoss.model.stack import Rows
from localoss.options import LoadOptions
from localoss.plan.gpu_sizes import LOGIT_ROWS, gpu_buffer_sizes, most_runs, tokens_at_once
from quant.format.config import ModelConfig
from quant.format.layout import round_up
from quant.format.manifest import Dtypes

F32Array = NDArray[np.float32]

_AT_ONE_GO = 32  # tokens; more are submitted layer by layer, so that cancelling and drivers need not wait


@dataclass
class Decoded:
    """How many single tokens were run, and what they took of the bus."""

    tokens: int = 0
    submits: int = 0
    read_backs: int = 0


def _offsets(config: ModelConfig) -> F32Array:
    """Rope.offsets as rows of (cos, sin) of each pair: those within a block, then one for each block."""
    blocks, within = Rope(config).offsets
    both = np.concatenate([within.transpose(2, 1, 0), blocks.transpose(0, 2, 1)])
    return np.ascontiguousarray(both, np.float32)


class GpuLayers:
    """Layers `first` to the last on `device`: a LayerStack. Raises: GpuError from every method; the device is
    lost then.
    """

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        dtypes: Dtypes,
        tensors: Sequence[Tensors],
        layers: int,
        options: LoadOptions,
        uploaded: Callable[[int, int], None] = lambda done, total: None,
    ):
        """Upload the last `layers` of `tensors`, each layer's and then the vocabulary's.

        options: what the engine is loaded with. uploaded: told how many layers are there, of how many.
        """
        self.device, self.config, self.count = device, config, layers
        self.first = config.layers - layers
        self.decoded = Decoded()
        most = min(options.chunk_tokens, options.context_tokens or options.chunk_tokens)
        self._max_tokens = max_tokens = most  # of a forward pass
        self._kernels = Kernels(device, config, dtypes, options.kv_dtype)
        sizes = gpu_buffer_sizes(config, max_tokens, self.unembeds)
        self._at = {name: device.buffer(size.nbytes) for name, size in sizes.items()}
        device.write(self._at["offsets"], _offsets(config))
        self._batch = device.uniform(0, 0, 0, 0)
        self._zeros = device.uniform(0, 0, 0, 0)
        self._weights: list[GpuLayer] = []
        for index, layer in enumerate(tensors[self.first : config.layers]):
            self._weights.append(upload_layer(device, layer, dtypes.attention))
            uploaded(index + 1, layers)
        self._final_norm: Any = None
        self._unembedding: GpuMatrix | None = None
        if self.unembeds:
            vocabulary = tensors[config.layers]
            self._final_norm = device.upload(vocabulary["final_norm"])
            self._unembedding = upload_matrix(device, vocabulary, "unembedding", dtypes.unembedding)
        # By a conversation's first cache: what a token of it takes, and the commands of its next one.
        self._decoding: weakref.WeakKeyDictionary[Any, list[Dispatch]] = weakref.WeakKeyDictionary()
        self._recorded: weakref.WeakKeyDictionary[Any, dict[bool, Recording]] = weakref.WeakKeyDictionary()

    @property
    def unembeds(self) -> bool:
        """Whether logits are computed here: with all layers."""
        return self.count == self.config.layers

    def figures(self) -> dict[str, Any]:
        """For reports: the GPU, its layers and memory, and submits and read-backs of a decoded token."""
        name, tokens = self.device.adapter.name, max(self.decoded.tokens, 1)
        submits, read_backs = self.decoded.submits / tokens, self.decoded.read_backs / tokens
        summary = f"{self.count} of {self.config.layers} layers on {name}"
        if self.decoded.tokens:
            summary += f", {submits:.4g} submits and {read_backs:.4g} read-backs a token"
        return {
            "adapter": name,
            "backend": self.device.adapter.backend,
            "layers": self.count,
            "unembeds": self.unembeds,
            "bytes": self.device.allocated_bytes,
            "decoded_tokens": self.decoded.tokens,
            "submits_per_token": submits,
            "read_backs_per_token": read_backs,
            "summary": summary,
        }

    def new_caches(self, slots: Sequence[int], kv_dtype: str) -> list[GpuLayerCache]:
        return [GpuLayerCache(self.device, self.config, count, kv_dtype) for count in slots]

    def try_out(self, caches: Sequence[Any]) -> None:
        """Compile all shaders and run them, on zeros: what a driver can't do must show before an answer."""
        for tokens in {1, min(2, self._max_tokens)}:
            x = np.zeros((tokens, self.config.hidden), np.float32)
            angles = np.zeros((tokens, self.config.head_dim // 2), np.float32)
            self._run(x, 0, caches, (angles, angles), lambda: False)
            if self.unembeds:
                self.logits(x, np.empty((tokens, round_up(self.config.vocab, 8)), np.float32))
        self.decoded = Decoded()

    def repeat(self, caches: Sequence[Any], times: int) -> None:
        """Run the token of the last `forward`, whose T was 1, `times` times in one submit: for measuring."""
        self.device.run(self._decoding_work(caches) * times, [(self._at["x"], 0, 4 * self.config.hidden)])

    def forward(self, x: F32Array, rows: Sequence[Rows], cancelled: Callable[[], bool]) -> None:
        for part in rows:
            its = x[part.first : part.first + part.tokens]
            its[:] = self._run(its, part.position, self._caches(part), (part.cos, part.sin), cancelled)

    def next_logits(self, x: F32Array, rows: Rows, cancelled: Callable[[], bool]) -> F32Array:
        angles = rows.cos, rows.sin
        return self._run(x, rows.position, self._caches(rows), angles, cancelled, wants_logits=True)

    def _caches(self, rows: Rows) -> Sequence[Any]:
        return rows.cache.layers[self.first : self.first + self.count]

    def replacement(self) -> None:
        """The CPU can do it."""

    def close(self) -> None:
        with contextlib.suppress(GpuError):
            self.device.destroy()

    def _run(
        self,
        x: F32Array,
        position: int,
        caches: Sequence[Any],
        angles: tuple[F32Array, F32Array],
        cancelled: Callable[[], bool],
        wants_logits: bool = False,
    ) -> F32Array:
        """Run x (T, D), the residual stream of tokens at `position`, position + 1, …, through the layers.

        caches: one for each layer. angles: rope.Rope.at's. Gives the residual stream (T, D) after the last
        layer, or with `wants_logits` the logits (1, V) after the last token. Raises: Cancelled.
        """
        tokens = len(x)
        runs = most_runs(tokens * self.config.active_experts, self.config.experts, tokens_at_once(tokens))
        self.device.write(self._at["x"], x)
        self.device.write(self._at["angles"], np.stack(angles, axis=-1))
        self.device.write(self._batch, np.array([tokens, position, tokens - 1, runs], np.uint32))
        before = self.device.submits, self.device.read_backs
        if wants_logits:
            reading = (self._at["logits"], 0, 4 * round_up(self.config.vocab, 8))
        else:
            reading = (self._at["x"], 0, x.nbytes)
        if tokens == 1:
            (data,) = self._decode(caches, wants_logits, reading)
        else:
            work = self._layers_work(caches, tokens, cancelled)
            (data,) = self.device.run([*work, *self._next_logits_work] if wants_logits else work, [reading])
        if tokens == 1:
            self.decoded.tokens += 1
            self.decoded.submits += self.device.submits - before[0]
            self.decoded.read_backs += self.device.read_backs - before[1]
        rows = np.frombuffer(data, np.float32)
        return rows[None, : self.config.vocab] if wants_logits else rows.reshape(x.shape)

    def logits(self, x: F32Array, out: F32Array) -> None:
        """Write final norm and unembedding of rows x (n, D) to out (n, ≥ V rounded up to 8)."""
        width = round_up(self.config.vocab, 8)
        for first in range(0, len(x), LOGIT_ROWS):
            rows = x[first : first + LOGIT_ROWS]
            self.device.write(self._at["x"], rows)
            self.device.write(self._batch, np.array([len(rows), 0, 0, 0], np.uint32))
            (data,) = self.device.run(
                self._logits_work(len(rows)), [(self._at["logits"], 0, 4 * width * len(rows))]
            )
            out[first : first + len(rows), :width] = np.frombuffer(data, np.float32).reshape(-1, width)

    def _decode(self, caches: Sequence[Any], wants_logits: bool, reading: Reading) -> list[bytes]:
        """Run one token, and record the next one's commands, which are the same, while the GPU computes."""
        made = self._recorded.setdefault(caches[0], {})

        def record() -> Recording:
            work = self._decoding_work(caches)
            return self.device.record([*work, *self._next_logits_work] if wants_logits else work, [reading])

        def record_next() -> None:
            made[wants_logits] = record()

        recording = made.pop(wants_logits) if wants_logits in made else record()
        return self.device.submit(recording, record_next)

    def _decoding_work(self, caches: Sequence[Any]) -> list[Dispatch]:
        """What one token takes: the same for every token of a conversation, so made once."""
        work = self._decoding.get(caches[0])
        if work is None:
            work = [d for index in range(self.count) for d in self._layer_work(index, caches[index], 1)]
            self._decoding[caches[0]] = work
        return work

    def _layers_work(
        self, caches: Sequence[Any], tokens: int, cancelled: Callable[[], bool]
    ) -> list[Dispatch]:
        """What is left to do after all layers that were submitted on the way."""
        work: list[Dispatch] = []
        for index in range(self.count):
            if cancelled():
                raise Cancelled("stopped")
            work += self._layer_work(index, caches[index], tokens)
            if tokens > _AT_ONE_GO:
                self.device.run(work)
                self.device.wait()
                work = []
        return work

    def _layer_work(self, index: int, cache: GpuLayerCache, tokens: int) -> list[Dispatch]:
        """One layer, as localoss/kernels/layer.py has it."""
        at, layer, make = self._at, self._weights[index], self.device.dispatch
        kernels, batch = self._kernels, self._batch
        once = tokens_at_once(tokens)
        runs = most_runs(tokens * self.config.active_experts, self.config.experts, once)
        window = self.config.sliding_window if self.config.is_sliding[self.first + index] else 0
        keys = cache.buffers
        work = [] if index else [self._norm(layer.attention_norm, tokens)]
        work += self._product(layer.qkv, "normed", "qkv", tokens)
        rotated = self.config.heads + 2 * self.config.kv_heads
        offsets = [layer.qkv.bias, at["offsets"]]
        rotating = [at["qkv"], at["angles"], *keys, *offsets, batch]
        work.append(make(kernels.rotate(cache.slots), rotating, rotated, tokens))
        attend = kernels.attend(cache.slots, window, once)
        attending = [at["qkv"], *keys, *offsets, layer.sinks, at["attended"], batch]
        work.append(make(attend, attending, self.config.heads, tokens))
        work += self._product(layer.output, "attended", "x", tokens, adding=True)
        work.append(self._norm(layer.mlp_norm, tokens))
        work += self._product(layer.router, "normed", "router_logits", tokens)
        order = [at["sources"], at["places"], at["runs"]]
        chosen = [at["expert_ids"], at["expert_weights"], *order]
        work.append(
            make(kernels.route(tokens == 1), [at["router_logits"], layer.router_bias, *chosen], tokens)
        )
        if tokens > 1:
            work.append(make(kernels.sort(once), [at["expert_ids"], *order, batch], 1))
        products = (
            (kernels.gate_up(once), "normed", "h", self.config.intermediate // 4),
            (kernels.down(once), "h", "y", self.config.hidden // 8),
        )
        for kernel, source, target, groups in products:
            for part in layer.experts:
                buffers = [at[source], at[target], at["runs"], at["sources"], part.which]
                work.append(make(kernel, [part.runs, part.runs, *buffers], groups, runs))
        last = self.count - 1  # after it nobody reads the norm
        following = self._weights[min(index + 1, last)]
        return [*work, self._norm(following.attention_norm, tokens, adding=True)]

    def _norm(self, weight: Any, tokens: int, adding: bool = False, rows: Any = None) -> Dispatch:
        """x, with what the experts gave if `adding`, to normed: from row 0 on, if `rows` doesn't say else."""
        at = self._at
        experts = [at["y"], at["places"], at["expert_weights"]]
        buffers = [at["x"], *experts, weight, at["normed"], rows or self._zeros]
        return self.device.dispatch(self._kernels.norm(adding), buffers, tokens)

    @cached_property
    def _next_logits_work(self) -> list[Dispatch]:
        return self._logits_work(1)

    def _logits_work(self, rows: int) -> list[Dispatch]:
        """Final norm and unembedding of `rows` rows of x, from batch.first_row on."""
        assert self._unembedding is not None
        norm = self._norm(self._final_norm, rows, rows=self._batch)
        return [norm, *self._product(self._unembedding, "normed", "logits", rows)]

    def _product(
        self, matrix: GpuMatrix, source: str, target: str, tokens: int, adding: bool = False
    ) -> list[Dispatch]:
        kernel = self._kernels.matmul(matrix, adding, tokens_at_once(tokens))
        bias = matrix.bias or self.device.upload(None)
        ends = [bias, self._at[source], self._at[target], self._batch]
        return [
            self.device.dispatch(
                kernel,
                [part.codes, part.scales, *ends, part.which],
                part.groups,
                -(-tokens // tokens_at_once(tokens)),
            )
            for part in matrix.parts
        ]
