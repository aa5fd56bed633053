"""Weights to begin with, so that copying is easy to learn: it is most of what the demo model has to do.

Tokens that are spelled alike begin alike, in and out; a head gives back a part of what it looks at; heads
prefer certain distances from the start. All of it is free to change from the first step on.
"""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from localoss.chat import harmony
from tools.demo_training.model import GptOss

_EMBEDDING_STD = 0.5
_UNEMBEDDING_STD = 0.08
_OWN_SHARE = 0.35  # of a row's variance; the rest comes from its spelling
_COPYING = 0.25  # how much of what it looks at a head gives back
_DISTANCE_STD = 0.5


@torch.no_grad()
def begin(model: GptOss, token_ids: Sequence[int]) -> None:
    """Set all weights of `model`. torch's random state decides what is drawn."""
    c = model.config
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and not name.endswith("bias"):
            nn.init.normal_(weight, std=1 / math.sqrt(c.hidden))
        if name.endswith("down_proj"):
            weight.mul_(0.5 / math.sqrt(c.layers))
        if name.endswith(("q_proj.bias", "k_proj.bias")):
            nn.init.normal_(weight, std=_DISTANCE_STD)
        if name.endswith("o_proj.weight"):
            _give_back(weight, model.get_parameter(name.replace("o_proj", "v_proj")), c.head_dim)
    rows = _by_spelling(token_ids, c.hidden)
    model.get_parameter("model.embed_tokens.weight").copy_(rows * _EMBEDDING_STD)
    model.lm_head.weight.copy_(rows * _UNEMBEDDING_STD)


def _give_back(output: Tensor, values: Tensor, head_dim: int) -> None:
    """Each head's part of `output` (D, H * d) becomes its values' transpose; values (K * d, D)."""
    heads, kv_heads = output.shape[1] // head_dim, values.shape[0] // head_dim
    transposed = values.T.unflatten(1, (kv_heads, 1, head_dim)).expand(-1, -1, heads // kv_heads, -1)
    output.copy_(_COPYING * transposed.flatten(1))


def _by_spelling(token_ids: Sequence[int], hidden: int) -> Tensor:
    """Rows (R + 1, D) of variance 1: a part of their own, and parts that they share with like tokens."""
    rows = torch.randn(len(token_ids) + 1, hidden)
    for row, token in enumerate(token_ids):
        features = _features(token)
        if features:
            shared = torch.stack([_vector(feature, hidden) for feature in features]).sum(0)
            share = (1 - _OWN_SHARE) / len(features)
            rows[row].mul_(math.sqrt(_OWN_SHARE)).add_(shared, alpha=math.sqrt(share))
    return rows


def _features(token: int) -> list[str]:
    """A word without what stands before it and without capitals; a number's digits at their places."""
    if token >= harmony.TEXT_TOKENS:
        return []
    text = harmony.token_bytes(token).decode("utf-8", "ignore").strip(" _.").lower()
    if text.isdecimal():
        return [f"digit {digit} of 10^{place}" for place, digit in enumerate(reversed(text))]
    return [f"word {text}"] if text.isalpha() else []


def _vector(feature: str, hidden: int) -> Tensor:
    rng = random.Random(feature)
    return torch.tensor([rng.gauss(0, 1) for _ in range(hidden)])
