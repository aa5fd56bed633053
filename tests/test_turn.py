"""A turn: what it counts and how it ends, on a scripted engine and on the real one, whose model is noise."""

import json
import sys

import numpy as np
import pytest
from support.scripted import HELLO, ScriptedEngine

import localoss
from localoss import cli
from localoss.chat import harmony
from localoss.chat.conversation import Conversation
from localoss.chat.generate import generate
from localoss.chat.harmony import ChatSetup, Function, Message
from localoss.chat.parser import MessageEnd, TextDelta
from localoss.chat.rules import AnswerRules
from localoss.chat.turn import Turn
from localoss.errors import ContextFullError, ModelError, UsageError
from localoss.options import SamplingParams

SETUP = ChatSetup(functions=(Function("lookup"),), date="2026-03-07")
PROMPT = harmony.render(SETUP, [Message("user", "Hi")])
CALL = "<|channel|>commentary to=functions.lookup <|constrain|>json<|message|>{}<|call|>"


def finished(engine, turn, sequence=None, **callbacks):
    return list(generate(engine, turn, sequence, **callbacks))


def test_a_turn_ends_with_an_answer():
    engine, turn = ScriptedEngine(), Turn(PROMPT, SETUP)
    events = finished(engine, turn)
    assert (turn.finish, turn.answer, turn.thinking) == ("return", "Hello!", "A greeting.")
    assert [event.message for event in events if isinstance(event, MessageEnd)] == turn.messages
    assert turn.generated_tokens == len(harmony.encode_raw(HELLO))
    assert turn.prefilled_tokens == len(PROMPT)
    assert turn.prefill_s > 0 and turn.decode_s > 0 and turn.decode_tokens_per_s > 0


def test_a_turn_ends_with_a_call():
    engine, turn = ScriptedEngine([CALL]), Turn(PROMPT, SETUP)
    finished(engine, turn)
    assert (turn.finish, turn.answer) == ("call", "")
    assert turn.messages == [Message("assistant", "{}", "commentary", "functions.lookup", "json")]


def test_a_turn_that_is_stopped_keeps_what_was_said():
    engine, turn = ScriptedEngine(["<|channel|>final<|message|>" + "on " * 50]), Turn(PROMPT, SETUP)
    finished(engine, turn, cancelled=lambda: turn.generated_tokens == 9)
    assert turn.finish == "cancelled" and turn.answer.startswith("on on on") and len(turn.answer) < 30


@pytest.mark.parametrize("budget", [0, 3, 50])
def test_a_thinking_budget(budget):
    """At its end the opener of the final message is all that can come; a shorter thought isn't touched."""
    thought = harmony.encode_raw("one two three four five six")
    opener = "<|end|><|start|>assistant<|channel|>final<|message|>"
    if budget == 0:
        answer = opener.removeprefix("<|end|><|start|>assistant")
    else:
        answer = "<|channel|>analysis<|message|>" + harmony.encoding().decode(thought[:budget]) + opener
    engine = ScriptedEngine([answer + "Done.<|return|>"])
    turn = Turn(PROMPT, SETUP, rules=AnswerRules(think_budget=budget))
    finished(engine, turn)
    assert (turn.answer, turn.thinking_tokens) == ("Done.", min(budget, len(thought)))
    beyond = "<|channel|>analysis<|message|>" + "one " * (budget + 1)
    if budget < len(thought):
        with pytest.raises(AssertionError, match="is masked"):
            finished(ScriptedEngine([beyond]), Turn(PROMPT, SETUP, rules=AnswerRules(think_budget=budget)))


def test_prefill_counts_what_the_cache_did_not_hold():
    class Reusing(ScriptedEngine):
        def generate(self, tokens, params, *, progress, **options):
            for done in (7, 20, len(tokens)):
                progress(done, len(tokens))
            return super().generate(tokens, params, progress=lambda *_: None, **options)

    seen = []
    engine, turn = Reusing(), Turn(PROMPT, SETUP)
    finished(engine, turn, progress=lambda *counts: seen.append(counts))
    assert turn.prefilled_tokens == len(PROMPT) - 7
    assert seen == [(7, len(PROMPT)), (20, len(PROMPT)), (len(PROMPT), len(PROMPT))]


def test_what_a_turn_refuses():
    with pytest.raises(ContextFullError, match=f"{len(PROMPT)} tokens and the context holds 40"):
        finished(ScriptedEngine(context_tokens=40), Turn(PROMPT, SETUP))
    with pytest.raises(ModelError, match="cannot chat"):
        finished(ScriptedEngine(vocab=2056), Turn(PROMPT, SETUP))
    with pytest.raises(UsageError, match="empty"):
        finished(ScriptedEngine(), Turn([], None))


@pytest.fixture(scope="module")
def noise(model):
    """The real engine on random weights with the whole vocabulary."""
    return localoss.load(model("harmony"), context_tokens=512, threads=1)


def test_noise_goes_through_cleanly(noise):
    """Sampling freely from random weights: known channels, no control token, calls only to what exists."""
    names = [harmony.encoding().decode([i]) for i in range(harmony.TEXT_TOKENS, harmony.VOCABULARY_TOKENS)]
    for seed in range(4):
        turn = Turn(PROMPT, SETUP, SamplingParams(seed=seed, max_tokens=40))
        shown = "".join(event.text for event in finished(noise, turn) if isinstance(event, TextDelta))
        assert turn.finish in ("length", "return", "call") and shown
        assert not any(name in shown for name in names)
        assert {message.channel for message in turn.messages} <= set(harmony.CHANNELS)
        assert {message.recipient for message in turn.messages} <= {None, "functions.lookup"}


def test_the_same_seed_gives_the_same_answer(noise):
    texts = []
    for seed in (5, 5, 6):
        turn = Turn(PROMPT, SETUP, SamplingParams(seed=seed, max_tokens=12))
        finished(noise, turn)
        texts.append(turn.messages)
    assert texts[0] == texts[1] != texts[2]


def test_a_conversation_prefills_only_what_is_new(noise):
    sequence = noise.sequence(seed=1)
    first = Turn(PROMPT, SETUP, SamplingParams(seed=1, max_tokens=3))
    finished(noise, first, sequence)
    longer = harmony.render(SETUP, [Message("user", "Hi"), Message("user", "there")])
    shared = int(np.argmin([a == b for a, b in zip(PROMPT, longer, strict=False)]))
    second = Turn(longer, SETUP, SamplingParams(seed=1, max_tokens=3))
    finished(noise, second, sequence)
    assert first.prefilled_tokens == len(PROMPT)
    assert second.prefilled_tokens <= len(longer) - shared + 1 < len(longer) / 2


class Thinker:
    """The real engine, made to begin every turn with a thought."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def generate(self, tokens, params, *, mask, **options):
        opener = iter(harmony.encode_raw("<|channel|>analysis<|message|>"))

        def forced():
            allowed, token = mask(), next(opener, None)
            return allowed if token is None else np.arange(harmony.VOCABULARY_TOKENS) == token

        return self._engine.generate(tokens, params, mask=forced, **options)


def test_ten_turns_with_thinking(model):
    """Each prefills its question and the answer before it, whatever was thought between; the answers are
    those of an engine that never saw the conversation.
    """
    engine = Thinker(localoss.load(model("harmony"), context_tokens=1024, threads=1, chunk_tokens=32))
    conversation, sequence = Conversation(ChatSetup(date="2026-03-07")), engine.sequence()
    params = SamplingParams(temperature=0, max_tokens=115)  # more than the rings hold back
    budget = AnswerRules(think_budget=100)
    before = 0
    for number in range(10):
        conversation.ask(f"Question {number}")
        prompt = conversation.tokens()
        turn = Turn(prompt, conversation.setup, params, budget)
        finished(engine, turn, sequence)
        fresh = Turn(prompt, conversation.setup, params, budget)
        finished(engine, fresh)
        assert turn.messages == fresh.messages and turn.thinking and turn.answer
        assert turn.thinking_tokens == 100
        # After the first turn the ring still holds the <|channel|> that the dropped thought began with, too.
        assert turn.prefilled_tokens == len(prompt) - before - (number == 1)
        conversation.answer(turn.messages)
        before = len(prompt)
    assert fresh.prefilled_tokens == before > 200


def test_run_on_the_real_engine(model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    options = ["--max-tokens", "9", "--seed", "3", "--threads", "1", "--json"]
    assert cli.main(["run", str(model("harmony")), "Hi", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["generated_tokens"] == 9 and report["finish"] == "length"
    assert report["messages"][0]["channel"] in harmony.CHANNELS
