"""Layers in one compiled call: the same bits as kernel by kernel, and one call a token."""

from types import SimpleNamespace

import numpy as np
import pytest

import localoss
from localoss.kernels import calls, layer, layers
from localoss.model import at_once

TOKENS = np.random.RandomState(0).randint(0, 203, 60).tolist()


@pytest.fixture(params=["f32", "f16", "int8"])
def engine(request, model):
    return localoss.load(
        model("short"), context_tokens=128, chunk_tokens=32, kv_dtype=request.param, slots=3, threads=1
    )


def one_by_one(engine):
    """Have `engine` run its kernels one after the other, as where somebody looks on."""
    for caller in engine.kernel_callers:
        if caller.kernels is layer:
            caller.kernels = SimpleNamespace(**vars(layer))


def test_the_same_bits_as_kernel_by_kernel(engine):
    """A prompt in chunks past the window, and tokens one by one after it."""
    made = [engine.prefill(engine.sequence(), TOKENS[:count]).copy() for count in (1, 40, 60)]
    answers = [engine.generate(TOKENS[:40], 30, temperature=0, stop_ids=())]
    made_ids = [[(token.id, token.logprob) for token in answer] for answer in answers]
    one_by_one(engine)
    for count, logits in zip((1, 40, 60), made, strict=True):
        assert np.array_equal(engine.prefill(engine.sequence(), TOKENS[:count]), logits)
    again = engine.generate(TOKENS[:40], 30, temperature=0, stop_ids=())
    assert [(token.id, token.logprob) for token in again] == made_ids[0]


def test_a_token_is_one_call(engine, monkeypatch):
    """However many layers there are: Python between them is time in which the memory rests."""
    sequence, spans = engine.sequence(), []
    engine.prefill(sequence, TOKENS[:2])

    def noted(entries, attending, x, tokens, span, *others):
        spans.append(span)
        layers.run_layers(entries, attending, x, tokens, span, *others)

    monkeypatch.setattr(at_once, "kernels", SimpleNamespace(run_layers=noted))
    engine.prefill(sequence, TOKENS[:3])
    assert spans == [(0, engine.config.layers)]


def test_a_kernel_has_an_address_for_what_it_was_called_with():
    """No other form's machine code is ever taken for it."""
    with pytest.raises(KeyError):
        calls.entry_point(layer.multiply, (1, 2))
