"""The model's last layers on a GPU, and the unembedding with all of them.

Routing, the KV cache and the residual stream stay there. Where it holds all experts of its layers, too, a
decoded token is one submit and one read-back. Each layer whose experts lie in this machine's memory is one
more of both: the cores are given x and give x with the experts added. T tokens, D hidden, V vocabulary.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localoss.errors import Cancelled, GpuError
from localoss.gpu.cache import GpuLayerCache
from localoss.gpu.device import Device, Dispatch, Recording, Traffic
from localoss.gpu.kernels import Kernels
from localoss.gpu.lane import Lane, Part
from localoss.gpu.passes import LOGITS, NOTHING, Half, Stage, X, cut
from localoss.gpu.streaming import ExpertStream, Times, seconds_of
from localoss.gpu.weights import ExpertPart, GpuLayer, GpuMatrix, Tensors, upload_layer, upload_matrix
from localoss.model.rope import Rope
from localoss.model.stack import ExpertRunner, Rows
from localoss.options import LoadOptions
from localoss.plan.gpu_sizes import (
    LOGIT_ROWS,
    TWO_LANES,
    gpu_buffer_sizes,
    lane_tokens,
    offsets_size,
    streams,
)
from quant.format.config import ModelConfig
from quant.format.layout import round_up
from quant.format.manifest import Dtypes

F32Array = NDArray[np.float32]

_AT_ONE_GO = 32  # tokens; more are submitted layer by layer, so that cancelling and drivers need not wait


@dataclass
class Decoded:
    """How many single tokens were run, and what they took of the bus."""

    tokens: int = 0
    traffic: Traffic = field(default_factory=Traffic)


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
        layers: tuple[int, int],
        options: LoadOptions,
        uploaded: Callable[[int, int], None] = lambda done, total: None,
    ):
        """Upload the last of `tensors`, each layer's and then the vocabulary's.

        layers: how many, and how many of these with their experts: the last ones. options: what the engine is
        loaded with. uploaded: told how many layers are there, of how many.
        """
        self.device, self.config = device, config
        self.count, with_experts = layers
        self.first = config.layers - self.count
        self._elsewhere = self.count - with_experts  # layers, the first ones, whose experts the cores run
        self._cores: ExpertRunner | None = None
        self.decoded = Decoded()
        most = min(options.chunk_tokens, options.context_tokens or options.chunk_tokens)
        self._max_tokens = most  # of a forward pass
        kernels = Kernels(device, config, dtypes, options.kv_dtype)
        offsets = device.buffer(offsets_size(config).nbytes)
        device.write(offsets, _offsets(config))
        self._lanes = []
        brings = streams(config, most, self._elsewhere)
        for tokens in lane_tokens(most, self._elsewhere):
            sizes = gpu_buffer_sizes(config, tokens, self.unembeds, with_experts + brings)
            self._lanes.append(Lane(device, config, kernels, sizes, offsets))
        self._weights: list[GpuLayer] = []
        for index, layer in enumerate(tensors[self.first : config.layers]):
            self._weights.append(upload_layer(device, layer, dtypes.attention, index >= self._elsewhere))
            uploaded(index + 1, self.count)
        self._stream: ExpertStream | None = None
        if brings:
            its = tensors[self.first : self.first + self._elsewhere]
            self._stream = ExpertStream(device, [layer["experts"] for layer in its])
        self._final_norm: Any = None
        self._unembedding: GpuMatrix | None = None
        if self.unembeds:
            vocabulary = tensors[config.layers]
            self._final_norm = device.upload(vocabulary["final_norm"])
            self._unembedding = upload_matrix(device, vocabulary, "unembedding", dtypes.unembedding)
        # By a sequence's first cache and whether logits are wanted: what a token of it takes, and by the
        # number of the stage the commands of its next one.
        self._decoding: weakref.WeakKeyDictionary[Any, dict[bool, list[Stage]]] = weakref.WeakKeyDictionary()
        self._recorded: weakref.WeakKeyDictionary[Any, dict[tuple[bool, int], Recording]]
        self._recorded = weakref.WeakKeyDictionary()

    @property
    def unembeds(self) -> bool:
        """Whether logits are computed here: with all layers."""
        return self.count == self.config.layers

    def lend(self, cores: ExpertRunner) -> None:
        self._cores = cores

    def figures(self) -> dict[str, Any]:
        """For reports: the GPU, its layers and memory, and what a decoded token takes of it and the bus."""
        name, tokens = self.device.adapter.name, max(self.decoded.tokens, 1)
        per_token = {key: value / tokens for key, value in vars(self.decoded.traffic).items()}
        with_experts = self.count - self._elsewhere
        summary = f"{self.count} of {self.config.layers} layers on {name}"
        if self._elsewhere:
            summary += f", the experts of {with_experts} of them"
        from_tokens = self._stream.from_tokens if self._stream else None
        if from_tokens:
            summary += f", and prompts of {from_tokens} tokens or more bring the others there"
        if self.decoded.tokens:
            submits, read_backs = per_token["submits"], per_token["read_backs"]
            bus = (per_token["written_bytes"] + per_token["read_bytes"]) / 1000
            summary += f", {submits:.4g} submits and {read_backs:.4g} read-backs a token, {bus:,.0f} kB"
        return {
            "adapter": name,
            "backend": self.device.adapter.backend,
            "layers": self.count,
            "layers_with_experts": with_experts,
            "brings_experts_from_tokens": from_tokens,
            "unembeds": self.unembeds,
            "bytes": self.device.allocated_bytes,
            "decoded_tokens": self.decoded.tokens,
            **{f"{key}_per_token": value for key, value in per_token.items()},
            "summary": summary,
        }

    def new_caches(self, slots: Sequence[int], kv_dtype: str) -> list[GpuLayerCache]:
        return [GpuLayerCache(self.device, self.config, count, kv_dtype) for count in slots]

    def try_out(self, caches: Sequence[Any]) -> None:
        """Compile all shaders and run them, on zeros: what a driver can't do must show before an answer. Then
        measure from how many tokens on experts come to it.
        """
        for tokens in {1, min(2, self._max_tokens)}:
            x = np.zeros((tokens, self.config.hidden), np.float32)
            self._run(x, [self._first_rows(tokens, caches)], lambda: False)
            if self.unembeds:
                self.logits(x, np.empty((tokens, round_up(self.config.vocab, 8)), np.float32))
        if self._stream:
            self._stream.from_tokens = self._measure(self._stream, caches).from_tokens
        self.decoded = Decoded()

    def _first_rows(self, tokens: int, caches: Sequence[Any]) -> Rows:
        """Rows of a sequence's first tokens, all of them turned by no angle."""
        ones = np.ones((tokens, self.config.head_dim // 2), np.float32)
        return Rows(0, tokens, 0, ones, 0 * ones, _Caches(caches, self.first))  # type: ignore[arg-type]

    def _measure(self, stream: ExpertStream, caches: Sequence[Any]) -> Times:
        """By a layer and as many tokens as an expert has of a full pass, or a few more."""
        config, lane, layer, cores = self.config, self._lanes[0], self._weights[0], self._cores
        assert cores
        active, most = config.active_experts, self._max_tokens
        tokens = min(max(most * active // config.experts, TWO_LANES), most // 2)
        x = np.full((tokens, config.hidden), 0.1, np.float32)
        ids = np.tile(np.arange(active, dtype=np.int32) % stream.at_once, (tokens, 1))
        weights = np.full((tokens, active), 1 / active, np.float32)
        cores_s = seconds_of(lambda: cores.run_chosen(self.first, ids, weights, x))
        lane.load(x, [self._first_rows(tokens, caches)])
        self.device.write(lane.at["expert_ids"], ids)
        work = lane.attention(layer, [Part(tokens, caches)], 0, self._window(0), joins=False)
        work += [lane.sort(tokens), *lane.experts_of(stream.parts[0], tokens)]
        gpu_s = seconds_of(lambda: self.device.run(work, self.device.anything))
        return Times(stream.copy_s(), gpu_s / tokens, cores_s / tokens)

    def repeat(self, caches: Sequence[Any], times: int) -> None:
        """Run the token of the last `forward`, whose T was 1, `times` times in one submit: for measuring."""
        stages = self._decoding[caches[0]][False]
        work = [dispatch for stage in stages for dispatch in stage.work]
        self.device.run(work * times, stages[-1].reading)

    def forward(self, x: F32Array, rows: Sequence[Rows], cancelled: Callable[[], bool]) -> None:
        self._run(x, rows, cancelled)

    def next_logits(self, x: F32Array, rows: Rows, cancelled: Callable[[], bool]) -> F32Array:
        (data,) = self._run(x, [rows], cancelled, wants_logits=True)
        return np.frombuffer(data, np.float32)[None, : self.config.vocab]

    def replacement(self) -> None:
        """The CPU can do it."""

    def close(self) -> None:
        with contextlib.suppress(GpuError):
            self.device.destroy()

    def _run(
        self, x: F32Array, rows: Sequence[Rows], cancelled: Callable[[], bool], wants_logits: bool = False
    ) -> list[bytes]:
        """Bring x (T, D) through the layers, in place; with wants_logits give those after its last row
        instead, (V rounded up to 8,) f32, and leave x as it may be.
        """
        before = replace(self.device.traffic)
        middle = len(x) - len(x) // 2 if len(x) >= TWO_LANES and len(self._lanes) > 1 else len(x)
        cuts = [(0, middle), (middle, len(x))] if middle < len(x) else [(0, middle)]
        halves = []
        for lane, (first, end) in zip(self._lanes, cuts, strict=False):
            own = list(cut(rows, first, end))
            lane.load(x[first:end], own)
            parts = [Part(part.tokens, self._caches(part)) for part in own]
            read = X if not wants_logits else LOGITS if end == len(x) else NOTHING
            halves.append(Half(x[first:end], lane, parts, read))
            halves[-1].stages = self._stages(halves[-1], len(x) > _AT_ONE_GO)
        if len(x) == 1:
            kept = self._decoding.setdefault(halves[0].parts[0].caches[0], {})
            if wants_logits not in kept:
                kept[wants_logits] = list(halves[0].stages)
            halves[0].stages = iter(kept[wants_logits])
        if self._stream and self._stream.takes(len(x)):
            results = self._bring_experts(self._stream, halves, cancelled)
        else:
            results = self._advance(halves, cancelled, wants_logits)
        if len(x) == 1:
            self.decoded.tokens += 1
            self.decoded.traffic.add(self.device.traffic.since(before))
        if wants_logits:
            return results[-1:]
        for half, data in zip(halves, results, strict=True):
            half.x[:] = np.frombuffer(data, np.float32).reshape(half.x.shape)
        return []

    def _advance(
        self, halves: Sequence[Half], cancelled: Callable[[], bool], wants_logits: bool
    ) -> list[bytes]:
        """Submit all stages of `halves` in turn; what each half's last one read.

        While the GPU computes one half's stage, the cores run the experts that the other half waits for.
        """
        results: list[bytes] = [b""] * len(halves)
        waiting: tuple[Half, int, list[bytes]] | None = None
        is_token = len(halves[0].x) == 1
        for number, stages in enumerate(zip(*(half.stages for half in halves), strict=True)):
            for at, (half, stage) in enumerate(zip(halves, stages, strict=True)):
                if cancelled():
                    raise Cancelled("stopped")
                if waiting and waiting[0] is half:
                    self._run_experts(*waiting)
                    waiting = None
                if is_token:
                    data = self._submit_again(half, stage, (wants_logits, number))
                else:
                    meanwhile = partial(self._run_experts, *waiting) if waiting else _nothing
                    data = self.device.submit(self.device.record(stage.work, stage.reading), meanwhile)
                waiting = None if stage.layer is None else (half, stage.layer, data)
                results[at] = data[0]
        return results

    def _submit_again(self, half: Half, stage: Stage, key: tuple[bool, int]) -> list[bytes]:
        """Run one token's stage, and record the next one's commands, which are the same, while the GPU
        computes.
        """
        made = self._recorded.setdefault(half.parts[0].caches[0], {})

        def record_next() -> None:
            made[key] = self.device.record(stage.work, stage.reading)

        recording = made.pop(key) if key in made else self.device.record(stage.work, stage.reading)
        return self.device.submit(recording, record_next)

    def _run_experts(self, half: Half, layer: int, chosen: list[bytes]) -> None:
        """Have the cores run the experts of `layer` that the GPU chose, and copy what they give to it."""
        assert self._cores
        tokens, active = len(half.x), self.config.active_experts
        ids, weights, x = chosen
        half.x[:] = np.frombuffer(x, np.float32).reshape(half.x.shape)
        self._cores.run_chosen(
            self.first + layer,
            np.frombuffer(ids, np.int32).reshape(tokens, active),
            np.frombuffer(weights, np.float32).reshape(tokens, active),
            half.x,
        )
        self.device.write(half.lane.at["x"], half.x)

    def _stages(self, half: Half, by_layer: bool) -> Iterator[Stage]:
        """What is submitted for one half of a pass. by_layer: submit each layer by itself."""
        lane, tokens, joins = half.lane, len(half.x), False
        work: list[Dispatch] = []
        for index, layer in enumerate(self._weights):
            work += lane.attention(layer, half.parts, index, self._window(index), joins)
            if index < self._elsewhere:
                work.append(lane.choose(layer, tokens))
                yield Stage(work, lane.read_chosen(tokens), index)
                work = []
                continue
            work += lane.experts(layer, tokens)
            joins = tokens > 1
            if by_layer:
                yield Stage(work, self.device.anything)
                work = []
        yield self._last(half, work, joins)

    def _last(self, half: Half, work: list[Dispatch], joins: bool) -> Stage:
        """`work`, and what is left once all layers are through."""
        lane, tokens = half.lane, len(half.x)
        if half.end == LOGITS:
            assert self._unembedding
            work += lane.unembed(self._unembedding, self._final_norm, 1, joins, last=True)
            return Stage(work, lane.read_logits(1))
        if half.end == NOTHING:
            return Stage(work, self.device.anything)
        unread = self._weights[-1].attention_norm  # of the norm itself nobody reads anything
        work += [lane.norm(unread, tokens, joins)] if joins else []
        return Stage(work, lane.read_x(tokens))

    def _bring_experts(
        self, stream: ExpertStream, halves: Sequence[Half], cancelled: Callable[[], bool]
    ) -> list[bytes]:
        """What `_advance` does, with all experts on the GPU: what it doesn't hold goes through `stream`."""
        for index, layer in enumerate(self._weights):
            if cancelled():
                raise Cancelled("stopped")
            work: list[Dispatch] = []
            for half in halves:
                work += half.lane.attention(layer, half.parts, index, self._window(index), index > 0)
                if index < self._elsewhere:
                    work += [half.lane.choose(layer, len(half.x)), half.lane.sort(len(half.x))]
                else:
                    work += half.lane.experts(layer, len(half.x))
            if index < self._elsewhere:
                stream.run(index, work, partial(_experts_of, halves), cancelled)
            else:
                self.device.run(work, self.device.anything)
        stages = [self._last(half, [], joins=True) for half in halves]
        return [self.device.run(*stage[:2])[0] for stage in stages]

    def _window(self, index: int) -> int:
        return self.config.sliding_window if self.config.is_sliding[self.first + index] else 0

    def logits(self, x: F32Array, out: F32Array) -> None:
        """Write final norm and unembedding of rows x (n, D) to out (n, ≥ V rounded up to 8)."""
        assert self._unembedding
        lane, width = self._lanes[0], round_up(self.config.vocab, 8)
        for first in range(0, len(x), LOGIT_ROWS):
            rows = x[first : first + LOGIT_ROWS]
            lane.load_x(rows)
            work = lane.unembed(self._unembedding, self._final_norm, len(rows), joins=False, last=False)
            (data,) = self.device.run(work, lane.read_logits(len(rows)))
            out[first : first + len(rows), :width] = np.frombuffer(data, np.float32).reshape(-1, width)

    def _caches(self, rows: Rows) -> Sequence[Any]:
        return rows.cache.layers[self.first : self.first + self.count]


def _experts_of(halves: Sequence[Half], part: ExpertPart) -> list[Dispatch]:
    return [work for half in halves for work in half.lane.experts_of(part, len(half.x))]


def _nothing() -> None:
    """What the cores do meanwhile where nothing waits for them."""


class _Caches:
    """What try_out has of a KVCache: the caches of the layers from `first` on."""

    def __init__(self, caches: Sequence[Any], first: int) -> None:
        self.layers = [*[None] * first, *caches]
