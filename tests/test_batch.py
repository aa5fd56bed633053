"""Sequences side by side: each gets what it would alone, whatever the others do."""

import numpy as np
import pytest

import localoss
from localoss.engine.batch import Slot
from localoss.errors import Cancelled, ContextFullError, UsageError
from localoss.options import SamplingParams

VOCAB = 203
GREEDY = SamplingParams(temperature=0, max_tokens=20, stop_ids=())


def random_tokens(count, seed=0):
    return np.random.RandomState(seed).randint(0, VOCAB, count).tolist()


@pytest.fixture(scope="module")
def engine(model):
    return localoss.load(model("short"), context_tokens=256, chunk_tokens=32, activations="f32", slots=3)


def slot_of(engine, tokens, params=GREEDY, **more):
    return Slot(engine.sequence(), tokens, params, **more)


def run(batch, after_step=lambda step: None):
    """Step until nothing is left: the tokens of each slot, by the slot."""
    made, step = {}, 0
    while batch.slots:
        for slot, token in batch.step():
            made.setdefault(slot, []).append(token)
        step += 1
        after_step(step)
    return made


def ids(tokens):
    return [token.id for token in tokens]


def alone(engine, tokens, params=GREEDY):
    return list(engine.generate(tokens, params))


def test_three_ragged_sequences_give_what_each_gives_alone(engine):
    """Prompts of one, three and seventy tokens; greedy, drawn, and with the likeliest tokens."""
    drawn = SamplingParams(seed=5, max_tokens=9, stop_ids=())
    listed = SamplingParams(temperature=0, max_tokens=14, logprobs=3, stop_ids=())
    asked = [(random_tokens(1), GREEDY), (random_tokens(3, 1), drawn), (random_tokens(70, 2), listed)]
    batch = engine.batch()
    slots = [batch.add(slot_of(engine, tokens, params)) for tokens, params in asked]
    made = run(batch)
    for slot, (tokens, params) in zip(slots, asked, strict=True):
        assert made[slot] == alone(engine, tokens, params), "the same tokens and the same logprobs"
        assert (
            slot.is_done and slot.error is None and slot.sequence.tokens == [*tokens, *ids(made[slot])[:-1]]
        )


def test_one_is_cancelled_and_the_others_go_on(engine):
    batch, gone = engine.batch(), []
    prompts = [random_tokens(40, seed) for seed in (3, 4, 5)]
    slots = [batch.add(slot_of(engine, tokens)) for tokens in prompts]
    slots[1].cancelled = lambda: bool(gone)
    made = run(batch, lambda step: gone.append(step) if step == 6 else None)
    assert isinstance(slots[1].error, Cancelled) and 0 < len(made[slots[1]]) < 20
    for index in (0, 2):
        assert made[slots[index]] == alone(engine, prompts[index])
    assert ids(made[slots[1]]) == ids(alone(engine, prompts[1]))[: len(made[slots[1]])]
    # What was cancelled can go on from where it was.
    sequence, said = slots[1].sequence, [*prompts[1], *ids(made[slots[1]])]
    rest = ids(engine.generate(said, GREEDY, sequence=sequence, max_tokens=20 - len(made[slots[1]])))
    assert [*ids(made[slots[1]]), *rest] == ids(alone(engine, prompts[1]))


def test_one_joins_and_a_prompt_is_read_beside_answers(engine):
    """A decode token of each that answers comes first, what is left of a pass goes to the prompt."""
    batch, first, late = engine.batch(), random_tokens(5, 6), random_tokens(100, 7)
    slot = batch.add(slot_of(engine, first))
    made, done = [], []
    for _ in range(4):
        made += [token for _, token in batch.step()]
    joined = batch.add(slot_of(engine, late, progress=lambda now, total: done.append(now)))
    others = run(batch)
    assert [*made, *others[slot]] == alone(engine, first)
    assert others[joined] == alone(engine, late)
    assert done == [0, 31, 62, 93, 100], "31 tokens of the prompt beside one of the answer"


def test_a_pass_can_be_made_short(engine):
    batch, done = engine.batch(), []
    batch.add(slot_of(engine, random_tokens(20), progress=lambda now, total: done.append(now)))
    for _ in range(3):
        batch.step(most_tokens=8)
    assert done == [0, 8, 16, 20]


def test_what_fails_for_one_is_no_concern_of_the_others(engine):
    def broken():
        raise RuntimeError("a mask of its own")

    batch, tokens = engine.batch(), random_tokens(4)
    bad, good = batch.add(slot_of(engine, tokens, mask=broken)), batch.add(slot_of(engine, tokens))
    full = batch.add(slot_of(engine, random_tokens(250), SamplingParams(temperature=0, stop_ids=())))
    made = run(batch)
    assert bad not in made and str(bad.error) == "a mask of its own"
    assert made[good] == alone(engine, tokens)
    assert isinstance(full.error, ContextFullError) and len(made[full]) == 256 - 250 + 1


def test_a_prompt_that_cannot_be_run_is_refused_at_once(engine):
    batch = engine.batch()
    for tokens, error in (([], UsageError), ([VOCAB], UsageError), (random_tokens(257), ContextFullError)):
        with pytest.raises(error):
            batch.add(slot_of(engine, tokens))
    assert not batch.slots


def test_masks_are_each_ones_own(engine):
    def only(token):
        return lambda: np.arange(VOCAB) == token

    batch, tokens = engine.batch(), random_tokens(6)
    slots = [batch.add(slot_of(engine, tokens, mask=only(token))) for token in (7, 9)]
    made = run(batch)
    assert [set(ids(made[slot])) for slot in slots] == [{7}, {9}]


def test_drafts_beside_others(model):
    """Text that repeats is drafted, and the others don't notice."""
    engine = localoss.load(
        model("short"), context_tokens=256, chunk_tokens=32, activations="f32", slots=2, lookup=True
    )
    from localoss.engine.prompt_lookup import PromptLookup

    again = random_tokens(12, 8) * 3
    tokens = iter(again)

    def forced():
        return np.arange(VOCAB) == next(tokens)

    params = SamplingParams(max_tokens=30, stop_ids=())
    batch, other = engine.batch(), random_tokens(9, 9)
    copying = batch.add(slot_of(engine, again, params, mask=forced, lookup=PromptLookup(again)))
    plain = batch.add(slot_of(engine, other))
    made = run(batch)
    assert ids(made[copying]) == again[:30]
    engine.lookup = False
    assert made[plain] == alone(engine, other)
    scores = [token.logprob for token in engine.score([*again, *again[:30]])][len(again) - 1 :]
    np.testing.assert_allclose([token.logprob for token in made[copying]], scores, atol=1e-4)
