"""The KV cache's sizes, and what a sequence may reuse of it, against a ring that remembers what it holds."""

import numpy as np
import pytest

from localoss.cache import KVCache
from localoss.engine import Sequence
from localoss.sizes import KEYS_AT_ONCE, kv_cache_bytes, layer_slots
from quant.config import ModelConfig, RopeConfig

WINDOW = 20


def config_with(layers=3, window=WINDOW):
    return ModelConfig(
        layers=layers,
        hidden=96,
        intermediate=160,
        heads=6,
        kv_heads=2,
        head_dim=40,
        experts=10,
        active_experts=4,
        vocab=203,
        context=4096,
        sliding_window=window,
        is_sliding=tuple(i % 2 == 0 for i in range(layers)),
        rms_norm_eps=1e-5,
        swiglu_limit=7.0,
        rope=RopeConfig(1e4, 1.0, 64, 32.0, 1.0, False, None),
    )


# Sizes


@pytest.mark.parametrize(
    ("context", "chunk", "slots"),
    [
        (1000, 44, [64, 1024, 64]),  # window + chunk fill 64 exactly
        (1000, 45, [128, 1024, 128]),
        (64, 512, [64, 64, 64]),  # a ring is never longer than the context
        (65, 1, [64, 128, 64]),
        (1, 1, [64, 64, 64]),
    ],
)
def test_slots(context, chunk, slots):
    assert layer_slots(config_with(), context, chunk) == slots


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "int8"])
@pytest.mark.parametrize("context", [1, 64, 777])
def test_bytes_are_those_of_the_arrays(context, kv_dtype):
    config = config_with()
    cache = KVCache(config, context, 32, kv_dtype)
    arrays = [array for layer in cache.layers for array in layer.arrays]
    assert kv_cache_bytes(config, context, 32, kv_dtype) == sum(array.nbytes for array in arrays)
    for layer, slots in zip(cache.layers, layer_slots(config, context, 32), strict=True):
        keys, values, *scales = layer.arrays
        assert keys.shape == (2, slots // 8, 40, 8)
        assert values.shape == (2, slots, 40)
        assert keys.itemsize == {"f16": 2, "f32": 4, "int8": 1}[kv_dtype]
        assert [s.shape for s in scales] == 2 * [(2, slots if kv_dtype == "int8" else 0)]


def test_int8_halves_the_cache():
    """Of gpt-oss's heads of 64: 64 bytes and a scale of 4, for 128."""
    config = ModelConfig(**(vars(config_with()) | {"head_dim": 64}))
    assert kv_cache_bytes(config, 4096, 32, "int8") == 68 / 128 * kv_cache_bytes(config, 4096, 32, "f16")


def test_the_views_of_some_slots():
    layer = KVCache(config_with(), 128, 32, "int8").layers[1]
    whole = [array.copy() for array in layer.arrays]
    for view in layer.at(slice(8, 24)):
        view[:] = 1
    keys, values, *scales = layer.arrays
    assert (keys[:, 1:3] == 1).all() and (values[:, 8:24] == 1).all()
    assert all((array[:, 8:24] == 1).all() for array in scales)
    layer.at(slice(8, 24))[0][:] = 0
    for view in layer.at(slice(8, 24)):
        view[:] = 0
    assert all((array == before).all() for array, before in zip(layer.arrays, whole, strict=True))


def test_rings_hold_a_window_behind_a_chunk():
    for chunk in (1, 43, 44, 45, 108, 109, 512):
        ring = layer_slots(config_with(), 4096, chunk)[0]
        assert ring % KEYS_AT_ONCE == 0
        first_sees_from = 1000 - WINDOW + 1  # the chunk's first token is at position 1000
        assert 1000 + chunk - ring <= first_sees_from, "its window would be overwritten"


# Reuse


def test_stepping_back_as_far_as_the_ring_reaches():
    cache = KVCache(config_with(), 4096, 32, "f16")  # rings of 64
    assert cache.can_step_back(64, 0)
    assert not cache.can_step_back(65, 0)
    assert not cache.can_step_back(65, WINDOW - 1)  # it sees position 0 still
    assert cache.can_step_back(65, WINDOW)
    assert cache.can_step_back(1000, 1000 - 64 + WINDOW - 1)
    assert not cache.can_step_back(1000, 1000 - 64 + WINDOW - 2)


def test_without_sliding_layers_all_is_kept():
    config = config_with(layers=1)
    full = ModelConfig(**(vars(config) | {"is_sliding": (False,)}))
    assert KVCache(full, 4096, 32, "f16").can_step_back(4000, 1)


class Ring:
    """What a ring's slots hold: the token last written to each, and its position."""

    def __init__(self, slots):
        self._held = [None] * slots

    def write(self, position, token):
        self._held[position % len(self._held)] = (position, token)

    def holds(self, position, token):
        return self._held[position % len(self._held)] == (position, token)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_reused_is_still_there(seed):
    """A conversation that is continued, cut back, replaced and cancelled at random."""
    rng = np.random.RandomState(seed)
    chunk = int(rng.choice([1, 7, 30, 44, 60]))
    config = config_with()
    sequence = Sequence(KVCache(config, 4096, chunk, "f16"), seed=None)
    ring = Ring(layer_slots(config, 4096, chunk)[0])
    conversation, reused = [0], 0
    for _ in range(300):
        keep = int(
            rng.choice([len(conversation), rng.randint(len(conversation) + 1), 0], p=[0.6, 0.35, 0.05])
        )
        conversation = [*conversation[:keep], *rng.randint(0, 5, rng.randint(1, 60)).tolist()]
        common = sequence.reuse(conversation)
        assert sequence.tokens == conversation[:common]
        for position in range(max(common - WINDOW + 1, 0), common):
            assert ring.holds(position, conversation[position])
        reused += common > 0
        for first in range(common, len(conversation), chunk):
            part = conversation[first : first + chunk]
            sequence.begin(len(part))
            for position, token in enumerate(part, start=first):
                ring.write(position, token)
            if rng.random_sample() < 0.1:
                break  # cancelled, with this layer written already
            sequence.tokens += part
    assert reused > 150


def test_the_last_token_is_run_again_for_its_logits():
    sequence = Sequence(KVCache(config_with(), 100, 32, "f16"), seed=None)
    sequence.begin(3)
    sequence.tokens += [1, 2, 3]
    assert sequence.reuse([1, 2, 3]) == 2
    assert sequence.tokens == [1, 2]
    assert sequence.reuse([1]) == 0


def test_a_new_conversation_is_reused_after_an_old_one_that_filled_the_ring():
    sequence = Sequence(KVCache(config_with(), 4096, 32, "f16"), seed=None)
    sequence.begin(1000)
    sequence.tokens += [1] * 1000
    assert sequence.reuse([1, 1, 2, 2]) == 0, "the ring has lost the beginning"
    sequence.begin(4)
    sequence.tokens += [1, 1, 2, 2]
    assert sequence.reuse([1, 1, 2, 2, 3]) == 4
