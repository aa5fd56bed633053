"""Guessing what comes next: the same tokens in fewer passes, and nothing left behind by a wrong guess."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import localoss
from localoss.engine.loader import usable_threads
from localoss.engine.prompt_lookup import PromptLookup
from localoss.errors import ContextFullError
from localoss.plan.memory import Plan
from localoss.plan.sizes import DRAFT_BYTES

VOCAB = 203


@pytest.fixture(scope="module")
def load(model):
    """Load the checkpoint "short", whose window is 16 tokens, with the given options."""
    usual = dict(context_tokens=256, chunk_tokens=32, threads=usable_threads(None))
    return lambda **options: localoss.load(model("short"), **(usual | options))


@pytest.fixture(scope="module")
def engine(load):
    return load()


def random_tokens(count, seed=0):
    return np.random.RandomState(seed).randint(0, VOCAB, count).tolist()


def ids(tokens):
    return [token.id for token in tokens]


class Passes:
    """Counts the tokens of each forward pass of a model."""

    def __init__(self, model, monkeypatch):
        self.tokens, forward = [], model.forward

        def counted(chunks, *more):
            self.tokens.append(sum(len(chunk.tokens) for chunk in chunks))
            return forward(chunks, *more)

        monkeypatch.setattr(model, "forward", counted)


@pytest.mark.parametrize("options", [dict(temperature=0), dict(seed=3, top_logprobs=2)], ids=str)
def test_lookup_changes_no_token(engine, options, monkeypatch):
    """An answer that copies its prompt, and at every ninth token may do otherwise, as the model likes."""
    prompt = random_tokens(40)

    def run(**more):
        left = (only(token) if place % 9 else None for place, token in enumerate(prompt * 3))
        return list(engine.generate(prompt * 2, 100, stop_ids=(), mask=lambda: next(left), **options, **more))

    made, sequence = run(), engine.sequence()
    monkeypatch.setattr(engine, "lookup", True)
    passes = Passes(engine.model, monkeypatch)
    assert run(sequence=sequence) == made
    answering = passes.tokens[3:]  # the prompt took three
    assert max(answering) > 1 and sum(answering) > 99, "some guesses came true, and some didn't"
    assert sequence.tokens == prompt * 2 + ids(made)[:-1]
    # What was guessed wrongly has left nothing behind: the conversation goes on as a new one would.
    more = [*sequence.tokens, 5]
    assert (engine.prefill(sequence, more) == engine.prefill(engine.sequence(), more)).all()


def test_guesses_that_come_true_save_passes(engine, monkeypatch):
    monkeypatch.setattr(engine, "lookup", True)
    passes, prompt = Passes(engine.model, monkeypatch), random_tokens(60, seed=2)
    answer = iter(prompt[10:50])
    made = ids(engine.generate([*prompt, *prompt[:10]], 40, stop_ids=(), mask=lambda: only(next(answer))))
    assert made == prompt[10:50]
    assert len(passes.tokens) <= 3 + 10, "up to 16 tokens a pass"


def only(token):
    mask = np.zeros(VOCAB, np.uint8)
    mask[token] = 1
    return mask


def test_lookup_stops_at_the_end_of_the_context(load):
    engine, prompt = load(context_tokens=70), random_tokens(10) * 6
    engine.lookup, sequence, made = True, engine.sequence(), []
    answer = iter(prompt)
    with pytest.raises(ContextFullError):
        for token in engine.generate(prompt, sequence=sequence, stop_ids=(), mask=lambda: only(next(answer))):
            made.append(token.id)
    assert made == prompt[:11] and sequence.tokens == prompt + made[:-1]


def test_a_stop_token_ends_it_however_much_was_guessed(engine, monkeypatch):
    monkeypatch.setattr(engine, "lookup", True)
    prompt, sequence = random_tokens(10, seed=4) * 5, engine.sequence()
    answer, stop = iter(prompt), prompt[7]
    made = ids(engine.generate(prompt, stop_ids=(stop,), sequence=sequence, mask=lambda: only(next(answer))))
    assert made == prompt[:8] and sequence.tokens == [*prompt, *made[:-1]]


def test_the_plan_has_what_guessing_takes(engine):
    tokens = random_tokens(30_000)
    tracemalloc.start()
    guesses = PromptLookup(tokens)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert guesses.next(1) is not None and taken <= 1.05 * DRAFT_BYTES * len(tokens)
    plan = Plan(engine.config, context_tokens=1000)
    more = replace(plan, lookup=True).own["scratch"] - plan.own["scratch"]
    assert more == 16 * 4 * 208 + 1000 * DRAFT_BYTES
