"""Going back to where a conversation parted: only what is new is run, and the logits are a fresh engine's."""

import numpy as np
import pytest

import localoss
from localoss.errors import Cancelled

KINDS = {
    "default": {},
    "exact": dict(activations="f32", kv_dtype="f32"),
    "int8 cache": dict(kv_dtype="int8"),
}
VOCAB = 203


@pytest.fixture(scope="module", params=KINDS)
def engine(model, request):
    return localoss.load(model("short"), context_tokens=1024, chunk_tokens=32, **KINDS[request.param])


def random_tokens(count, seed=0):
    return np.random.RandomState(seed).randint(0, VOCAB, count).tolist()


def prefill(engine, sequence, tokens, checkpoints=()):
    """The logits, and how many tokens were run."""
    done = []
    logits = engine.prefill(sequence, tokens, lambda now, total: done.append(now), checkpoints=checkpoints)
    return logits.copy(), len(tokens) - done[0]


def fresh(engine, tokens):
    return engine.prefill(engine.sequence(), tokens)


def generate(engine, sequence, prompt, count, checkpoints=()):
    made = engine.generate(
        prompt, count, temperature=0, sequence=sequence, stop_ids=(), checkpoints=checkpoints
    )
    return [token.id for token in made]


def test_dropped_thinking_costs_the_answer_alone(engine):
    """Ten turns: a long thought, an answer, the thought dropped; then the same bits as without a cache."""
    sequence, conversation, answer = engine.sequence(), random_tokens(30), []
    for turn in range(10):
        start = len(conversation)
        question = random_tokens(20, seed=turn + 1)
        prompt = [*conversation, *question]
        marks = [start, len(prompt)]
        logits, ran = prefill(engine, sequence, prompt, marks)
        assert ran == (len(prompt) if turn == 0 else len(answer) + len(question))
        np.testing.assert_array_equal(logits, fresh(engine, prompt))
        thought = generate(engine, sequence, prompt, 100, marks)
        assert thought == generate(engine, engine.sequence(), prompt, 100)
        answer = thought[-7:]
        conversation = [*prompt, *answer]


def test_once_more_and_undone(engine):
    sequence = engine.sequence()
    first, second = random_tokens(150), random_tokens(40, seed=1)
    prompt = [*first, *second]
    generate(engine, sequence, prompt, 120, checkpoints=[150, 190])
    logits, ran = prefill(engine, sequence, prompt, checkpoints=[150, 190])
    assert ran == 1, "its logits"
    np.testing.assert_array_equal(logits, fresh(engine, prompt))
    generate(engine, sequence, prompt, 120, checkpoints=[150, 190])
    other = [*first, *random_tokens(30, seed=2)]
    logits, ran = prefill(engine, sequence, other, checkpoints=[150, 180])
    assert ran == 30
    np.testing.assert_array_equal(logits, fresh(engine, other))
    logits, ran = prefill(engine, sequence, [*first[:100], 1, 2])
    assert ran == 102, "there is no snapshot before it"


def test_a_snapshot_survives_what_was_cancelled(engine):
    sequence, prompt = engine.sequence(), random_tokens(200)
    prefill(engine, sequence, prompt, checkpoints=[200])
    left = iter(range(14))
    with pytest.raises(Cancelled):
        engine.prefill(sequence, random_tokens(400), cancelled=lambda: next(left, None) is None)
    logits, ran = prefill(engine, sequence, [*prompt, 5])
    assert ran == 1
    np.testing.assert_array_equal(logits, fresh(engine, [*prompt, 5]))


@pytest.mark.parametrize("seed", range(3))
def test_any_way_with_marks_gives_the_same_bits(engine, seed):
    rng, sequence, tokens = np.random.RandomState(seed), engine.sequence(), []
    ran_in_all = 0
    for _ in range(25):
        keep = int(rng.choice([len(tokens), rng.randint(len(tokens) + 1)]))
        tokens = [*tokens[:keep], *rng.randint(0, VOCAB, rng.randint(1, 90)).tolist()][:900]
        logits, ran = prefill(
            engine, sequence, tokens, checkpoints=rng.randint(1, len(tokens) + 1, 3).tolist()
        )
        np.testing.assert_array_equal(logits, fresh(engine, tokens))
        ran_in_all += ran
    assert ran_in_all < 25 * 900 / 2
