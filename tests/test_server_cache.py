"""The prefix cache across requests: only what is new is prefilled, and the answers are those without it."""

import json

import pytest
from support.live_server import MODEL, live
from support.scripted import GeneratorBatch, ScriptedEngine

import localoss
from localoss.server.core.pool import SequencePool

MARK = {
    "type": "object",
    "properties": {"mark": {"type": "integer", "minimum": 1, "maximum": 6}, "ok": {"type": "boolean"}},
    "required": ["mark", "ok"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "A tool. " * 9, "parameters": MARK}}
    for name in ("look", "count")
]
FINAL = {"type": "json_schema", "json_schema": {"name": "mark", "schema": MARK}}


@pytest.fixture(scope="module")
def engine(model):
    return localoss.load(model("harmony"), context_tokens=4096, threads=1)


def converse(server, turns):
    """A conversation of `turns` turns, each with a call and an answer: what was said, and the usages."""
    client, messages, said, usages = server.client(), [], [], []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {turn}, which is longer than its answer."})
        for choice in ({"type": "function", "function": {"name": "look"}}, "none"):
            done = client.chat.completions.create(
                model=MODEL,
                messages=messages,
                tools=TOOLS,
                tool_choice=choice,
                response_format=FINAL,
                temperature=0,
                max_tokens=48,
            )
            message = done.choices[0].message
            said.append((message.content, [call.function.arguments for call in message.tool_calls or []]))
            usages.append(done.usage)
            if message.tool_calls:
                messages.append(message.model_dump(include={"role", "tool_calls"}))
                result = json.dumps({"turn": turn, "result": "blue " * 5})
                messages.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": result})
            else:
                messages.append({"role": "assistant", "content": message.content})
    return said, usages


class Watched:
    """The engine, which notes for each prompt how much of it the sequence held."""

    def __init__(self, engine):
        self._engine, self.common, self.prompts = engine, [], []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def batch(self, accounts=None):
        return GeneratorBatch(self, accounts)

    def generate(self, tokens, *arguments, sequence, **options):
        pairs = zip(sequence.tokens, tokens, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(sequence.tokens), len(tokens)))
        self.common.append(min(same, len(tokens) - 1))
        self.prompts.append(tokens)
        return self._engine.generate(tokens, *arguments, sequence=sequence, **options)


def test_ten_turns_prefill_only_what_is_new(engine):
    watched = Watched(engine)
    with live(watched, conversations=2) as server:
        said, usages = converse(server, 10)
        assert len(server.service.pool) == 1
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages]
    assert cached == watched.common
    assert sum(bool(calls) for _, calls in said) > 3
    for before, usage, held in zip(usages, usages[1:], cached[1:], strict=False):
        assert held > 0.5 * before.prompt_tokens and usage.prompt_tokens - held < 250

    class Forgetful(SequencePool):
        def take(self, tokens, *whose):
            self._kept.clear()
            return super().take(tokens, *whose)

    with live(engine) as server:
        server.service.pool = Forgetful(engine, 1)
        fresh, fresh_usages = converse(server, 10)
    assert fresh == said
    assert not any(usage.prompt_tokens_details.cached_tokens for usage in fresh_usages)


def test_conversations_that_alternate_keep_their_caches(engine):
    watched = Watched(engine)
    questions = [[{"role": "user", "content": f"{name} " * 120}] for name in ("one", "two", "three")]
    with live(watched, conversations=2) as server:
        client = server.client()

        def ask(index):
            done = client.chat.completions.create(
                model=MODEL, messages=questions[index], temperature=0, max_tokens=2
            )
            return done.usage.prompt_tokens_details.cached_tokens > 100

        assert [ask(0), ask(1), ask(0), ask(1)] == [False, False, True, True]
        assert [ask(2), ask(1), ask(0)] == [False, True, False]  # the first was used longest ago
        assert len(server.service.pool) == 2


def test_which_sequence_is_taken():
    engine = ScriptedEngine()
    pool = SequencePool(engine, 2)
    first = pool.take([1, 2, 3, 4])
    first.tokens = [1, 2, 3, 4]
    assert pool.take([1, 2, 3, 4, 5]) is first
    second = pool.take([1, 9])  # would cost the first three quarters of what it holds
    assert second is not first and len(pool) == 2
    second.tokens = [1, 9]
    assert pool.take([1, 2, 3, 7]) is first
    assert pool.take([5]) is second  # no room for another: the least recently used
