"""A saved KV cache: what is loaded is what was saved, whenever the program died; damage is found."""

import json
import random
import shutil

import numpy as np
import pytest
from support.scripted import CONFIG, check, run

from localoss.engine import saved_cache
from localoss.engine.saved_cache import SavedCache, UnusableCacheError, identity
from localoss.engine.sequence import Sequence
from localoss.model.kv_cache import KVCache

ROOM = 2048
WHOSE = identity("ab", CONFIG, "f16")


def new_sequence(kv_dtype="f16"):
    return Sequence(KVCache(CONFIG, ROOM, 32, kv_dtype), seed=None)


def extend(sequence, tokens):
    kept = sequence.reuse([*tokens, 0])
    for first in range(kept, len(tokens), 32):
        run(sequence, tokens[first : first + 32])
    sequence.checkpoint(len(tokens))


def tokens_of(count, seed=0):
    return np.random.RandomState(seed).randint(0, 200_000, count).tolist()


def loaded(folder, whose=WHOSE, room=ROOM):
    sequence = new_sequence(whose["kv_dtype"])
    SavedCache(folder, whose).load(sequence, room)
    return sequence


@pytest.mark.parametrize("count", [1, 7, 16, 255, 256, 257, 900])
def test_saved_and_loaded(tmp_path, count):
    sequence = new_sequence()
    extend(sequence, tokens_of(count))
    SavedCache(tmp_path / "cache", WHOSE).save(sequence, count)
    back = loaded(tmp_path / "cache")
    assert back.tokens == tokens_of(count)
    assert back.reuse([*tokens_of(count), 5]) == count, "nothing needs to be run again"
    check(back)


@pytest.mark.parametrize("kv_dtype", ["f32", "int8"])
def test_other_kinds_of_cache(tmp_path, kv_dtype):
    sequence, whose = new_sequence(kv_dtype), identity("ab", CONFIG, kv_dtype)
    extend(sequence, tokens_of(300))
    rng = np.random.RandomState(0)
    for layer in sequence.cache.layers:
        for array in layer.arrays:
            array[:] = rng.randint(-100, 100, array.shape)
    sequence.checkpoint(300)
    SavedCache(tmp_path, whose).save(sequence, 300)
    back = loaded(tmp_path, whose)
    assert back.reuse([*tokens_of(300), 5]) == 300
    for mine, its, first in (
        (sequence.cache.full, back.cache.full, 0),
        (sequence.cache.rings, back.cache.rings, 284),
    ):
        for one, other in zip(mine[0].read(first, 300), its[0].read(first, 300), strict=True):
            np.testing.assert_array_equal(one, other)


def test_only_what_is_new_is_written(tmp_path, monkeypatch):
    packed = []
    pack = saved_cache._pack
    monkeypatch.setattr(
        saved_cache, "_pack", lambda layers, a, b: packed.append((a, b)) or pack(layers, a, b)
    )
    sequence, saved = new_sequence(), SavedCache(tmp_path, WHOSE)
    extend(sequence, tokens_of(300))
    saved.save(sequence, 300)
    extend(sequence, tokens_of(310))
    saved.save(sequence, 310)
    other = [*tokens_of(290), *tokens_of(20, seed=1)]
    extend(sequence, other)
    saved.save(sequence, 310)
    assert packed == [(0, 256), (256, 300), (300, 310), (290, 310)]
    assert loaded(tmp_path).tokens == other
    windows = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("window-"))
    assert windows == [f"window-{snapshot.position}" for snapshot in sequence.snapshots]


def test_a_smaller_context_takes_the_beginning(tmp_path):
    sequence = new_sequence()
    for count in (100, 500):
        extend(sequence, tokens_of(count))
    SavedCache(tmp_path, WHOSE).save(sequence, 500)
    back = loaded(tmp_path, room=300)
    assert back.tokens == tokens_of(300) and [snapshot.position for snapshot in back.snapshots] == [100]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("seed", range(6))
def test_killed_anywhere(tmp_path, monkeypatch, seed):
    """Each write, replacement and removal may be the last: what is loaded then is sound, never set aside."""
    rng, steps_left = random.Random(seed), [0]

    def dying(call):
        def step(*arguments, **options):
            steps_left[0] -= 1
            if steps_left[0] == 0:
                raise Killed
            return call(*arguments, **options)

        return step

    monkeypatch.setattr(saved_cache, "_pack", dying(saved_cache._pack))
    monkeypatch.setattr(saved_cache.os, "replace", dying(saved_cache.os.replace))
    monkeypatch.setattr(saved_cache.Path, "unlink", dying(saved_cache.Path.unlink))
    sequence, tokens, expected, kills = new_sequence(), [], [], 0
    saved = SavedCache(tmp_path, WHOSE)
    for _ in range(60):
        keep = rng.choice([len(tokens), rng.randrange(len(tokens) + 1)])
        tokens = [*tokens[:keep], *tokens_of(rng.randrange(1, 300), rng.randrange(1 << 30))][:1500]
        extend(sequence, tokens)
        count = rng.choice([len(tokens), max(len(tokens) - 9, 1)])
        steps_left[0] = rng.randrange(0, 12)
        try:
            saved.save(sequence, count)
            expected = tokens[:count]
        except Killed:
            kills += 1
            steps_left[0] = 0
            sequence = loaded(tmp_path)
            assert (
                sequence.tokens == tokens[: len(sequence.tokens)]
                or sequence.tokens == expected[: len(sequence.tokens)]
            )
            tokens = expected = list(sequence.tokens)
            sequence.reuse([*tokens, 1])
            check(sequence)
            saved = SavedCache(tmp_path, WHOSE)
            saved.load(sequence := new_sequence(), ROOM)
    assert kills > 10


def saved_folder(tmp_path):
    sequence = new_sequence()
    extend(sequence, tokens_of(300))
    SavedCache(tmp_path / "cache", WHOSE).save(sequence, 300)
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["positions", "window-300", "index.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_damage_is_found(tmp_path, name, how):
    path = saved_folder(tmp_path) / name
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    else:
        data[len(data) // 2] ^= 64
        path.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    if (name, how) == ("index.json", "missing"):
        assert loaded(path.parent).tokens == [], "as if nothing had been saved"
    else:
        with pytest.raises((UnusableCacheError, OSError)):
            loaded(path.parent)


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_index_is_no_crash(tmp_path_factory, seed):
    rng, folder = random.Random(seed), saved_folder(tmp_path_factory.mktemp("damaged"))
    document = json.loads((folder / "index.json").read_bytes())
    key = rng.choice(list(document))
    document[key] = rng.choice([None, 2, "x", [], {}, [[]], {"x": 1}, [-1], {"0": 0}, [1e99], {"300": None}])
    (folder / "index.json").write_text(json.dumps(document))
    with pytest.raises((UnusableCacheError, OSError)):
        if loaded(folder).tokens == []:
            raise UnusableCacheError("nothing")
        assert key == "windows" and document[key] in ([], {}), f"{key} {document[key]}"
        raise UnusableCacheError("windows alone can be fewer")
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "whose", [identity("cd", CONFIG, "f16"), identity("ab", CONFIG, "f32"), WHOSE | {"head_dim": 16}]
)
def test_a_foreign_cache_is_not_used(tmp_path, whose):
    folder = saved_folder(tmp_path)
    with pytest.raises(UnusableCacheError, match="another model"):
        loaded(folder, whose)
