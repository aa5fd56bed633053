"""Layers on a GPU give what they give on the CPU."""

from itertools import pairwise

import numpy as np
import pytest
from golden_files import read_golden
from gpu_fixtures import adapter  # noqa: F401

import localoss

pytestmark = pytest.mark.usefixtures("adapter")

KEPT = dict(attention="bf16", embedding="bf16", unembedding="bf16")
EXACT = dict(activations="f32", kv_dtype="f32")
CLOSE = 1e-4  # of logits whose standard deviation is 1, from the CPU's


@pytest.fixture(scope="module")
def load(model):
    """Load a checkpoint with `layers` on the GPU, none if it is 0."""

    def loaded(name, layers, dtypes=KEPT, **options):
        engine = localoss.load(
            model(name, **dtypes), gpu_layers=layers, **{"context_tokens": 512, **EXACT, **options}
        )
        on_gpu = engine.model.gpu.layers if engine.model.gpu else 0
        assert on_gpu == (engine.config.layers if layers == "all" else layers)
        return engine

    return loaded


@pytest.mark.parametrize("layers", [0, 1, 2, "all"])
def test_stored_logits(layers, load):
    """The vocabulary and the number of experts don't fill tiles here."""
    golden = read_golden("short")
    logits = load("short", layers).logits(golden.tokens, golden.positions)
    assert np.abs(logits - golden.logits).max() <= CLOSE


@pytest.mark.parametrize("layers", [2, "all"])
def test_decoding_past_the_window(layers, load):
    """A ring of 64 positions is written round and round, a token at a time."""
    golden = read_golden("window")
    engine = load("window", layers, chunk_tokens=40)
    sequence = engine.sequence()
    engine.prefill(sequence, golden.tokens[:60])
    for end in range(61, 82):
        logits = engine.prefill(sequence, golden.tokens[:end])
        assert np.abs(logits - golden.logits[end - 1]).max() <= CLOSE, f"position {end - 1}"


def test_chunks_of_several_sizes(load):
    golden = read_golden("window")
    engine = load("window", "all", chunk_tokens=64)
    sequence = engine.sequence()
    for start, end in pairwise([0, 1, 2, 10, 19, 20, 84, 117, 180, 300]):
        assert len(sequence.tokens) == start
        logits = engine.prefill(sequence, golden.tokens[:end])
        assert np.abs(logits - golden.logits[end - 1]).max() <= CLOSE, f"position {end - 1}"


def test_a_token_is_one_submit_and_one_read_back(load):
    for layers in (1, "all"):
        engine = load("short", layers)
        made = list(engine.generate([1, 2, 3], 9, temperature=0, stop_ids=()))
        decoded = engine.model.gpu.decoded
        assert len(made) == 9
        assert (decoded.tokens, decoded.submits, decoded.read_backs) == (8, 8, 8)
