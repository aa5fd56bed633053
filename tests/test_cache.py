"""The KV cache's sizes, and what a sequence may reuse of it, against a ring that remembers what it holds."""

import numpy as np
import pytest

from localoss.engine.sequence import Sequence
from localoss.model.kv_cache import KVCache
from localoss.plan.sizes import KEYS_AT_ONCE, MOST_SNAPSHOTS, kv_cache_bytes, layer_slots, snapshot_bytes
from quant.format.config import ModelConfig, RopeConfig

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
        keys, values, *besides = layer.arrays
        assert keys.shape == (2, slots // 16, 40, 16)
        assert values.shape == (2, slots, 40)
        assert keys.itemsize == {"f16": 2, "f32": 4, "int8": 1}[kv_dtype]
        coded = slots if kv_dtype == "int8" else 0
        shapes = [(2, coded // 16, 10, 16), (2, coded // 16, 3, 16), (2, coded, 3)]
        assert [array.shape for array in besides] == shapes


def test_int8_takes_three_fifths():
    """Of gpt-oss's heads of 64: keys of 10 bits and values of 8, with a byte of scale for each 16 of both."""
    config = ModelConfig(**(vars(config_with()) | {"head_dim": 64}))
    int8, f16 = (kv_cache_bytes(config, 4096, 32, kv_dtype) for kv_dtype in ("int8", "f16"))
    assert int8 == (80 + 4 + 64 + 4) / 256 * f16
    assert int8 <= 0.6 * f16


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "int8"])
def test_what_is_read_can_be_written_back(kv_dtype):
    """Also across the end of a ring, and nothing else is touched."""
    rng = np.random.RandomState(0)
    layer = KVCache(config_with(), 4096, 32, kv_dtype).layers[0]
    for array in layer.arrays:
        array[:] = rng.randint(0, 100, array.shape)
    before = [array.copy() for array in layer.arrays]
    saved = layer.read(layer.slots + 50, layer.slots + 70)  # slots 50 to 63 and 0 to 5
    assert saved[0].shape == saved[1].shape == (20, 2, 40)
    assert (saved[0][3] == before[0][:, 53 // 16, :, 53 % 16]).all()
    assert (saved[1][15] == before[1][:, 1]).all()
    coded = 20 if kv_dtype == "int8" else 0
    assert [array.shape for array in saved[2:]] == [(coded, 2, 10), (coded, 2, 3), (coded, 2, 3)]
    for array in layer.arrays:
        array[:] = 0
    layer.write(layer.slots + 50, saved)
    gone = layer.read(70, 70 + layer.slots - 20)
    assert not any(array.any() for array in gone)
    layer.write(70, [array[:0] for array in saved])
    assert all((new == old).all() for new, old in zip(layer.read(50, 70), saved, strict=True))


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "int8"])
def test_bytes_of_a_snapshot(kv_dtype):
    config = config_with()
    window = KVCache(config, 4096, 32, kv_dtype).read_rings(100, 100 + WINDOW)
    assert snapshot_bytes(config, kv_dtype) == sum(array.nbytes for ring in window for array in ring)


def test_rings_hold_a_window_behind_a_chunk():
    for chunk in (1, 43, 44, 45, 108, 109, 512):
        ring = layer_slots(config_with(), 4096, chunk)[0]
        assert ring % KEYS_AT_ONCE == 0
        first_sees_from = 1000 - WINDOW + 1  # the chunk's first token is at position 1000
        assert 1000 + chunk - ring <= first_sees_from, "its window would be overwritten"


# Reuse


def held(sequence, first, end):
    """The tokens of `first` to end - 1, as the first ring keeps them."""
    return sequence.cache.rings[0].read(first, end)[1][:, 0, 0].tolist()


def write(sequence, tokens):
    """What a forward pass does: each position's token into the rings, as its values."""
    first = len(sequence.tokens)
    sequence.begin(len(tokens))
    for ring in sequence.cache.rings:
        keys, values, *scales = ring.read(first, first + len(tokens))
        values[:] = np.array(tokens)[:, None, None]
        ring.write(first, [keys, values, *scales])
    sequence.tokens += tokens


def new_sequence(chunk=32, **config):
    return Sequence(KVCache(config_with(**config), 4096, chunk, "f16"), seed=None)


@pytest.mark.parametrize(
    ("written", "common", "kept"),
    [(64, 40, 40), (65, 19, 0), (65, 20, 20), (1000, 1000 - 64 + WINDOW - 1, 955), (1000, 954, 0)],
)
def test_stepping_back_as_far_as_the_ring_reaches(written, common, kept):
    sequence = new_sequence()  # rings of 64
    for first in range(0, written, 32):
        write(sequence, [1] * min(32, written - first))
    assert sequence.reuse([1] * common + [2, 2]) == kept


def test_without_sliding_layers_all_is_kept():
    config = ModelConfig(**(vars(config_with(layers=1)) | {"is_sliding": (False,)}))
    sequence = Sequence(KVCache(config, 4096, 32, "f16"), seed=None)
    sequence.begin(4000)
    sequence.tokens += [1] * 4000
    assert sequence.reuse([1, 2, 3]) == 1


@pytest.mark.parametrize(("common", "kept"), [(200, 200), (300, 200), (199, 199), (198, 0)])
def test_going_back_to_a_snapshot(common, kept):
    """One at 200 serves what parts at 200 or later, and the prompt of 200 tokens once more."""
    sequence, tokens = new_sequence(), list(range(1, 1001))
    for first in range(0, 1000, 25):
        write(sequence, tokens[first : first + 25])
        if first + 25 == 200:
            sequence.checkpoint(200)
    assert sequence.reuse([*tokens[:common], 0, 0]) == kept
    assert sequence.tokens == tokens[:kept]
    if kept:
        assert held(sequence, kept - WINDOW + 1, kept) == tokens[kept - WINDOW + 1 : kept]
    assert [snapshot.position for snapshot in sequence.snapshots] == [200] * (kept == 200)


def test_snapshots_are_few_and_the_newest_stay():
    sequence = new_sequence()
    positions = [*range(40, 1200, 30), 1210]
    for position in positions:
        write(sequence, [1] * (position - len(sequence.tokens)))
        sequence.checkpoint(position)
    kept = [snapshot.position for snapshot in sequence.snapshots]
    assert len(kept) == MOST_SNAPSHOTS and kept[-4:] == positions[-4:]
    gaps = [after - before for before, after in zip([0, *kept[:-1]], kept, strict=True)]
    assert max(gaps) < 600, "one can go back a part of the way, wherever to"


def test_no_snapshot_of_what_the_ring_has_lost():
    sequence = new_sequence()
    for _ in range(5):
        write(sequence, [1] * 32)
    for position in (0, 100, 115, 161):
        sequence.checkpoint(position)
    assert not sequence.snapshots
    sequence.checkpoint(116)
    assert sequence.snapshots


@pytest.mark.parametrize("seed", range(8))
def test_what_is_reused_is_still_there(seed):
    """A conversation that is continued, cut back, replaced, cancelled and marked at random."""
    rng = np.random.RandomState(seed)
    chunk = int(rng.choice([1, 7, 30, 44, 60]))
    sequence = new_sequence(chunk)
    conversation, reused, restored = [0], 0, 0
    for _ in range(300):
        keep = int(
            rng.choice([len(conversation), rng.randint(len(conversation) + 1), 0], p=[0.6, 0.35, 0.05])
        )
        conversation = [*conversation[:keep], *rng.randint(0, 5, rng.randint(1, 60)).tolist()]
        before = {snapshot.position for snapshot in sequence.snapshots}
        common = sequence.reuse(conversation)
        assert sequence.tokens == conversation[:common]
        first = max(common - WINDOW + 1, 0)
        assert held(sequence, first, common) == conversation[first:common]
        reused += common > 0
        restored += common in before and common < keep
        for first in range(common, len(conversation), chunk):
            write(sequence, conversation[first : first + chunk])
            if rng.random_sample() < 0.1:
                del sequence.tokens[first:]  # cancelled, with the rings written already
                break
            if rng.random_sample() < 0.5:
                sequence.checkpoint(rng.randint(first, len(sequence.tokens)) + 1)
    assert reused > 150 and restored > 5


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
