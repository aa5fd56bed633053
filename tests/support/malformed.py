"""Many generations under every kind of rule, each checked to the letter by other libraries than ours."""

import json
from dataclasses import replace

import jsonschema
import openai_harmony as library

from localoss.chat import harmony
from localoss.chat.grammar import Grammar
from localoss.chat.harmony import ChatSetup, Function, Message
from localoss.chat.rules import AnswerRules, argument_grammars
from localoss.chat.tools import Thoughts, ToolCall
from localoss.options import SamplingParams
from localoss.server.core.answering import Answering, Closed, Done, Question, Text
from localoss.server.core.pool import SequencePool
from support.scripted import GeneratorBatch

MARK = {
    "type": "object",
    "properties": {
        "mark": {"type": "integer", "minimum": 1, "maximum": 60},
        "mood": {"enum": ["glad", "sad", "très 🎉", 'q"\\']},
        "note": {"type": "string", "maxLength": 12},
        "more": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4},
    },
    "required": ["mark", "mood"],
    "additionalProperties": False,
}
FLAG = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
FLAG |= {"additionalProperties": False}
FUNCTIONS = (Function("mark", "Give a mark.", MARK), Function("flag", "", FLAG), Function("flag_all", ""))
SCHEMAS = {"mark": MARK, "flag": FLAG, "flag_all": {"type": "object"}}
CONTROL = [harmony.encoding().decode([i]) for i in range(harmony.TEXT_TOKENS, harmony.VOCABULARY_TOKENS)]
_ENDS = [harmony.END, harmony.RETURN, harmony.CALL]


class Ending:
    """An engine whose messages end more often by `bonus` on those logits; it notes each answer's tokens."""

    def __init__(self, engine, bonus):
        self._engine, self._bonus, self.made = engine, bonus, []
        self._logits = engine.model.logits

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def generate(self, *arguments, **options):
        def logits(*given):
            rows = self._logits(*given)
            rows[..., _ENDS] += self._bonus
            return rows

        self._engine.model.logits = logits
        self.made = []
        try:
            for token in self._engine.generate(*arguments, **options):
                self.made.append(token.id)
                yield token
        finally:
            self._engine.model.logits = self._logits


def rules(kind):
    """One of several rules, and the functions that may be called under it."""
    arguments = argument_grammars(FUNCTIONS)
    return [
        AnswerRules(arguments=arguments),
        AnswerRules(functions=(), arguments=arguments),
        AnswerRules(must_call=True, arguments=arguments),
        AnswerRules(functions=("flag",), must_call=True, arguments=arguments),
        AnswerRules(functions=(), preambles=False, final=Grammar(MARK), arguments=arguments),
        AnswerRules(preambles=False, final=Grammar(FLAG), arguments=arguments),
    ][kind % 6]


def check_generations(engine, count, max_tokens=40, bonus=0.0):
    """Generate `count` times at temperature 1.5, check each answer, and count what came out."""
    setup = ChatSetup(functions=FUNCTIONS, date="2026-03-07")
    noting = Ending(engine, bonus)
    pool, thoughts, seen = SequencePool(engine, 2), Thoughts(), {}
    params = SamplingParams(temperature=1.5, max_tokens=max_tokens)
    budgets = [None, 0, 6]  # of thinking
    for seed in range(count):
        prompt = harmony.render(setup, [Message("user", f"Question {seed % 7}")])
        its_rules = replace(rules(seed), think_budget=budgets[seed // 6 % 3])
        question = Question(prompt, setup, its_rules, replace(params, seed=seed))
        pieces = list(answer(noting, Answering(noting, pool, thoughts, question)))
        outcome = check(pieces, its_rules, noting.made)
        seen[outcome] = seen.get(outcome, 0) + 1
    return seen


def answer(engine, work):
    """The pieces of one answer."""
    batch = GeneratorBatch(engine)
    slot = batch.add(work.begin(lambda: False))
    while not slot.is_done:
        for _, token in batch.step():
            yield from work.push(token)
    yield from work.finish(slot.error)
    work.close()


def check(pieces, its_rules, made):
    """Check one answer: by OpenAI's parser, for control tokens, against its schemas. Gives how it ended."""
    done = pieces[-1]
    assert isinstance(done, Done) and done.usage.completion == len(made)
    parser = library.StreamableParser(harmony.encoding(), library.Role.ASSISTANT, strict=True)
    for token in made:
        parser.process(token)  # raises for anything malformed
    texts = [piece.text for piece in pieces if isinstance(piece, Text)]
    calls = [piece for piece in pieces if isinstance(piece, ToolCall)]
    budget = its_rules.think_budget
    assert budget is None or done.usage.reasoning <= budget
    shown = "".join(texts) + "".join(call.arguments for call in calls)
    assert not any(name in shown for name in CONTROL)
    assert (done.reason == "tool_calls") == bool(calls) == (made[-1] == harmony.CALL) and len(calls) <= 1
    may = [f.name for f in FUNCTIONS] if its_rules.functions is None else its_rules.functions
    for call in calls:
        assert call.name in may
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    finals = [piece for piece in pieces if isinstance(piece, Closed) and piece.part == "answer"]
    assert not (finals and its_rules.must_call)
    if its_rules.final and finals and finals[0].is_whole:
        schema = MARK if its_rules.functions == () else FLAG
        jsonschema.validate(json.loads(finals[0].text), schema)
        return "structured"
    return done.reason
