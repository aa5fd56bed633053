"""The engine against stored logits of `transformers`, and against llama.cpp's divergence from them."""

import json
from itertools import pairwise

import numpy as np
import pytest
from support.golden_files import FOLDER, NAMES, kl_divergence, log_softmax, read_golden

import localoss
from localoss.engine.loader import usable_threads

KEPT = dict(attention="bf16", embedding="bf16", unembedding="bf16")
EXACT = dict(activations="f32", kv_dtype="f32", threads=usable_threads(None))  # as many as a large model has
CLOSE = 2e-4  # of logits whose standard deviation is 1. A float64 rotary angle alone differs by 3e-4


@pytest.fixture(scope="module")
def exact_engine(model):
    """Load a checkpoint with nothing rounded that the checkpoint doesn't round."""

    def load(name, chunk_tokens):
        context_tokens = len(read_golden(name).tokens)
        return localoss.load(
            model(name, **KEPT), context_tokens=context_tokens, chunk_tokens=chunk_tokens, **EXACT
        )

    return load


@pytest.mark.parametrize("name", NAMES)
def test_prefill_in_one_chunk(name, exact_engine):
    golden = read_golden(name)
    logits = exact_engine(name, len(golden.tokens)).logits(golden.tokens, golden.positions)
    assert logits.dtype == np.float32
    assert np.abs(logits - golden.logits).max() <= CLOSE


@pytest.mark.parametrize(
    ("name", "chunk_tokens"),
    [("short", 1), ("short", 7), ("window", 13), ("window", 64), ("wide", 33), ("long", 512), ("long", 1001)],
)
def test_prefill_in_any_chunking(name, chunk_tokens, exact_engine):
    golden = read_golden(name)
    logits = exact_engine(name, chunk_tokens).logits(golden.tokens, golden.positions)
    assert np.abs(logits - golden.logits).max() <= CLOSE


@pytest.mark.parametrize("tokens", [20_000, pytest.param(131_072, marks=pytest.mark.soak)])
def test_positions_far_out(tokens, model):
    """To the end of the context. A float64 rotary angle alone differs by 0.005 there."""
    golden = read_golden("far")
    positions = [position for position in golden.positions if position < tokens]
    assert max(positions) == tokens - 1
    engine = localoss.load(model("far", **KEPT), context_tokens=tokens, **EXACT)
    logits = engine.logits(golden.tokens[:tokens], positions)
    assert np.abs(logits - golden.logits[: len(positions)]).max() <= CLOSE


@pytest.mark.parametrize(("name", "prefilled"), [("short", 1), ("window", 11), ("wide", 250), ("long", 4080)])
def test_decode_token_by_token(name, prefilled, exact_engine):
    """Ring buffers wrap, the window leaves the prompt, and positions pass 4,096 while decoding."""
    golden = read_golden(name)
    engine = exact_engine(name, chunk_tokens=61)
    sequence = engine.sequence()
    engine.prefill(sequence, golden.tokens[:prefilled])
    rows = dict(zip(golden.positions, golden.logits, strict=True))
    compared = 0
    for end in range(prefilled + 1, len(golden.tokens) + 1):
        logits = engine.prefill(sequence, golden.tokens[:end])
        if end - 1 in rows:
            assert np.abs(logits - rows[end - 1]).max() <= CLOSE, f"position {end - 1}"
            compared += 1
    assert compared >= 45


def test_chunks_of_several_sizes_in_one_conversation(exact_engine):
    """As turns come: each adds a few tokens to what the cache holds already."""
    golden = read_golden("window")
    engine = exact_engine("window", chunk_tokens=32)
    sequence = engine.sequence()
    ends = [1, 2, 19, 20, 21, 53, 54, 117, 250, 300]
    for start, end in pairwise([0, *ends]):
        assert len(sequence.tokens) == start
        logits = engine.prefill(sequence, golden.tokens[:end])
        assert np.abs(logits - golden.logits[end - 1]).max() <= CLOSE, f"position {end - 1}"


def test_stepping_back_and_taking_another_way(exact_engine):
    """A regenerated answer: the cache keeps the common prefix, and nothing of the dropped tokens is seen."""
    golden = read_golden("window")
    engine = exact_engine("window", chunk_tokens=32)
    sequence = engine.sequence()
    for common, end in [(0, 200), (195, 230), (100, 140), (0, 300)]:  # near, near, beyond the ring, anew
        dropped = [*golden.tokens[:common], *reversed(golden.tokens[common : end - 3])]
        engine.prefill(sequence, dropped)
        logits = engine.prefill(sequence, golden.tokens[:end])
        assert np.abs(logits - golden.logits[end - 1]).max() <= CLOSE, f"back to {common}, on to {end}"


@pytest.mark.parametrize("name", ["short", "wide"])
def test_greedy_generation_follows_the_logits(name, exact_engine):
    golden = read_golden(name)
    prompt = golden.tokens[:40]
    engine = exact_engine(name, chunk_tokens=16)
    made = list(engine.generate(prompt, max_tokens=30, temperature=0.0))
    tokens = [*prompt, *(token.id for token in made)]
    log_probabilities = log_softmax(engine.logits(tokens)[len(prompt) - 1 : -1])
    assert len(made) == 30
    for token, row in zip(made, log_probabilities, strict=True):
        assert row[token.id] >= row.max() - CLOSE
        assert token.logprob == pytest.approx(row[token.id], abs=CLOSE)


def test_as_close_to_the_float_logits_as_llama_cpp(model):
    """With all defaults: int8 attention, embedding, unembedding and activations, float16 KV cache."""
    ours, peers = mean_divergences(model, {}), peer_divergences()
    assert pooled(ours) <= 1.1 * pooled(peers), (ours, peers)


@pytest.mark.parametrize(("kind", "largest"), [("attention", 0.08), ("unembedding", 0.0065)])
def test_what_int4_costs(kind, largest, model):
    """In nats, over all checkpoints, of which the defaults cost 0.003."""
    assert pooled(mean_divergences(model, {kind: "int4"})) <= largest


def test_what_an_int8_cache_costs(model):
    """In nats, with nothing else rounded; an f16 cache costs 1e-5, rounding the weights 2.6e-3."""
    assert pooled(mean_divergences(model, KEPT, activations="f32", kv_dtype="int8")) <= 6e-4


def mean_divergences(model, dtypes, **options):
    """KL(transformers || localoss) of each checkpoint, mean over its positions."""
    divergences = {}
    for name in NAMES:
        golden = read_golden(name)
        engine = localoss.load(model(name, **dtypes), context_tokens=len(golden.tokens), **options)
        logits = engine.logits(golden.tokens, golden.positions)
        divergences[name] = float(kl_divergence(golden.logits, logits).mean())
    return divergences


def peer_divergences():
    stored = json.loads((FOLDER / "peer.json").read_text())["checkpoints"]
    for name in NAMES:
        assert stored[name]["checkpoint_sha256"] == read_golden(name).checkpoint_sha256, "run make_peer.py"
    return {name: stored[name]["mean_kl"] for name in NAMES}


def pooled(means):
    """The mean over the positions of all checkpoints: one alone is uncertain by some 20 %."""
    positions = {name: len(read_golden(name).positions) for name in means}
    return sum(means[name] * positions[name] for name in means) / sum(positions.values())
