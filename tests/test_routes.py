"""The log of the router's choices, which other programs can replay, and what the cache did on it."""

from collections import OrderedDict

import numpy as np
import pytest

import localoss
from localoss import cli
from localoss.errors import UsageError
from localoss.measure.routes import HEADER, logged_routes

LAYERS, ACTIVE, RECORD = 3, 4, 24_576


def read(path):
    """(phase, step, layer, slot, expert, turn) of each line."""
    head, *lines = path.read_text().splitlines()
    assert head == HEADER
    return np.array([[int(word) for word in line.split(",")] for line in lines])


def misses(choices, slots):
    """How many an LRU of `slots` entries lacks, all of a token's experts of a layer kept while that runs."""
    kept, missed = OrderedDict(), 0
    for at in range(0, len(choices), ACTIVE):
        wanted = sorted((layer, expert) for _, _, layer, _, expert, _ in choices[at : at + ACTIVE])
        missed += sum(key not in kept for key in wanted)
        for key in wanted:
            kept[key] = None
            kept.move_to_end(key)
        while len(kept) > slots:
            kept.popitem(last=False)
    return missed


@pytest.mark.parametrize("slots", [24, 27, 30])
def test_the_cache_misses_what_an_lru_does_on_the_logged_routes(model, tmp_path, slots):
    engine = localoss.load(model("short"), context_tokens=256, chunk_tokens=32, expert_memory=slots * RECORD)
    tokens, sequence = np.random.RandomState(1).randint(0, 203, 60).tolist(), engine.sequence()
    with logged_routes(engine, tmp_path / "routes.csv"):
        for count in range(1, 61):
            engine.prefill(sequence, tokens[:count])
    choices = read(tmp_path / "routes.csv")
    assert len(choices) == 60 * LAYERS * ACTIVE
    assert engine.expert_figures()["decoding"]["misses"] == misses(choices, slots)
    assert (choices[:, 1] == np.repeat(np.arange(60), LAYERS * ACTIVE)).all()


@pytest.mark.parametrize("memory", [0, 12 * RECORD])
def test_a_prompt_and_its_answer(model, tmp_path, memory):
    """The same choices, whether experts are mapped or not, though their passes differ."""
    engine = localoss.load(model("short"), context_tokens=256, chunk_tokens=32, expert_memory=memory)
    with logged_routes(engine, tmp_path / "routes.csv"):
        for _ in range(2):
            tokens = engine.generate(list(range(70)), 5, temperature=0, stop_ids=())
            assert len(list(tokens)) == 5
    choices = read(tmp_path / "routes.csv")
    order = np.lexsort((choices[:, 3], choices[:, 2], choices[:, 1]))
    by_token = choices[order].reshape(2 * 74, LAYERS, ACTIVE, 6)
    assert (by_token[:, 0, 0, 1] == np.arange(2 * 74)).all()
    assert (by_token[:, 0, 0, 5] == np.repeat([0, 1], 74)).all(), "turns"
    assert by_token[:70, ..., 0].max() == 0 and by_token[70:74, ..., 0].min() == 1
    np.testing.assert_array_equal(by_token[:74, ..., 4], by_token[74:, ..., 4])
    assert all(len(set(chosen)) == ACTIVE for chosen in by_token[..., 4].reshape(-1, ACTIVE))


def test_bench_writes_them(model, tmp_path, capsys):
    path = tmp_path / "r.csv"
    asked = [
        "bench",
        str(model("harmony")),
        "--prompt-tokens",
        "40",
        "--gen-tokens",
        "3",
        "--routes",
        str(path),
    ]
    assert cli.main([*asked, "--expert-memory", "200kB"]) == 0
    assert "have room in memory; a token found" in " ".join(capsys.readouterr().out.split())
    assert len(read(path)) == (40 + 4) * 2 * 4
    assert cli.main(["bench", str(model("harmony")), "--routes", str(tmp_path / "no" / "r.csv")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_gpus_layers_are_not_logged(model, tmp_path):
    engine = localoss.load(model("short"), context_tokens=256)
    engine.model.stacks = (object(),)
    with pytest.raises(UsageError, match="run all layers on it"), logged_routes(engine, tmp_path / "r.csv"):
        pass
