"""What a pass writes on the GPU, and a layer's dispatches over it, as localoss/kernels/layer.py has them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from localoss.gpu.cache import GpuLayerCache
from localoss.gpu.device import Device, Dispatch, Kernel, Reading
from localoss.gpu.kernels import Kernels
from localoss.gpu.weights import ExpertPart, GpuLayer, GpuMatrix
from localoss.model.stack import Rows
from localoss.plan.gpu_sizes import most_runs, tokens_at_once
from localoss.plan.sizes import ArraySize
from quant.format.config import ModelConfig
from quant.format.layout import round_up

F32Array = NDArray[np.float32]


class Part(NamedTuple):
    """Rows of one sequence in a pass, and its caches of the layers here."""

    tokens: int
    caches: Sequence[GpuLayerCache]


class Lane:
    """Buffers for a pass of up to so many tokens, and the dispatches that work in them.

    Bind groups are kept, those with a KV cache by the cache: making one takes ten times as long as using it.
    """

    def __init__(
        self, device: Device, config: ModelConfig, kernels: Kernels, sizes: dict[str, ArraySize], offsets: Any
    ):
        """sizes: gpu_sizes.gpu_buffer_sizes. offsets: rope.Rope.offsets, which all lanes share."""
        self.device, self.config, self._kernels = device, config, kernels
        self.at = {name: device.buffer(size.nbytes) for name, size in sizes.items()} | {"offsets": offsets}
        self._batch = device.uniform(0, 0, 0, 0)
        self._zeros = device.uniform(0, 0, 0, 0)
        self._rows: list[Any] = []  # a uniform for each sequence of a pass
        self._bound: dict[Any, Any] = {}

    def load(self, x: F32Array, rows: Sequence[Rows]) -> None:
        """Copy what a pass begins with: x (T, D), angles and positions. rows: from row 0 on, no gaps."""
        self.load_x(x)
        angles = [np.stack([part.cos, part.sin], axis=-1) for part in rows]
        self.device.write(self.at["angles"], angles[0] if len(angles) == 1 else np.concatenate(angles))
        for number, part in enumerate(rows):
            if number == len(self._rows):
                self._rows.append(self.device.uniform(0, 0, 0, 0))
            where = np.array([part.tokens, part.position, part.first, 0], np.uint32)
            self.device.write(self._rows[number], where)

    def load_x(self, x: F32Array) -> int:
        """Copy x (T, D) alone, as for logits of it. Gives T."""
        tokens = len(x)
        self.device.write(self.at["x"], x)
        self.device.write(self._batch, np.array([tokens, 0, tokens - 1, self._runs(tokens)], np.uint32))
        return tokens

    def attention(
        self, layer: GpuLayer, parts: Sequence[Part], index: int, window: int, joins: bool
    ) -> list[Dispatch]:
        """x += attention of it, and the router's logits; norm(x) is in normed then, but not a lone token's,
        which products make of x on the way.

        index: of the layer among the parts' caches. window: of its attention, 0 for all positions. joins:
        whether x is without what the experts of the layer before gave: see `experts`.
        """
        tokens = sum(part.tokens for part in parts)
        work = self._normed_product(layer.attention_norm, layer.qkv, "qkv", tokens, joins)
        for part, rows in zip(parts, self._rows, strict=False):
            work += self._attend(layer, part.caches[index], part.tokens, window, rows)
        work += self._product(layer.output, "attended", "x", tokens, adding=True)
        return [*work, *self._normed_product(layer.mlp_norm, layer.router, "router_logits", tokens)]

    def _attend(
        self, layer: GpuLayer, cache: GpuLayerCache, tokens: int, window: int, rows: Any
    ) -> list[Dispatch]:
        """Attention of one sequence's rows, whose keys and values go to its cache: one token's in one go."""
        at, kernels, heads = self.at, self._kernels, self.config.heads
        kept, offsets = cache.buffers, [layer.qkv.bias, at["offsets"]]
        attend = kernels.attend(cache.slots, window, tokens == 1)
        if tokens == 1:
            attending = [at["qkv"], *kept, *offsets, at["angles"], at["attended"], rows]
            return [self._dispatch(attend, attending, heads, 1, cache.bound)]
        rotating = [at["qkv"], at["angles"], *kept, *offsets, rows]
        attending = [at["qkv"], *kept, *offsets, at["attended"], rows]
        all_heads, rotate = heads + 2 * self.config.kv_heads, kernels.rotate(cache.slots)
        return [
            self._dispatch(rotate, rotating, all_heads, tokens, cache.bound),
            self._dispatch(attend, attending, heads, tokens, cache.bound),
        ]

    def choose(self, layer: GpuLayer, tokens: int) -> Dispatch:
        """Each token's experts by the router's logits, to expert_ids and expert_weights."""
        at = self.at
        choosing = [at["router_logits"], layer.router_bias, at["expert_ids"], at["expert_weights"]]
        return self._dispatch(self._kernels.route(), choosing, tokens)

    def experts(self, layer: GpuLayer, tokens: int) -> list[Dispatch]:
        """What each token's experts give: a lone token's, whose products choose them themselves, is added to
        x, else it is in y for the next norm.
        """
        at, kernels, config = self.at, self._kernels, self.config
        if tokens == 1:
            router = [at["router_logits"], layer.router_bias]
            ends, more = [at["x"], at["h"], *router], [layer.mlp_norm]
            groups = config.intermediate // 4
            work = self._of_experts(
                kernels.gate_up(1), layer.experts, ends, more, groups, config.active_experts
            )
            ends = [at["h"], at["x"], *router]
            return [*work, *self._of_experts(kernels.down(1), layer.experts, ends, [], config.hidden // 8, 1)]
        work = [self.choose(layer, tokens), self.sort(tokens)]
        for kernel, ends, groups in self._of_sorted(tokens):
            work += self._of_experts(kernel, layer.experts, ends, [], groups, self._runs(tokens))
        return work

    def sort(self, tokens: int) -> Dispatch:
        """Put the tokens of each expert side by side, by expert_ids."""
        at = self.at
        buffers = [at["expert_ids"], at["sources"], at["places"], at["runs"], self._batch]
        return self._dispatch(self._kernels.sort(tokens_at_once(tokens)), buffers, 1)

    def experts_of(self, part: ExpertPart, tokens: int) -> list[Dispatch]:
        """What the experts of one part give those tokens that chose them, in y: after `choose` and `sort`."""
        work = []
        for kernel, ends, groups in self._of_sorted(tokens):
            work += self._of_experts(kernel, [part], ends, [], groups, self._runs(tokens))
        return work

    def _of_sorted(self, tokens: int) -> list[tuple[Kernel, list[Any], int]]:
        """Both products of sorted tokens: the kernel, what it binds besides the weights, and row groups."""
        at, kernels, once = self.at, self._kernels, tokens_at_once(tokens)
        order = [at["runs"], at["sources"]]
        return [
            (kernels.gate_up(once), [at["normed"], at["h"], *order], self.config.intermediate // 4),
            (kernels.down(once), [at["h"], at["y"], *order], self.config.hidden // 8),
        ]

    def _runs(self, tokens: int) -> int:
        return most_runs(tokens * self.config.active_experts, self.config.experts, tokens_at_once(tokens))

    def _of_experts(
        self,
        kernel: Kernel,
        parts: Sequence[ExpertPart],
        ends: list[Any],
        more: list[Any],
        groups: int,
        runs: int,
    ) -> list[Dispatch]:
        """`kernel` over each part of a layer's experts. ends: what it binds after codes and scales."""
        return [
            self._dispatch(kernel, [part.runs, part.runs, *ends, part.which, *more], groups, runs)
            for part in parts
        ]

    def norm(self, weight: Any, tokens: int, joins: bool = False, last: bool = False) -> Dispatch:
        """x, with what y has of experts if it joins it, to normed; or only the last row of the pass."""
        at = self.at
        rows = self._batch if last else self._zeros
        buffers = [at["x"], at["y"], at["places"], at["expert_weights"], weight, at["normed"], rows]
        return self._dispatch(self._kernels.norm(joins), buffers, tokens)

    def _normed_product(
        self, weight: Any, matrix: GpuMatrix, target: str, tokens: int, joins: bool = False
    ) -> list[Dispatch]:
        """`matrix` times norm(x): of a lone token in one go, since its x needs no more than reading."""
        if tokens == 1:
            return self._product(matrix, "x", target, 1, normed=weight)
        return [self.norm(weight, tokens, joins), *self._product(matrix, "normed", target, tokens)]

    def unembed(self, matrix: GpuMatrix, weight: Any, rows: int, joins: bool, last: bool) -> list[Dispatch]:
        """Logits of `rows` rows of x, from the first or from the pass's last on, with the final norm."""
        return [
            self.norm(weight, rows, joins, last),
            *self._product(matrix, "normed", "logits", rows),
        ]

    def read_chosen(self, tokens: int) -> list[Reading]:
        """Where each token's experts are, their weights, and x: what experts elsewhere are given."""
        pairs = 4 * tokens * self.config.active_experts
        chosen = [(self.at[name], 0, pairs) for name in ("expert_ids", "expert_weights")]
        return [*chosen, *self.read_x(tokens)]

    def read_x(self, tokens: int) -> list[Reading]:
        return [(self.at["x"], 0, 4 * tokens * self.config.hidden)]

    def read_logits(self, rows: int) -> list[Reading]:
        return [(self.at["logits"], 0, 4 * rows * round_up(self.config.vocab, 8))]

    def _product(
        self,
        matrix: GpuMatrix,
        source: str,
        target: str,
        tokens: int,
        adding: bool = False,
        normed: Any = None,
    ) -> list[Dispatch]:
        """normed: the weight of a norm that a lone token goes through first."""
        kernel = self._kernels.matmul(matrix, adding, tokens_at_once(tokens), normed is not None)
        more = [] if normed is None else [normed]
        bias = matrix.bias or self.device.upload(None)
        ends = [bias, self.at[source], self.at[target], self._batch]
        return [
            self._dispatch(
                kernel,
                [part.codes, part.scales, *ends, part.which, *more],
                part.groups,
                -(-tokens // tokens_at_once(tokens)),
            )
            for part in matrix.parts
        ]

    def _dispatch(
        self,
        kernel: Kernel,
        buffers: Sequence[Any],
        x: int,
        y: int = 1,
        bound: dict[Any, Any] | None = None,
    ) -> Dispatch:
        kept = self._bound if bound is None else bound
        key = (id(kernel), *map(id, buffers))  # all of them live as long as what keeps the bind group
        if key not in kept:
            kept[key] = self.device.bind(kernel, buffers)
        return Dispatch(kernel, kept[key], x, y)
