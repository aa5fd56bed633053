"""How much memory layers take on a GPU: what GpuLayers allocates, and what a plan adds up."""

from localoss.plan.sizes import CACHE_GROUP, KEYS_AT_ONCE, ArraySize, layer_cache_bytes
from quant.format.config import ModelConfig
from quant.format.layout import round_up

_TOKENS_AT_ONCE = 8
LOGIT_ROWS = 8  # whose logits are computed at once


def tokens_at_once(tokens: int) -> int:
    """How many of `tokens` tokens share a workgroup, which decodes its weights once for all of them."""
    return 1 if tokens == 1 else _TOKENS_AT_ONCE


def most_runs(pairs: int, experts: int, tokens_at_once: int) -> int:
    """Into how many runs of up to `tokens_at_once` so many (token, expert) pairs can fall."""
    return min(pairs, pairs // tokens_at_once + experts)


def gpu_buffer_sizes(config: ModelConfig, tokens: int, unembeds: bool) -> dict[str, ArraySize]:
    """The arrays that a forward pass of up to `tokens` tokens writes on the GPU."""
    pairs = tokens * config.active_experts
    runs = most_runs(pairs, config.experts, tokens_at_once(tokens))
    rows = max(tokens, LOGIT_ROWS)
    logits = LOGIT_ROWS * round_up(config.vocab, 8) if unembeds else 0
    return {
        "x": ArraySize((rows, config.hidden), "float32"),  # the residual stream
        "normed": ArraySize((rows, config.hidden), "float32"),
        "angles": ArraySize((tokens, config.head_dim), "float32"),
        "offsets": ArraySize((offset_blocks(config) + KEYS_AT_ONCE, config.head_dim), "float32"),
        "qkv": ArraySize((tokens, config.qkv_rows), "float32"),
        "attended": ArraySize((tokens, config.q_rows), "float32"),
        "router_logits": ArraySize((tokens, round_up(config.experts, 8)), "float32"),
        "expert_ids": ArraySize((tokens, config.active_experts), "int32"),
        "expert_weights": ArraySize((tokens, config.active_experts), "float32"),
        "sources": ArraySize((pairs,), "int32"),
        "places": ArraySize((tokens, config.active_experts), "int32"),
        "runs": ArraySize((runs, 4), "int32"),
        "h": ArraySize((pairs, config.intermediate), "float32"),
        "y": ArraySize((pairs, config.hidden), "float32"),
        "logits": ArraySize((logits,), "float32"),
    }


def offset_blocks(config: ModelConfig) -> int:
    """How many blocks of KEYS_AT_ONCE positions a context has: the rows of rope.Rope.offsets."""
    return config.context // KEYS_AT_ONCE + 1


def gpu_cache_bytes(config: ModelConfig, slots: int, kv_dtype: str) -> int:
    """Of one layer and conversation; as many numbers as the CPU's cache has, int8's scales in whole words."""
    if kv_dtype != "int8":
        return layer_cache_bytes(config, slots, kv_dtype)
    return slots * config.kv_heads * (2 * config.head_dim + 4 * sum(extra_words(config)))


def extra_words(config: ModelConfig) -> tuple[int, int, int]:
    """What an int8 cache has of a head and position besides the codes, in words of 4 bytes.

    The keys' low bits, the scales of the key's groups, and those of the value's.
    """
    groups = -(-config.head_dim // CACHE_GROUP)
    return groups, -(-groups // 4), -(-groups // 4)
