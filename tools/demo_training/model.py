"""gpt-oss in torch, small: the same arithmetic as localoss/model/forward.py, with gradients.

T tokens, D hidden, H heads, K key/value heads, E experts, A active experts, I intermediate, R known tokens.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localoss.model.rope import Rope
from quant.format.config import SWIGLU_ALPHA, ModelConfig
from tools.demo_training.batches import Batch

Round = Callable[[Tensor], Tensor]


class Places:
    """Where the tokens of a batch stand: angles of each, and who may attend to whom in each kind of layer."""

    def __init__(self, batch: Batch, config: ModelConfig) -> None:
        lengths, which = torch.from_numpy(batch.prefix_lengths), torch.from_numpy(batch.which)
        self.prefix_shape, self.row_shape = batch.prefixes.shape, batch.rows.shape
        self.which = which
        ahead = torch.arange(self.prefix_shape[1])
        own = lengths[which, None] + torch.arange(self.row_shape[1])  # (N, L)
        positions = torch.cat([ahead.repeat(self.prefix_shape[0]), own.flatten()])
        cos, sin = Rope(config).at(0, int(positions.max()) + 1)
        self.cos, self.sin = (torch.from_numpy(table)[positions, None] for table in (cos, sin))
        before = ahead.expand(len(which), -1).masked_fill(ahead >= lengths[which, None], 1 << 30)
        keys = torch.cat([before, own], 1)
        self._prefix_gaps, self._row_gaps = ahead[:, None] - ahead, own[:, :, None] - keys[:, None]
        self._masks: dict[int | None, tuple[Tensor, Tensor]] = {}

    def masks(self, window: int | None) -> tuple[Tensor, Tensor]:
        """Additive masks, (S, 1, S + 1) and (N, 1, L, 1, S + L + 1): 0 where one may look, else -inf.

        The last key is the sink, which every query may look at.
        """
        if window not in self._masks:
            self._masks[window] = _mask(self._prefix_gaps, window), _mask(self._row_gaps, window)[:, None]
        return self._masks[window]


def _mask(gaps: Tensor, window: int | None) -> Tensor:
    allowed = gaps >= 0 if window is None else (gaps >= 0) & (gaps < window)
    mask = torch.zeros(gaps.shape).masked_fill_(~allowed, -math.inf)
    return F.pad(mask, (0, 1)).unsqueeze(-2)


class Norm(nn.Module):
    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(hidden)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, window: int | None) -> None:
        super().__init__()
        self.config, self.window = config, window
        self.q_proj = nn.Linear(config.hidden, config.q_rows)
        self.k_proj = nn.Linear(config.hidden, config.kv_rows)
        self.v_proj = nn.Linear(config.hidden, config.kv_rows)
        self.o_proj = nn.Linear(config.q_rows, config.hidden)
        self.sinks = nn.Parameter(torch.zeros(config.heads))

    def forward(self, x: Tensor, places: Places) -> Tensor:
        c = self.config
        q = _rotate(self.q_proj(x).view(-1, c.heads, c.head_dim), places)
        k = _rotate(self.k_proj(x).view(-1, c.kv_heads, c.head_dim), places)
        v = self.v_proj(x).view(-1, c.kv_heads, c.head_dim)
        ahead = places.prefix_shape[0] * places.prefix_shape[1]
        (pq, rq), (pk, rk), (pv, rv) = (
            (t[:ahead].unflatten(0, places.prefix_shape), t[ahead:].unflatten(0, places.row_shape))
            for t in (q, k, v)
        )
        prefix_mask, row_mask = places.masks(self.window)
        of_prefixes = self._attend(pq, pk, pv, prefix_mask)
        keys = torch.cat([pk[places.which], rk], 1)
        values = torch.cat([pv[places.which], rv], 1)
        of_rows = self._attend(rq, keys, values, row_mask)
        return self.o_proj(torch.cat([of_prefixes.flatten(0, 1), of_rows.flatten(0, 1)]))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q (N, L, H, d), k and v (N, M, K, d), mask (..., L, 1, M + 1) -> (N, L, H * d).

        The sink is one more key, which only meets one more component of the queries, and has no value.
        """
        (n, length, heads, dim), kv_heads = q.shape, k.shape[2]
        q = torch.cat([q * dim**-0.5, self.sinks[:, None].expand(n, length, heads, 1)], -1)
        q = q.view(n, length, kv_heads, -1).transpose(1, 2).reshape(n, kv_heads, -1, dim + 1)
        k, v = F.pad(k, (0, 1, 0, 0, 0, 1)), F.pad(v, (0, 0, 0, 0, 0, 1))
        k[:, -1, :, -1] = 1
        scores = (q @ k.permute(0, 2, 3, 1)).view(n, kv_heads, length, heads // kv_heads, -1)
        weights = scores.add_(mask).softmax(-1).view(n, kv_heads, -1, k.shape[1])
        out = weights @ v.transpose(1, 2)
        return out.view(n, kv_heads, length, -1).transpose(1, 2).reshape(n, length, heads * dim)


def _rotate(x: Tensor, places: Places) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * places.cos - second * places.sin, second * places.cos + first * places.sin], -1)


class Experts(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        e, d, i = config.experts, config.hidden, config.intermediate
        self.limit = config.swiglu_limit
        self.gate_up_proj = nn.Parameter(torch.empty(e, d, 2 * i))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(e, 2 * i))
        self.down_proj = nn.Parameter(torch.empty(e, i, d))
        self.down_proj_bias = nn.Parameter(torch.zeros(e, d))

    def forward(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor, rounding: Round) -> Tensor:
        """x (T, D), expert_ids and expert_weights (T, A) -> (T, D). Tokens are sorted by expert."""
        order = expert_ids.flatten().argsort()
        sources = order // expert_ids.shape[1]
        counts = expert_ids.flatten().bincount(minlength=len(self.down_proj)).tolist()
        gate_up, biases = (_apart(w) for w in (rounding(self.gate_up_proj), self.gate_up_proj_bias))
        gate, up = _by_expert(x[sources], counts, gate_up, biases).chunk(2, -1)
        # gate has come multiplied by alpha, so gate * sigmoid(alpha * gate) is silu(gate) / alpha.
        h = F.silu(gate.clamp(max=self.limit * SWIGLU_ALPHA))
        h = torch.addcmul(h, h, up.clamp(-self.limit, self.limit))
        y = _by_expert(h, counts, rounding(self.down_proj) / SWIGLU_ALPHA, self.down_proj_bias)
        y = y * expert_weights.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, sources, y)


def _apart(weights: Tensor) -> Tensor:
    """Columns gate, up, gate, up ... as all gates, times alpha, and then all ups."""
    return torch.cat([weights[..., ::2] * SWIGLU_ALPHA, weights[..., 1::2]], -1)


def _by_expert(x: Tensor, counts: list[int], weights: Tensor, biases: Tensor) -> Tensor:
    parts = [torch.addmm(b, part, w) for part, w, b in zip(x.split(counts), weights, biases, strict=True)]
    return torch.cat(parts)


class Mixture(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.active = config.active_experts
        self.router, self.experts = nn.Linear(config.hidden, config.experts), Experts(config)

    def forward(self, x: Tensor, rounding: Round) -> tuple[Tensor, Tensor]:
        """The experts' sum, and how unevenly they are used: 1 when each is used alike."""
        logits = self.router(x)
        top, ids = logits.topk(self.active)
        used = F.one_hot(ids, logits.shape[1]).sum((0, 1)) / ids.numel()
        unevenness = (used * logits.softmax(-1).mean(0)).sum() * logits.shape[1]
        return self.experts(x, ids, top.softmax(-1), rounding), unevenness


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, window: int | None) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.hidden, config.rms_norm_eps)
        self.self_attn = Attention(config, window)
        self.post_attention_layernorm = Norm(config.hidden, config.rms_norm_eps)
        self.mlp = Mixture(config)


class GptOss(nn.Module):
    """The whole model, over the reduced vocabulary: parameters are named as in a published checkpoint."""

    def __init__(self, config: ModelConfig, known_tokens: int) -> None:
        super().__init__()
        self.config = config
        windows = [config.sliding_window if sliding else None for sliding in config.is_sliding]
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(known_tokens + 1, config.hidden)
        self.model.layers = nn.ModuleList(Layer(config, window) for window in windows)
        self.model.norm = Norm(config.hidden, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden, known_tokens + 1, bias=False)
        # The last row stands for all tokens but `known_tokens`: together they are that many times as likely.
        offset = torch.zeros(known_tokens + 1)
        offset[-1] = math.log(config.vocab - known_tokens)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, batch: Batch, rounding: Round = lambda w: w) -> tuple[Tensor, Tensor]:
        """The rows' residual stream (N, L, D) after the final norm, and the experts' unevenness."""
        tokens = torch.cat([torch.from_numpy(t).flatten() for t in (batch.prefixes, batch.rows)])
        places = Places(batch, self.config)
        x: Tensor = self.model.embed_tokens(tokens)  # type: ignore[operator, assignment]
        total: Any = 0.0
        for layer in self.model.layers:  # type: ignore[union-attr]
            x = x + layer.self_attn(layer.input_layernorm(x), places)
            y, unevenness = layer.mlp(layer.post_attention_layernorm(x), rounding)
            x, total = x + y, total + unevenness
        rows = x[batch.prefixes.size :].unflatten(0, places.row_shape)
        return self.model.norm(rows), total / self.config.layers  # type: ignore[operator]

    def logits(self, x: Tensor) -> Tensor:
        return self.lm_head(x) + self.offset
