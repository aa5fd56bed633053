"""How much memory layers take on a GPU: what GpuLayers allocates, and what a plan adds up."""

from typing import NamedTuple

from localoss.plan.sizes import CACHE_GROUP, KEYS_AT_ONCE, ArraySize, layer_cache_bytes
from quant.format.config import ModelConfig
from quant.format.layout import round_up

_TOKENS_AT_ONCE = 8
LOGIT_ROWS = 8  # whose logits are computed at once
# From so many tokens on a pass goes in two halves where experts run elsewhere: the GPU computes one half's
# attention while the cores run the other half's experts. With fewer, both would read the same experts.
TWO_LANES = 16
_STREAMED_BYTES = 32 << 20  # of experts that go to the GPU at a time: enough that a submit takes little of it
_STREAMED_SHARE = 8  # experts are brought where an eighth of the layers or more have them elsewhere


def lane_tokens(tokens: int, elsewhere: int) -> list[int]:
    """How many tokens each lane holds of a pass of up to `tokens`: one lane or two halves."""
    if not elsewhere or tokens < TWO_LANES:
        return [tokens]
    return [max(tokens - tokens // 2, TWO_LANES - 1), tokens // 2]


def streams(config: ModelConfig, tokens: int, elsewhere: int) -> bool:
    """Whether passes of up to `tokens` may be long enough to bring to the GPU what experts are elsewhere, and
    these are so many that the buffers for it are worth more than one more layer's experts there.
    """
    return elsewhere * _STREAMED_SHARE >= config.layers and tokens >= TWO_LANES


def streamed_experts(experts: int, run_bytes: int) -> int:
    """How many of a layer's experts, run_bytes each, go to the GPU at a time; see gpu/streaming.py."""
    return max(min(_STREAMED_BYTES // run_bytes, -(-experts // 2)), 1)


def stream_bytes(config: ModelConfig, run_bytes: int) -> int:
    """Of the two buffers on the GPU that experts go through, and as much of this machine's memory."""
    return 2 * streamed_experts(config.experts, run_bytes) * run_bytes


def tokens_at_once(tokens: int) -> int:
    """How many of `tokens` tokens share a workgroup, which decodes its weights once for all of them."""
    return 1 if tokens == 1 else _TOKENS_AT_ONCE


def most_runs(pairs: int, experts: int, tokens_at_once: int) -> int:
    """Into how many runs of up to `tokens_at_once` so many (token, expert) pairs can fall."""
    return min(pairs, pairs // tokens_at_once + experts)


def gpu_buffer_sizes(config: ModelConfig, tokens: int, unembeds: bool, here: int) -> dict[str, ArraySize]:
    """The arrays that a forward pass of up to `tokens` tokens writes on the GPU.

    here: of how many layers it runs experts there.
    """
    pairs = tokens * config.active_experts if here else 0
    runs = most_runs(pairs, config.experts, tokens_at_once(tokens))
    rows = max(tokens, LOGIT_ROWS)
    logits = LOGIT_ROWS * round_up(config.vocab, 8) if unembeds else 0
    return {
        "x": ArraySize((rows, config.hidden), "float32"),  # the residual stream
        "normed": ArraySize((rows, config.hidden), "float32"),
        "angles": ArraySize((tokens, config.head_dim), "float32"),
        "qkv": ArraySize((tokens, config.qkv_rows), "float32"),
        "attended": ArraySize((tokens, config.q_rows), "float32"),
        "router_logits": ArraySize((tokens, round_up(config.experts, 8)), "float32"),
        "expert_ids": ArraySize((tokens, config.active_experts), "int32"),
        "expert_weights": ArraySize((tokens, config.active_experts), "float32"),
        "sources": ArraySize((tokens * config.active_experts,), "int32"),
        "places": ArraySize((tokens, config.active_experts), "int32"),
        "runs": ArraySize((max(runs, config.active_experts), 4), "int32"),
        "h": ArraySize((pairs, config.intermediate), "float32"),
        "y": ArraySize((pairs, config.hidden), "float32"),
        "logits": ArraySize((logits,), "float32"),
    }


def offsets_size(config: ModelConfig) -> ArraySize:
    """rope.Rope.offsets, on the GPU."""
    return ArraySize((offset_blocks(config) + KEYS_AT_ONCE, config.head_dim), "float32")


class TokenTraffic(NamedTuple):
    """What a decoded token takes of the bus: submits, each with a read-back, and bytes there and back."""

    submits: int
    written_bytes: int
    read_bytes: int


def token_traffic(config: ModelConfig, elsewhere: int, unembeds: bool) -> TokenTraffic:
    """Of a token through layers of which `elsewhere` have their experts in this machine's memory.

    Such a layer gives x, each expert's number and its weight, and gets x with the experts added. A token
    comes as x and the angles of its position, and leaves as logits or x.
    """
    x, uniforms = 4 * config.hidden, 2 * 16  # the pass's, and its sequence's
    chosen = x + 8 * config.active_experts
    end = 4 * round_up(config.vocab, 8) if unembeds else x
    written = x + 4 * config.head_dim + uniforms + elsewhere * x
    return TokenTraffic(elsewhere + 1, written, elsewhere * chosen + end)


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
