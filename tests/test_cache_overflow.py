"""A value beyond float16 stays with the sequence that has it: no infinity gets into a cache."""

import numpy as np
import pytest
from support import checkpoints

import localoss
from quant.convert import convert

CONFIG = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
LOUD = 5  # the token whose values overflow in layer 0


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """A model one of whose values is 1e5 or so where it reads LOUD."""
    tensors = checkpoints.make_tensors(CONFIG, seed=0)
    tensors["model.embed_tokens.weight"][:, 9] = 0
    tensors["model.embed_tokens.weight"][LOUD, 9] = checkpoints._bf16(np.array(30.0))
    tensors["model.layers.0.self_attn.v_proj.weight"][0, 9] = checkpoints._bf16(np.array(3e4))
    root = tmp_path_factory.mktemp("overflowing")
    checkpoints.write_tensors(root / "source", CONFIG, tensors)
    convert(root / "source", root / "model")
    return root / "model"


@pytest.mark.parametrize("chunk_tokens", [32, 1])
def test_one_overflow_reaches_nobody_else(overflowing, chunk_tokens):
    loud, quiet = [*range(10, 30), LOUD, *range(30, 40)], list(range(50, 67))
    shared = dict(context_tokens=64, threads=1, chunk_tokens=chunk_tokens, activations="f32")
    engine = localoss.load(overflowing, **shared)
    before = engine.logits(quiet)
    got, expected = engine.logits(loud), localoss.load(overflowing, kv_dtype="f32", **shared).logits(loud)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[:20], expected[:20], atol=0.05)  # what f16 rounds before the overflow
    np.testing.assert_array_equal(engine.logits(quiet), before)
