"""Experts from the disk: the same bits as with all weights mapped, whatever fits and whatever goes wrong."""

import numpy as np
import pytest

import localoss
from localoss.plan.sizes import READERS
from quant.format.layout import expert_run

VOCAB, ACTIVE = 203, 4
OPTIONS = dict(context_tokens=512, chunk_tokens=32)
LEAST, FEW, ALL = ACTIVE + READERS, 17, 30


def random_tokens(count, seed=0):
    return np.random.RandomState(seed).randint(0, VOCAB, count).tolist()


@pytest.fixture(scope="module")
def record(model):
    engine = localoss.load(model("short"), **OPTIONS)
    return expert_run(engine.config, "mxfp4").size


def load(model, record, slots, **options):
    return localoss.load(model("short"), expert_memory=slots * record, **(OPTIONS | options))


def run(engine, sequence, prompt, count=12):
    """Logits after the prompt, and after each of some tokens that follow it."""
    rows = [engine.prefill(sequence, prompt)]
    for token in random_tokens(count, 7):
        prompt = [*prompt, token]
        rows.append(engine.prefill(sequence, prompt))
    return np.array(rows)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("slots", [LEAST, FEW, ALL])
def test_bits_are_those_of_the_mapped_model(model, record, slots, threads):
    """A prompt of several chunks in one pass, more than the least slots can hold of a layer."""
    prompt = random_tokens(150)
    mapped = localoss.load(model("short"), threads=threads, **OPTIONS)
    streamed = load(model, record, slots, threads=threads)
    assert streamed.model.experts.slots == slots
    expected = run(mapped, mapped.sequence(), prompt)
    np.testing.assert_array_equal(run(streamed, streamed.sequence(), prompt), expected)
