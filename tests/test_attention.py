"""Rotary embedding, the cache's layout and attention, against tests/support/naive.py.

A conversation runs in chunks of many sizes through rings that wrap; after each chunk the cache must hold the
rotated keys and the values, and attention must be the naive one over what the cache holds.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from support import naive
from support.tiled import address, from_blocks

from localoss.kernels.attention import attention, routines
from localoss.kernels.kv_store import SCALES, rotate_and_store
from localoss.model.kv_cache import LayerCache
from localoss.plan.sizes import attention_scratch_floats

THREADS = 2
CONCENTRATION = 1.3
GUARD = 2  # tokens of other sequences before and after this one's


@dataclass(frozen=True)
class Shape:
    kv_heads: int
    heads_per_key: int
    head_dim: int
    slots: int
    window: int = 0

    @property
    def heads(self):
        return self.kv_heads * self.heads_per_key


def offsets_of(turns, context):
    """As Rope has them, for other angles a position: `turns` (d/2,)."""
    firsts, steps = np.arange(0, context, 64)[:, None] * turns, turns[:, None] * np.arange(64)
    first = CONCENTRATION * np.stack([np.cos(firsts), np.sin(firsts)], axis=1)
    return first.astype(np.float32), np.stack([np.cos(steps), np.sin(steps)]).astype(np.float32)


class Conversation:
    """A cache, and what was written to it so far as the cache keeps it: keys, values (n, K, head_dim)."""

    def __init__(self, shape, dtype, seed=0, biased=False):
        """biased: keys have their bias, of which each head has a channel around 90, in them."""
        self.biased = biased
        self.shape, self.dtype, self.rng = shape, dtype, np.random.RandomState(seed)
        k, d = shape.kv_heads, shape.head_dim
        self.cache = LayerCache(shape, shape.slots, dtype)
        self.values = self.cache.arrays[1]
        self.sinks = self.rng.standard_normal(shape.heads).astype(np.float32) * 2
        self.written_keys = self.written_values = np.zeros((0, k, d))
        self.turns = 1e4 ** -np.linspace(0, 1, d // 2)
        key_bias = 3 * self.rng.standard_normal((k, d)).astype(np.float32)
        key_bias[:, d // 4] *= 30
        self.offsets = (key_bias, *offsets_of(self.turns, 1000))
        self.scratch = np.empty((THREADS, attention_scratch_floats(shape.heads_per_key, d)), np.float32)

    def run(self, tokens, scale=1.0):
        """Store and attend `tokens` random tokens; gives kernel's and naive results (tokens, H, d)."""
        shape, position = self.shape, len(self.written_keys)
        k, d, heads = shape.kv_heads, shape.head_dim, shape.heads
        qkv = scale * self.rng.standard_normal((tokens, heads + 2 * k, d)).astype(np.float32)
        if self.biased:
            qkv[:, heads:-k] += self.offsets[0]
        before = qkv.astype(np.float64)
        angles = self.rng.uniform(0, 7, (tokens, d // 2)).astype(np.float32)
        cos, sin = np.cos(angles), np.sin(angles)
        if self.biased:  # else it turns them as no model does, which only the bias is known to
            angles = np.arange(position, position + tokens)[:, None] * self.turns
            cos, sin = (np.float32(CONCENTRATION * f(angles)) for f in (np.cos, np.sin))
        shared, storing, attending, block = routines(self.dtype)
        rotate_and_store(
            qkv.reshape(tokens, -1),
            self.cache.arrays,
            cos,
            sin,
            self.offsets,
            position,
            heads,
            THREADS,
            (shared, storing),
        )
        self._check_stored(qkv, before, cos, sin)

        out = np.full((heads * d // 32, tokens + 2 * GUARD, 32), np.nan, np.float32)
        counter = np.zeros(1, np.int64)
        attention(
            out,
            GUARD,
            qkv.reshape(tokens, -1),
            self.cache.arrays,
            self.offsets,
            self.sinks,
            position,
            shape.window,
            self.scratch,
            address(counter),
            (shared, attending, block),
        )
        assert np.isnan(out[:, :GUARD]).all() and np.isnan(out[:, -GUARD:]).all()
        expected = [self._attend(qkv[t], position + t) for t in range(tokens)]
        return from_blocks(out)[GUARD:-GUARD].reshape(tokens, heads, d), np.array(expected)

    def _check_stored(self, qkv, before, cos, sin):
        shape, tokens = self.shape, len(qkv)
        heads, first = shape.heads, len(self.written_keys)
        even, odd = np.split(before[:, : heads + shape.kv_heads], 2, axis=-1)
        cos, sin = cos[:, None], sin[:, None]
        rotated = np.concatenate([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
        exact = heads if self.dtype == "int8" else heads + shape.kv_heads  # there keys lose their bias
        np.testing.assert_allclose(qkv[:, :exact], rotated[:, :exact], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(qkv[:, -shape.kv_heads :], before[:, -shape.kv_heads :])
        keys, values = self._kept(first, tokens)
        if self.dtype == "int8":
            bias = self._turned_bias(first, tokens)
            self._check_coded(keys, rotated[:, heads:] - bias, 511)
            self._check_coded(values, qkv[:, -shape.kv_heads :], 127)
            keys = keys + bias
        else:
            np.testing.assert_array_equal(keys, qkv[:, heads : -shape.kv_heads].astype(keys.dtype))
            np.testing.assert_array_equal(values, qkv[:, -shape.kv_heads :].astype(values.dtype))
        self.written_keys = np.concatenate([self.written_keys, keys])
        self.written_values = np.concatenate([self.written_values, values])

    def _turned_bias(self, first, tokens):
        """The keys' biases at their positions: (n, K, d), in float64."""
        angles = np.arange(first, first + tokens)[:, None, None] * self.turns
        x, y = np.split(self.offsets[0].astype(np.float64), 2, axis=-1)
        cos, sin = CONCENTRATION * np.cos(angles), CONCENTRATION * np.sin(angles)
        return np.concatenate([x * cos - y * sin, y * cos + x * sin], axis=-1)

    def _kept(self, first, tokens):
        """Keys and values (n, K, d) that the cache holds of positions, as the numbers they stand for."""
        keys, values, low, *scales = self.cache.read(first, first + tokens)
        if self.dtype == "int8":
            channels = np.arange(self.shape.head_dim)
            below = low[:, :, channels // 4] >> 2 * (channels % 4) & 3
            key_scales, value_scales = (
                SCALES[code][:, :, channels // 16].astype(np.float64) for code in scales
            )
            return (4 * keys.astype(np.int64) + below) * key_scales, values * value_scales
        kept = np.float16 if self.dtype == "f16" else np.float32
        return keys.view(kept), values.view(kept)

    def _check_coded(self, kept, numbers, steps):
        """`kept` is `numbers` (n, K, d) rounded to `steps` on both sides of 0 across each group of 16.

        A scale has 3 bits of mantissa, so it may be an eighth larger than it need be.
        """
        for first in range(0, numbers.shape[-1], 16):
            group, its = numbers[..., first : first + 16], kept[..., first : first + 16]
            step = 1.125 * np.abs(group).max(axis=-1, keepdims=True) / steps
            assert (np.abs(its - group) <= 0.5002 * np.maximum(step, 2.0**-23) + 1e-4).all()

    def _attend(self, queries, position):
        window, shared_by = self.shape.window, self.shape.heads_per_key
        seen = slice(max(position + 1 - window, 0) if window else 0, position + 1)
        return [
            naive.attend(
                queries[h].astype(np.float64),
                self.written_keys[seen, h // shared_by],
                self.written_values[seen, h // shared_by],
                float(self.sinks[h]),
            )
            for h in range(self.shape.heads)
        ]


CHUNKS = [1, 1, 7, 8, 13, 64, 50, 1, 1, 37, 9, 64, 2]  # 258 positions


@pytest.mark.parametrize("dtype", ["f16", "f32", "int8"])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(kv_heads=4, heads_per_key=1, head_dim=8, slots=320),
        Shape(kv_heads=4, heads_per_key=3, head_dim=40, slots=320),
        Shape(kv_heads=2, heads_per_key=8, head_dim=64, slots=320),
        Shape(kv_heads=5, heads_per_key=8, head_dim=16, slots=128, window=20),
        Shape(kv_heads=4, heads_per_key=3, head_dim=24, slots=128, window=64),
        Shape(kv_heads=3, heads_per_key=4, head_dim=40, slots=192, window=65),
        Shape(kv_heads=4, heads_per_key=2, head_dim=8, slots=128, window=1),
        Shape(kv_heads=2, heads_per_key=2, head_dim=8, slots=320, window=1000),  # more than there is
    ],
    ids=str,
)
def test_attention(shape, dtype):
    conversation = Conversation(shape, dtype)
    close = 2e-5 if dtype == "int8" else 2e-6  # a key's bias of 90 or so is added in float32
    for tokens in CHUNKS:
        got, expected = conversation.run(tokens)
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=close)


@pytest.mark.parametrize("window", [0, 20])
def test_large_scores_and_sinks(window):
    """Where a softmax without its maximum taken off would overflow, or a first block's all but vanish."""
    conversation = Conversation(Shape(2, 3, 16, slots=192, window=window), "f32")
    conversation.sinks[:] = [-1000, 1000, 0, 50, -50, 3]
    for tokens in (130, 9):
        got, expected = conversation.run(tokens, scale=12.0)
        assert np.isfinite(got).all()
        assert (np.abs(got[:, 1]) < 1e-30).all(), "the sink takes it all"
        np.testing.assert_allclose(got, expected, atol=5e-3)  # of values around 12


def test_a_lost_position_is_not_seen():
    """What lies in a ring's slots beyond the window, or in slots not yet written, has no weight."""
    conversation = Conversation(Shape(2, 2, 8, slots=128, window=20), "f32")
    conversation.values[:] = 1e30
    got, expected = conversation.run(3)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
    conversation.run(64)
    conversation.values[:, :40] = 1e30  # positions 47 to 66 are in sight
    got, expected = conversation.run(1)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)


def test_what_int8_costs():
    """Keys and values of whatever size, a head of zeros among them: the error stays in proportion, however
    large the keys' biases are.
    """
    conversation = Conversation(Shape(3, 2, 64, slots=320), "int8", biased=True)
    exact = Conversation(Shape(3, 2, 64, slots=320), "f32", biased=True)
    for scale in (0.0, 1e-3, 0.1, 1.0):
        for tokens in (1, 60):
            got, _ = conversation.run(tokens, scale)
            expected, _ = exact.run(tokens, scale)
            assert np.abs(got - expected).max() <= 0.02 * scale


def test_float16_is_rounded_to_nearest_even():
    """Every float16, every number halfway between two, and their float32 neighbours; subnormals included.

    What is beyond float16 becomes its largest number.
    """
    halves = np.arange(0x7C00).astype(np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2
    edges = np.concatenate([halves, middles, [65519.996, 65520, 65536, 1e38]]).astype(np.float32)
    numbers = np.concatenate(
        [edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(9e9))]
    )
    numbers = np.concatenate([numbers, -numbers])
    numbers = np.resize(numbers, (-(-len(numbers) // 8), 8))
    tokens = len(numbers)
    qkv = np.zeros((tokens, 3, 8), np.float32)
    qkv[:, 1] = qkv[:, 2] = numbers
    slots = -(-tokens // 64) * 64
    cache = LayerCache(Shape(kv_heads=1, heads_per_key=1, head_dim=8, slots=slots), slots, "f16").arrays
    keys, values, *_ = cache
    still = np.ones((tokens, 4), np.float32), np.zeros((tokens, 4), np.float32)
    offsets = (np.zeros((1, 8), np.float32), *offsets_of(np.ones(4), tokens))
    rotate_and_store(qkv.reshape(tokens, -1), cache, *still, offsets, 0, 1, THREADS, routines("f16")[:2])
    expected = np.clip(numbers, -65504, 65504).astype(np.float16)
    np.testing.assert_array_equal(values[0, :tokens].view(np.float16), expected)
    stored = keys[0].swapaxes(1, 2).reshape(slots, 8)[:tokens]
    np.testing.assert_array_equal(stored.view(np.float16), expected)
