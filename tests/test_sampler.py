"""The sampler against a plain NumPy one: which tokens may come, how likely each is, and what is refused.

Draws are stratified: with the uniforms (i + 1/2) / n instead of random ones, each token must come n times its
probability, give or take one.
"""

from collections import Counter
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
from support.golden_files import log_softmax

from localoss.engine.sampler import Sampler, Samplers
from localoss.errors import LocalossError, UsageError
from localoss.kernels import sampling as kernels
from localoss.options import SamplingParams

GREEDY = SamplingParams(temperature=0)
EVERY_WAY = [
    GREEDY,
    SamplingParams(),
    SamplingParams(temperature=0.4, top_k=3),
    SamplingParams(top_p=0.7),
    SamplingParams(min_p=0.1),
]


class Uniforms:
    """Stands in for a random generator, and gives what it was told to."""

    def __init__(self, values):
        self._values = iter(values)

    def random(self):
        return float(next(self._values))


def stratified(count):
    return Uniforms((np.arange(count) + 0.5) / count)


def random_logits(vocab, seed=0, spread=2.0):
    return (np.random.RandomState(seed).standard_normal(vocab) * spread).astype(np.float32)


def probabilities(logits, options, mask=None):
    """What the options leave, in float64: temperature, then top-k, top-p and min-p."""
    if mask is not None:
        logits = np.where(mask, logits, -np.inf)
    if options.temperature == 0:
        return np.eye(len(logits))[np.argmax(logits)]
    weights = np.exp((logits.astype(np.float64) - logits.max()) / options.temperature)
    order = np.argsort(-weights, kind="stable")
    if options.top_k:
        weights[order[options.top_k :]] = 0
    if options.top_p < 1:
        sums = np.cumsum(weights[order])
        weights[order[np.searchsorted(sums, options.top_p * sums[-1]) + 1 :]] = 0
    weights[weights < options.min_p * weights.max()] = 0
    return weights / weights.sum()


def assert_drawn(logits, options, mask=None, draws=2000):
    sampler, random = Sampler(len(logits)), stratified(draws)
    counts = Counter(sampler.choose(logits, options, random, mask).id for _ in range(draws))
    expected = probabilities(logits, options, mask)
    for token in range(len(logits)):
        assert abs(counts[token] - draws * expected[token]) <= 1 + draws * 1e-5
        assert not (counts[token] and expected[token] == 0)


# Which tokens, how often


@pytest.mark.parametrize("vocab", [5, 64, 331, 1003])
@pytest.mark.parametrize(
    "options",
    [
        SamplingParams(),
        SamplingParams(temperature=0.3),
        SamplingParams(temperature=2.5),
        SamplingParams(temperature=100),
        SamplingParams(top_k=1),
        SamplingParams(top_k=4),
        SamplingParams(top_k=10_000),
        SamplingParams(top_p=0.5),
        SamplingParams(top_p=0.95),
        SamplingParams(top_p=1e-9),
        SamplingParams(min_p=0.05),
        SamplingParams(min_p=1),
        SamplingParams(temperature=1.5, top_k=40, top_p=0.8, min_p=0.02),
        GREEDY,
    ],
    ids=str,
)
def test_tokens_come_as_often_as_they_should(options, vocab):
    assert_drawn(random_logits(vocab), options)


@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
def test_a_mask(options):
    logits = random_logits(203)
    mask = np.random.RandomState(1).random_sample(203) < 0.1
    mask[logits.argmax()] = False
    assert_drawn(logits, options, mask)
    assert_drawn(logits, options, mask.astype(np.uint8))
    only = np.zeros(203, bool)
    only[logits.argmin()] = True
    assert_drawn(logits, options, only)


@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
def test_equal_logits(options):
    """All at once likely; where a cut or greed must choose among equals, the lowest ids stay."""
    logits = np.full(27, 3.25, np.float32)
    assert_drawn(logits, options)


@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
def test_minus_infinity_is_never_drawn(options):
    logits = random_logits(37)
    logits[::3] = -np.inf
    assert_drawn(logits, options)


def test_a_tiny_temperature_is_greedy_but_for_ties():
    logits = random_logits(50)
    logits[[7, 31]] = logits.max() + 1
    assert_drawn(logits, SamplingParams(temperature=1e-30))
    assert {Sampler(50).choose(logits, GREEDY, Uniforms([])).id} == {7}


def test_far_apart_logits():
    assert_drawn(np.array([-3e38, 0, 80, -90, 79, 3e4, 3e4], np.float32), SamplingParams())
    assert_drawn(np.array([3e38, -3e38, 0], np.float32), SamplingParams(temperature=0.01, top_k=2))


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_the_ends_of_the_uniform_draw_possible_tokens(uniform):
    logits = random_logits(600)
    logits[:300] = logits[500:] = -np.inf
    token = Sampler(600).choose(logits, SamplingParams(top_k=5), Uniforms([uniform]))
    assert token.id in np.argsort(-logits)[:5]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (50, 1.0), (50, 0.9), (300_000, 0.999), (3, 0.5)])
def test_what_is_kept_of_the_full_vocabulary(top_k, top_p):
    logits = random_logits(201_088)
    sampler = Sampler(len(logits))
    sampler.choose(logits, SamplingParams(top_k=top_k, top_p=top_p), Uniforms([0.5]))
    expected = probabilities(logits, SamplingParams(top_k=top_k, top_p=top_p))
    kept = np.flatnonzero(sampler._weights[: len(logits)])
    if top_k == 300_000:  # a long sum of float32 weights may move the cut by a few of the least likely
        assert len(np.setxor1d(kept, np.flatnonzero(expected))) <= 3
    else:
        np.testing.assert_array_equal(kept, np.flatnonzero(expected))


# The cuts alone


@pytest.mark.parametrize(
    ("most", "mass", "kept"),
    [
        (8, 0.75, [1, 3]),  # exactly reached
        (8, 0.7500001, [0, 1, 3]),  # equals: the lower id
        (8, 0.8750001, [0, 1, 3, 5]),
        (8, 1e-12, [3]),
        (8, np.inf, [0, 1, 3, 5]),
        (3, np.inf, [0, 1, 3]),
        (3, 0.5, [3]),
        (1, 0.9, [3]),
    ],
)
def test_keep_prefix(most, mass, kept):
    weights = np.array([0.125, 0.25, 0, 0.5, 0, 0.125, 0, 0], np.float32)
    total = kernels.keep_prefix(weights, most, mass)
    assert np.flatnonzero(weights).tolist() == kept
    assert total == weights.sum()


def test_drop_below_keeps_the_limit_itself():
    weights = np.array([0.5, 0.25, 0.24999, 1], np.float32)
    assert kernels.drop_below(weights, np.float32(0.25)) == 1.75
    assert weights.tolist() == [0.5, 0.25, 0, 1]


def test_weights_are_never_nan():
    """They choose bins: one that is no number would be counted outside of them."""
    weights = np.full(16, np.nan, np.float32)
    kernels.to_weights(weights, np.full(16, -np.inf, np.float32), np.float32(1))
    assert (weights == 0).all()
    logits = np.array([-np.inf, 0, np.nan, -90, -80, 0, 0, 0], np.float32)
    kernels.to_weights(weights[:8], logits, np.float32(1))
    assert weights[[0, 2, 3]].tolist() == [0, 0, 0] and weights[1] == 1 and weights[4] > 0


# Log-probabilities and state


@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
@pytest.mark.parametrize("vocab", [5, 331, 201_088])
def test_logprob_is_the_models_own(vocab, options):
    """Before temperature, cuts and mask."""
    logits, sampler = random_logits(vocab), Sampler(vocab)
    before = logits.copy()
    mask = np.arange(vocab) % 2
    for allowed in (None, mask):
        token = sampler.choose(logits, options, Uniforms([0.4]), allowed)
        assert token.logprob == pytest.approx(log_softmax(before)[token.id], abs=2e-5)
    np.testing.assert_array_equal(logits, before)


def test_nothing_stays_from_the_token_before():
    logits, sampler = random_logits(37), Sampler(37)
    for options in EVERY_WAY:
        sampler.choose(-logits, options, Uniforms([0.3]), np.arange(37) == 5)
        again = sampler.choose(logits, options, Uniforms([0.3]))
        assert again == Sampler(37).choose(logits, options, Uniforms([0.3]))


def test_seeds():
    logits, sampler = random_logits(331), Sampler(331)

    def draw(seed):
        random = np.random.default_rng(seed)
        return [sampler.choose(logits, SamplingParams(), random).id for _ in range(20)]

    assert draw(1) == draw(1) != draw(2)


# What is refused


@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 3, 100, 202])
def test_one_bad_logit_is_an_error(where, bad, options):
    logits = random_logits(203)
    logits[where] = bad
    with pytest.raises(LocalossError, match="not finite"):
        Sampler(203).choose(logits, options, Uniforms([0.5]))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_no_finite_logit_is_an_error(value):
    with pytest.raises(LocalossError, match="not finite"):
        Sampler(19).choose(np.full(19, value, np.float32), SamplingParams(), Uniforms([0.5]))


@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
def test_a_mask_that_allows_nothing_is_an_error(options):
    logits = random_logits(19)
    logits[4] = -np.inf
    for mask in (np.zeros(19, bool), np.arange(19) == 4):
        with pytest.raises(LocalossError, match="allows no token"):
            Sampler(19).choose(logits, options, Uniforms([0.5]), mask)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("min_p", float("nan")),
    ],
)
def test_options_out_of_range(option, value):
    with pytest.raises(UsageError, match=f"^{option} is {value}; use [^\n]*$"):
        SamplingParams(**{option: value})


def test_penalties_and_bias_against_plain_numpy():
    logits, prompt, drawn = random_logits(400, spread=4), [3, 5, 5], [5, 7, 7, 7]
    params = SamplingParams(
        temperature=0, frequency_penalty=0.5, presence_penalty=0.25, repetition_penalty=1.5
    )
    sampler = Sampler(400)
    history = sampler.history(prompt)
    for token in drawn:
        history.note(token)
    expected = logits.astype(np.float64)
    for token in {*prompt, *drawn}:
        expected[token] *= 1 / 1.5 if expected[token] > 0 else 1.5
        count = drawn.count(token)
        expected[token] -= 0.5 * count + 0.25 * (count > 0)
    given = []
    for token in range(400):  # a bias that makes each pair of tokens equal shows what each was worth
        bias = ((token, 90.0), (0, 90.0)) if token else ()
        chosen = sampler.choose(logits, replace(params, logit_bias=bias), Uniforms([]), history=history)
        given.append(chosen.id)
    assert given[0] == np.argmax(expected)
    assert given[1:] == [token if expected[token] > expected[0] else 0 for token in range(1, 400)]
    assert chosen.logprob == pytest.approx(log_softmax(logits)[chosen.id], abs=1e-5)


def test_control_tokens_have_no_penalty():
    history = Sampler(201_088).history([200_006, 4])
    history.note(200_008)
    assert len(history.drawn) == 199_998 and history.read.sum() == 1 and not history.drawn.any()


def test_min_tokens_hold_stop_tokens_back_unless_nothing_else_may_come():
    logits = np.array([1, 9, 3, 2], np.float32)
    params = SamplingParams(temperature=0, stop_ids=(1, 9_999))
    assert Sampler(4).choose(logits, params, Uniforms([]), may_stop=False).id == 2
    only = np.array([0, 1, 0, 0], np.uint8)
    assert Sampler(4).choose(logits, params, Uniforms([]), only, may_stop=False).id == 1


def test_logprobs_over_a_whole_vocabulary():
    """Sums of 25,136 numbers a lane in float32 were off by up to 6e-4."""
    logits = (0.5 * np.random.RandomState(0).standard_normal(201_088)).astype(np.float32)
    exact = logits.astype(np.float64)
    want = exact[7] - np.log(np.exp(exact).sum())
    assert abs(Sampler(len(logits)).score(logits, 7).logprob - want) < 1e-6


def test_several_sequences_draw_at_once():
    """Each thread has a sampler of its own, and whose token it is stays known."""
    samplers, barrier = Samplers(16, 2), Barrier(2, timeout=60)

    def draw(number, sampler):
        if number < 2:
            barrier.wait()  # neither goes on before the other one has begun
        return number, samplers.all.index(sampler)

    assert samplers.each(draw, range(5)) == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    assert samplers.each(lambda number, sampler: sampler is samplers.first, [7]) == [True]
    assert samplers.each(draw, []) == []
