"""The demo model as it is shipped: its logits against those of `transformers`; what rounding costs."""

from types import SimpleNamespace

import numpy as np
import pytest
from support import reduced
from support.golden_files import FOLDER, kl_divergence

import localoss
from localoss.hub.bundled import WEIGHTS
from quant.convert import convert
from quant.format.manifest import Dtypes

CLOSE = 1e-3  # of logits that reach 30


@pytest.fixture(scope="module")
def golden():
    """Dialogues, and logits (P, R + 1) after every `stride`-th token: of known ids, then of one other."""
    with np.load(FOLDER / "demo.npz") as stored:
        if str(stored["weights_sha256"]) != reduced.sha256_of(WEIGHTS):
            pytest.fail(
                "golden/demo.npz is of other weights than localoss/demo/weights: run make_golden.py demo"
            )
        tokens, ends = stored["tokens"].tolist(), np.cumsum(stored["lengths"]).tolist()
        return SimpleNamespace(
            dialogues=[tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)],
            stride=int(stored["stride"]),
            columns=stored["columns"],
            logits=stored["logits"],
        )


@pytest.fixture(scope="module")
def logits_of(golden, tmp_path_factory):
    """Give the logits at the stored places in a number format, by Dtypes' and localoss.load's arguments."""
    root = tmp_path_factory.mktemp("demo")

    def logits(dtypes, **options):
        folder = root / "-".join(vars(dtypes).values())
        if not folder.exists():
            convert(WEIGHTS, folder, dtypes)
        engine = localoss.load(folder, context_tokens=max(map(len, golden.dialogues)), threads=1, **options)
        rows = []
        for tokens in golden.dialogues:
            positions = range(golden.stride - 1, len(tokens), golden.stride)
            rows.append(engine.logits(tokens, positions)[:, golden.columns])
        return np.concatenate(rows)

    return logits


def test_nothing_rounded(golden, logits_of):
    logits = logits_of(Dtypes("bf16", "bf16", "bf16", "bf16"), activations="f32", kv_dtype="f32")
    assert logits.shape == golden.logits.shape and golden.logits.std() > 1
    assert np.abs(logits - golden.logits).max() <= CLOSE


@pytest.mark.parametrize(
    ("dtypes", "largest", "where_sure"),
    [
        # int8 activations meet no weights, the cache is f16
        (Dtypes("bf16", "bf16", "bf16", "bf16"), 1e-5, 1e-7),
        (Dtypes(), 0.07, 1e-3),
        (Dtypes(attention="int4", unembedding="int4"), 0.15, 1e-3),
        (Dtypes(experts="int4"), 0.05, 5e-4),
    ],
)
def test_what_rounding_costs(golden, logits_of, dtypes, largest, where_sure):
    """The mean KL divergence, in nats, over all ids: those without a row count as often as they are.

    Most of it comes from users' words, which the model can't foresee and was hardly taught. where_sure: the
    same at positions where it can, which is most of its own replies.
    """
    others = np.zeros(len(golden.columns))
    others[-1] = np.log(201_088 - len(golden.columns) + 1)
    expected = golden.logits + others
    divergences = kl_divergence(expected, logits_of(dtypes) + others)
    shares = np.exp(expected - expected.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    is_sure = shares.max(1) > 0.98
    assert is_sure.sum() > 50
    assert divergences.mean() <= largest
    assert divergences[is_sure].mean() <= where_sure, divergences[is_sure].mean()
