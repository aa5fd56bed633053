"""Sequences side by side: each gets what it would alone, whatever the others do."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import localoss
from localoss.engine import batch as batch_module
from localoss.engine import pacing
from localoss.engine.slot import Slot
from localoss.errors import Cancelled, ContextFullError, UsageError
from localoss.model.cpu_layers import CpuLayers
from localoss.options import SamplingParams

VOCAB = 203
GREEDY = SamplingParams(temperature=0, max_tokens=20, stop_ids=())


def random_tokens(count, seed=0):
    return np.random.RandomState(seed).randint(0, VOCAB, count).tolist()


@pytest.fixture(scope="module")
def engine(model):
    return localoss.load(model("short"), context_tokens=256, chunk_tokens=32, activations="f32", slots=3)


@pytest.fixture
def even_clock(monkeypatch):
    """A layer takes 10 seconds and one for each token: who is next hangs on no other program's work."""
    clock, forward = SimpleNamespace(now=0.0, layer_s=10.0), CpuLayers.forward

    def counted(self, x, rows, cancelled):
        clock.now += self.count * (clock.layer_s + len(x))
        forward(self, x, rows, cancelled)

    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(CpuLayers, "forward", counted)
    for module in (batch_module, pacing):
        monkeypatch.setattr(module, "time", clock)
    return clock


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


@pytest.mark.parametrize("ends", ["its mask comes", "it is cancelled"])
def test_a_mask_that_is_late_holds_up_its_own_sequence_alone(engine, ends):
    """Its logits stay while others' passes go on; then it draws what it would have drawn."""
    batch, tokens, asked = engine.batch(), random_tokens(6), []
    usual = alone(engine, tokens)

    def comes(within_s):
        asked.append(within_s)
        return other.is_done and ends == "its mask comes"

    late = batch.add(
        slot_of(
            engine,
            tokens,
            mask_comes=comes,
            cancelled=lambda: other.is_done and ends == "it is cancelled",
        )
    )
    other = batch.add(slot_of(engine, tokens))
    made = run(batch)
    assert made[other] == usual and asked
    if ends == "its mask comes":
        assert made[late] == usual
    else:
        assert late not in made and isinstance(late.error, Cancelled)


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


def run_within(batch, within_s=1e-9, joining=None):
    """As run, in steps of so many seconds; `joining` says at each step which slot comes now."""
    made, step = {}, 0
    while batch.slots or step < 3:
        if joining and (slot := joining(step)):
            batch.add(slot)
        for slot, token in batch.step(within_s=within_s):
            made.setdefault(slot, []).append(token)
        step += 1
        assert step < 5000, "nothing ends"
    return made


@pytest.mark.parametrize("within_s", [1e-9, 0.003, 10.0])
def test_a_prompt_waits_between_layers_and_all_is_as_alone(engine, within_s):
    """Long and short prompts join while others are read and answered: the same tokens and logprobs."""
    prompts = {0: random_tokens(100, 11), 2: random_tokens(3, 12), 3: random_tokens(20, 13)}
    slots = {step: slot_of(engine, tokens) for step, tokens in prompts.items()}
    made = run_within(engine.batch(), within_s, joining=slots.get)
    for step, tokens in prompts.items():
        assert slots[step].error is None
        assert made[slots[step]] == alone(engine, tokens)


def test_an_answer_goes_on_between_the_layers_of_a_prompt(engine, even_clock):
    batch, order = engine.batch(), []
    answer = batch.add(slot_of(engine, random_tokens(2), SamplingParams(temperature=0, stop_ids=())))
    while not answer.is_decoding:
        batch.step(within_s=1e-9)
    done = []
    long = batch.add(slot_of(engine, random_tokens(90, 14), progress=lambda now, total: done.append(now)))
    while not long.is_decoding and not long.is_done:
        order += [slot is long for slot, _ in batch.step(within_s=1e-9)]
    assert done == [0, 32, 64, 90]
    layers = 3 * engine.config.layers
    assert 0.5 * layers <= order.count(False) <= 4 * layers, "about a token for each layer of each chunk"


def test_a_short_prompt_does_not_wait_for_a_long_one(engine, even_clock):
    batch, first = engine.batch(), []
    long = batch.add(slot_of(engine, random_tokens(200, 15)))
    batch.step(within_s=1e-9)
    short = batch.add(slot_of(engine, random_tokens(20, 16)))
    while not first:
        first = batch.step(within_s=1e-9)
    assert first[0][0] is short and len(long.sequence.tokens) <= 64
    made = run_within(batch)
    assert [first[0][1], *made[short]] == alone(engine, short.prompt)
    assert made[long] == alone(engine, long.prompt)


def test_cancelled_while_it_waits_between_layers(engine):
    batch, gone = engine.batch(), []
    long = batch.add(slot_of(engine, random_tokens(200, 17), cancelled=lambda: bool(gone)))
    other = batch.add(slot_of(engine, random_tokens(30, 18)))
    batch.step(within_s=1e-9)
    batch.step(within_s=1e-9)
    gone.append(True)
    made = run_within(batch)
    assert isinstance(long.error, Cancelled) and long not in made
    assert made[other] == alone(engine, other.prompt)
    assert list(engine.generate(long.prompt, GREEDY, sequence=long.sequence)) == alone(engine, long.prompt)


def test_the_prompt_that_comes_first_is_the_one_whose_owner_had_least(engine, even_clock):
    batch = engine.batch()
    for owner, seconds in (("rich", 1000.0), ("poor", 1.0)):
        batch.accounts.charge(owner, seconds)
    rich = batch.add(slot_of(engine, random_tokens(90, 19), owner="rich"))
    poor = batch.add(slot_of(engine, random_tokens(90, 20), owner="poor"))
    first = []
    while not first:
        first = batch.step(within_s=1e-9)
    assert first[0][0] is poor and not rich.is_decoding


WANTS = {  # tokens of the prompt and of the answer, of each of two sequences
    "answers": [(2, 250), (2, 250)],
    "an answer and long prompts": [(2, 250), (200, 1)],
    "long prompts": [(200, 1), (200, 1)],
    "short prompts": [(30, 1), (30, 1)],
}


@pytest.mark.parametrize("wants", WANTS)
@pytest.mark.parametrize("layer_s", [0.1, 10.0], ids=["dear tokens", "dear layers"])
def test_each_owner_has_its_share_of_the_time(engine, even_clock, wants, layer_s):
    """However many sequences another has, and however long their prompts are; nor does that one starve."""
    even_clock.layer_s, prompt, batch = layer_s, random_tokens(2, 30), engine.batch()
    expected = alone(engine, prompt)
    for owner in ("modest", "greedy"):
        batch.accounts.join(owner, {"modest", "greedy"})

    def ask(length, most):
        params = replace(GREEDY, max_tokens=most)
        slot = batch.add(slot_of(engine, random_tokens(length, 31), params, owner="greedy"))
        greedy[slot] = length, most

    greedy, made, began = {}, [], even_clock.now
    for length, most in WANTS[wants]:
        ask(length, most)
    modest = batch.add(slot_of(engine, prompt, owner="modest"))
    while not modest.is_done:
        made += [token for slot, token in batch.step(within_s=1e9) if slot is modest]
        for slot in [slot for slot in greedy if slot.is_done]:
            ask(*greedy.pop(slot))
    assert made == expected, "whoever else has the time"
    took_s, layers = even_clock.now - began, engine.config.layers
    a_step_s, a_layer_s = layers * (layer_s + 1), layer_s + 32
    assert took_s <= 2 * 20 * a_step_s + 2 * a_layer_s + 4 * a_step_s
    assert batch.accounts.cost("greedy") > 0.3 * took_s


def test_one_owner_alone_has_everything(engine, even_clock):
    """Its sequences advance side by side, whatever another one has had before."""
    batch = engine.batch()
    for owner in ("gone", "alone"):
        batch.accounts.join(owner, {"gone", "alone"})
    batch.accounts.charge("alone", 1e6)
    slots = [batch.add(slot_of(engine, random_tokens(2, seed), owner="alone")) for seed in range(3)]
    for _ in range(4):
        drawn = batch.step(within_s=1e9)
    assert {slot for slot, _ in drawn} == set(slots)


def test_a_prompt_is_scored_on_the_way(engine):
    tokens, scored = random_tokens(70, 21), []
    batch = engine.batch()
    other = batch.add(slot_of(engine, random_tokens(9, 22)))
    slot = batch.add(slot_of(engine, tokens, scored=scored.append))
    made = run_within(batch)
    assert [token.id for token in scored] == tokens and np.isnan(scored[0].logprob)
    assert scored[1:] == list(engine.score(tokens))
    assert made[slot] == alone(engine, tokens) and made[other] == alone(engine, other.prompt)
