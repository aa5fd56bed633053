"""How large everything is that the engine allocates, from the architecture alone.

What allocates takes its shapes from here, so that a plan made from these sizes cannot differ from what comes.
No Numba: a plan should come at once.
"""

from math import prod
from typing import NamedTuple

from quant.format.config import ModelConfig
from quant.format.layout import round_up
from quant.format.weight_formats import TILE_COLUMNS, WEIGHT_FORMATS

# Constants of the kernels that sizes follow from.
KEY_LANES = 16  # positions whose keys lie side by side
KEYS_AT_ONCE = 64  # positions whose scores attention holds at a time
CACHE_GROUP = 16  # numbers of a key or value that share a scale in an int8 cache
QUERIES_AT_ONCE = 8  # query positions that share a pass over the keys
PANEL = 8  # row groups that a thread of a matrix product takes at once
TOKENS_AT_ONCE = 64  # whose sums stay in the first-level cache
TILE_SCRATCH_BYTES = 32 * 8 * 4  # a tile decoded to float32
PAIR_SCRATCH_BYTES = 64 * TOKENS_AT_ONCE  # sums of two row groups
SUMS_BYTES = 32 * PANEL * TOKENS_AT_ONCE
SCRATCH_BYTES = TILE_SCRATCH_BYTES + PAIR_SCRATCH_BYTES + SUMS_BYTES  # per thread of a product
MOST_DRAFT_TOKENS = 15  # tokens that are run along with one, where prompt_lookup.py guesses
DRAFT_BYTES = 165  # a token of the conversation takes in prompt_lookup.py, measured with tracemalloc
READERS = 4  # threads that read experts from the disk: enough for its full bandwidth, docs/120b.md
PASS_TOKENS = 4096  # of a pass whose experts come from the disk: each layer is read once for all of them
WAITING_PASSES = 2  # that may stop between two layers at once: one of a long prompt, one of short ones
MOST_SNAPSHOTS = 12  # of a conversation: 3 MB each in gpt-oss-20b at f16

# float16 as its bits: Numba has no half type.
KV_NUMPY_DTYPES = {"f16": "uint16", "f32": "float32", "int8": "int8"}
_ITEM_BYTES = {"int8": 1, "uint8": 1, "uint16": 2, "int32": 4, "float32": 4, "int64": 8}


class ArraySize(NamedTuple):
    """An array's shape and NumPy dtype."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * _ITEM_BYTES[self.dtype]


def buffer_sizes(
    config: ModelConfig, tokens: int, threads: int, exact_experts: bool, pass_tokens: int = 0
) -> dict[str, ArraySize]:
    """The arrays that a forward pass writes on its way: of up to `tokens` tokens, or of up to pass_tokens
    which go through each layer `tokens` at a time.
    """
    pairs = tokens * config.active_experts
    columns = max(config.hidden, config.q_rows)
    codes = max(pairs * config.hidden, tokens * columns)
    attention = attention_scratch_floats(config.heads // config.kv_heads, config.head_dim)
    h = pairs * config.intermediate
    return {
        "x": ArraySize((max(tokens, pass_tokens), config.hidden), "float32"),  # the residual stream
        "qkv": ArraySize((tokens, config.qkv_rows), "float32"),
        "blocks": ArraySize((tokens * columns,), "float32"),  # a matmul's input, block by block
        "codes": ArraySize((codes,), "int8"),  # the same, quantized
        "scales": ArraySize((codes // 32,), "float32"),
        "router_logits": ArraySize((tokens, round_up(config.experts, 8)), "float32"),
        "expert_ids": ArraySize((tokens, config.active_experts), "int32"),
        "expert_weights": ArraySize((tokens, config.active_experts), "float32"),
        "starts": ArraySize((config.experts + 1,), "int64"),
        "active": ArraySize((config.experts,), "int32"),
        "sources": ArraySize((pairs,), "int32"),
        "places": ArraySize((tokens, config.active_experts), "int32"),
        "h": ArraySize((h,), "float32" if exact_experts else "int8"),
        "h_scales": ArraySize((h // 32,), "float32"),
        "gathered": ArraySize((pairs * config.hidden if exact_experts else 0,), "float32"),
        "y": ArraySize((pairs, config.hidden), "float32"),
        "in_order": ArraySize((tokens,), "int32"),  # 0, 1, 2, …
        "counter": ArraySize((1,), "int64"),
        "scratch": ArraySize((threads * SCRATCH_BYTES,), "uint8"),
        "attention_scratch": ArraySize((threads, attention), "float32"),
    }


def attention_scratch_floats(heads_per_key: int, head_dim: int) -> int:
    """Scratch per thread: queries, results, scores, each row's maximum and sum, and a block that an int8
    cache's keys and values are decoded to, with the offset of these keys.
    """
    rows = round_up(QUERIES_AT_ONCE * heads_per_key, 8)
    return rows * (2 * head_dim + KEYS_AT_ONCE + 2) + (2 * KEYS_AT_ONCE + 1) * head_dim


def layer_slots(config: ModelConfig, context_tokens: int, chunk_tokens: int) -> list[int]:
    """How many positions each layer's KV cache holds."""
    full = round_up(context_tokens, KEYS_AT_ONCE)
    # A chunk's first token still sees its window after the chunk's last token is written.
    ring = min(round_up(config.sliding_window + chunk_tokens, KEYS_AT_ONCE), full)
    return [ring if sliding else full for sliding in config.is_sliding]


def layer_cache_sizes(config: ModelConfig, slots: int, kv_dtype: str) -> tuple[ArraySize, ...]:
    """A layer's keys, values, and what int8 has besides: kernels/attention.py says how they lie."""
    heads, dim, dtype = config.kv_heads, config.head_dim, KV_NUMPY_DTYPES[kv_dtype]
    coded, groups = slots if kv_dtype == "int8" else 0, -(-dim // CACHE_GROUP)
    return (
        ArraySize((heads, slots // KEY_LANES, dim, KEY_LANES), dtype),
        ArraySize((heads, slots, dim), dtype),
        ArraySize((heads, coded // KEY_LANES, dim // 4, KEY_LANES), "uint8"),
        ArraySize((heads, coded // KEY_LANES, groups, KEY_LANES), "uint8"),
        ArraySize((heads, coded, groups), "uint8"),
    )


def snapshot_bytes(config: ModelConfig, kv_dtype: str) -> int:
    """What the rings keep of one window, as a snapshot of sequence.py holds it."""
    keys_at_once = layer_cache_bytes(config, KEYS_AT_ONCE, kv_dtype)
    return sum(config.is_sliding) * config.sliding_window * keys_at_once // KEYS_AT_ONCE


def layer_cache_bytes(config: ModelConfig, slots: int, kv_dtype: str) -> int:
    return sum(array.nbytes for array in layer_cache_sizes(config, slots, kv_dtype))


def embedding_scale_bytes(config: ModelConfig, dtype: str) -> int:
    """What of the embedding isn't left to the page cache where experts come from the disk."""
    return config.vocab * config.hidden // TILE_COLUMNS * WEIGHT_FORMATS[dtype].scale_bytes


def kv_cache_bytes(config: ModelConfig, context_tokens: int, chunk_tokens: int, kv_dtype: str) -> int:
    """Bytes of one conversation's KV cache."""
    slots = layer_slots(config, context_tokens, chunk_tokens)
    return sum(layer_cache_bytes(config, count, kv_dtype) for count in slots)


def lookup_bytes(config: ModelConfig, context_tokens: int) -> int:
    """What guessing takes: logits of the guessed tokens, and where each run of tokens came last."""
    return (1 + MOST_DRAFT_TOKENS) * 4 * round_up(config.vocab, 8) + DRAFT_BYTES * context_tokens


def waiting_passes(slots: int) -> int:
    """How many passes may stop between two layers: one sequence has nobody to wait for."""
    return WAITING_PASSES if slots > 1 else 0


def waiting_bytes(config: ModelConfig, slots: int, tokens: int) -> int:
    """Of what these keep meanwhile: the residual stream of up to `tokens` tokens each."""
    return waiting_passes(slots) * tokens * config.hidden * 4


def samplers(slots: int, threads: int) -> int:
    """How many sequences draw a token at once."""
    return min(slots, threads)


def logits_bytes(config: ModelConfig, slots: int, threads: int) -> int:
    """Of a decoded token's logits in each slot, and each sampler's two rows."""
    return (slots + 2 * samplers(slots, threads)) * 4 * round_up(config.vocab, 8)
