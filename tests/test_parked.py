"""Conversations of a server that make room for others come back from the disk, the same to the bit."""

import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest

import localoss
from localoss.engine.sequence import common_prefix
from localoss.options import SamplingParams
from localoss.server.core import parked as parked_module
from localoss.server.core.parked import ParkedCaches
from localoss.server.core.pool import SequencePool
from quant.format import disk

GREEDY = SamplingParams(temperature=0, max_tokens=8, stop_ids=())
BYTES = 1 << 30


@pytest.fixture(scope="module")
def engine(model):
    return localoss.load(model("short"), context_tokens=256, chunk_tokens=32, activations="f32", slots=1)


@pytest.fixture
def few(monkeypatch):
    """Conversations of a few tokens are worth it."""
    monkeypatch.setattr(parked_module, "LEAST_TOKENS", 16)
    monkeypatch.setattr("localoss.server.core.pool.LEAST_GAIN", 8)


@pytest.fixture
def parked(few, tmp_path):
    made = ParkedCaches(tmp_path / "parked", BYTES)
    yield made
    made.close()
    assert not list((tmp_path / "parked").glob("*")) if (tmp_path / "parked").exists() else True


def tokens_of(seed, count=100):
    return np.random.RandomState(seed).randint(0, 203, count).tolist()


def answer(engine, pool, prompt, key=""):
    """The answer's tokens with their logprobs, and how many tokens of the prompt were there."""
    sequence = pool.take(prompt, key)
    there = common_prefix(sequence.tokens, prompt)
    made = [(token.id, token.logprob) for token in engine.generate(prompt, GREEDY, sequence=sequence)]
    return made, there


def test_what_made_room_comes_back_and_answers_as_alone(engine, parked):
    pool, first, second = SequencePool(engine, 1, parked), tokens_of(1), tokens_of(2)
    alone, _ = answer(engine, SequencePool(engine, 1), [*first, 5])
    assert answer(engine, pool, first)[1] == 0
    assert answer(engine, pool, second)[1] == 0
    again, there = answer(engine, pool, [*first, 5])
    assert there >= len(first) - 1 and again == alone
    assert answer(engine, pool, [*second, 7])[1] >= len(second) - 1


def test_a_conversation_that_went_on_is_kept_once(engine, parked):
    pool, first = SequencePool(engine, 1, parked), tokens_of(1)
    for count in (50, 80, 100):
        answer(engine, pool, first[:count])
        answer(engine, pool, tokens_of(2, 60))
    whole = [one for one in parked._parked if one.tokens[:50] == first[:50]]
    assert len(whole) == 1, "each turn goes on with the files of the one before"
    assert pool.take(first).tokens[:100] == first[:100]


def test_another_key_gets_nothing(engine, parked):
    pool, secret = SequencePool(engine, 1, parked), tokens_of(1)
    answer(engine, pool, secret, "anna")
    answer(engine, pool, tokens_of(2), "bert")
    assert answer(engine, pool, secret, "bert")[1] == 0
    assert answer(engine, pool, secret, "anna")[1] >= len(secret) - 1


def test_the_disk_has_a_bound_and_the_oldest_goes(engine, few, tmp_path):
    one = ParkedCaches(tmp_path / "probe", BYTES)
    answer(engine, pool := SequencePool(engine, 1, one), tokens_of(1))
    answer(engine, pool, tokens_of(2))
    size = one._parked[0].nbytes
    one.close()
    parked = ParkedCaches(tmp_path / "parked", int(2.8 * size))
    pool = SequencePool(engine, 1, parked)
    for seed in range(1, 6):
        answer(engine, pool, tokens_of(seed))
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 2.8 * size
    assert parked.shared(tokens_of(1), ("", None))[0] < 16, "the oldest is gone"
    assert parked.shared(tokens_of(4), ("", None))[0] >= 99
    parked.close()


def test_what_fails_costs_time_alone(engine, parked, monkeypatch):
    pool, first = SequencePool(engine, 1, parked), tokens_of(1)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    answer(engine, pool, first)
    with monkeypatch.context() as patched:
        patched.setattr("localoss.engine.saved_cache.SavedCache.save", full)
        answer(engine, pool, tokens_of(2))
    assert answer(engine, pool, first)[1] == 0 and not [one for one in parked._parked if not one.tokens]
    answer(engine, pool, tokens_of(3))  # parks the first one
    for one in parked._parked:
        (one.saved.folder / "positions").write_bytes(b"damaged")
    alone, _ = answer(engine, SequencePool(engine, 1), first)
    again, there = answer(engine, pool, first)
    assert there == 0 and again == alone


def test_files_of_a_dead_server_go_and_a_living_ones_stay(few, engine, tmp_path):
    root = tmp_path / "parked"
    (dead := root / "1-dead").mkdir(parents=True)
    (dead / "positions").write_bytes(b"x")
    (living := root / "2-living").mkdir()
    made = ParkedCaches(root, BYTES)
    with disk.locked(living, "there"):
        pool = SequencePool(engine, 1, made)
        answer(engine, pool, tokens_of(1))
        answer(engine, pool, tokens_of(2))
        assert living.exists() and not dead.exists()
        if os.name == "posix":
            assert all(not path.stat().st_mode & 0o077 for path in root.rglob(f"{os.getpid()}-*"))
    made.close()
    assert [path.name for path in root.iterdir()] == ["2-living"]


def test_short_ones_are_read_again(engine, tmp_path):
    made = ParkedCaches(tmp_path / "parked", BYTES)
    made.park(SimpleNamespace(tokens=tokens_of(1)), ("", None))
    assert not (tmp_path / "parked").exists()


def test_who_cannot_be_parked_costs_the_others_nothing(engine, parked, monkeypatch):
    pool, first = SequencePool(engine, 1, parked), tokens_of(1)
    answer(engine, pool, first)
    answer(engine, pool, tokens_of(2))  # parks the first one

    def fails(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("quant.format.disk.free_bytes", fails)
        answer(engine, pool, tokens_of(3))
    assert answer(engine, pool, first)[1] >= len(first) - 1
