"""JSON schemas as masks: what is valid passes, nothing else does, and only then may the message end."""

import json

import jsonschema
import numpy as np
import pytest

from localoss.chat import harmony
from localoss.chat.grammar import Grammar
from localoss.chat.grammar_limits import strict_grammar
from localoss.chat.harmony import CALL, END, RETURN, ChatSetup, Function
from localoss.chat.headers import HeaderAutomaton
from localoss.chat.rules import AnswerRules, argument_grammars
from localoss.chat.stops import StopFinder
from localoss.errors import UsageError

VOCAB = harmony.VOCABULARY_TOKENS
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def follow(body, text, ending=RETURN):
    """Whether `text` passes, token by token, and the message may end after it."""
    for token in harmony.encode_raw(text):
        if not body.mask(ending)[token]:
            return False
        body.advance(token)
    return bool(body.mask(ending)[ending])


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ('{"name":"Ada","age":36}', True),
        ('{ "name": "Ada",\n  "age": 36 }', True),
        ('{"name":"Zoë 🎉","age":0}', True),
        ('{"name":"Ada","age":-1}', False),
        ('{"name":"Ada","age":3.5}', False),
        ('{"name":"Ada"}', False),
        ('{"name":"Ada","age":36,"x":1}', False),
        ('{"name":"Ada","age":36} and more', False),
        ('```json\n{"name":"Ada","age":36}', False),
        ('{"name":"Ada <|end|>","age":36}', False),
        ('{"name":"Ada","age":36', False),
        ('{"name":"Ada Lovelace","age":36}', False),
        ("", False),
    ],
)
def test_what_passes(text, passes):
    assert follow(Grammar(PERSON).begin(VOCAB), text) == passes


def test_masks_are_for_the_models_vocabulary_and_have_no_control_tokens():
    body = Grammar(PERSON).begin(VOCAB + 24)
    mask = body.mask(CALL)
    assert mask.shape == (VOCAB + 24,) and mask.dtype == np.uint8
    assert mask.any() and not mask[harmony.TEXT_TOKENS :].any()
    assert follow(body, '{"name":"","age":1}', CALL)
    assert np.flatnonzero(body.mask(CALL)[harmony.TEXT_TOKENS :]) + harmony.TEXT_TOKENS == [CALL]


def test_bodies_of_one_grammar_do_not_mix():
    grammar = Grammar(PERSON)
    first, second = grammar.begin(VOCAB), grammar.begin(VOCAB)
    assert follow(first, '{"name":"A","age":1}') and follow(second, '{"name":"B","age":2}')


def test_any_drawing_ends_in_valid_json():
    """Uniform draws from the mask; whatever may end, ends."""
    generator = np.random.RandomState(3)
    schema = PERSON | {"properties": PERSON["properties"] | {"name": {"enum": ["a", "b c", 'q"\\']}}}
    for _ in range(20):
        body, made = Grammar(schema).begin(VOCAB), []
        for _ in range(60):
            mask = body.mask(RETURN)
            if mask[RETURN]:
                break
            made.append(int(generator.choice(np.flatnonzero(mask))))
            body.advance(made[-1])
        assert mask[RETURN]
        jsonschema.validate(json.loads(harmony.encoding().decode(made)), schema)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "banana"}, "Invalid type: banana"),
        ({"type": "object", "required": ["x"], "additionalProperties": False}, "unsatisfiable"),
        ({"type": "string", "pattern": "(?=a)b"}, "can't be followed"),
        ({"$ref": "http://example.com/schema"}, "can't be followed"),
        ({"enum": ["x" * 600_000]}, "600,0"),
        ({"const": float("nan")}, "no JSON"),
        ({"uniqueItems": True}, "Unimplemented keys"),
        ({"type": "integer", "multipleOf": 9973, "minimum": 1, "maximum": 10**15}, "too complex"),
    ],
)
def test_schemas_that_cannot_be(schema, says):
    with pytest.raises(UsageError, match=says):
        Grammar(schema)


def test_a_schema_that_nests_without_end():
    deep: dict = {"type": "string"}
    for _ in range(3000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError):
        Grammar(deep)


def test_not_strict_leaves_out_what_is_unknown():
    Grammar({"type": "array", "uniqueItems": True}, strict=False)


FUNCTIONS = (Function("get", "", PERSON), Function("get_all"))
SETUP = ChatSetup(functions=FUNCTIONS)


def passes(automaton, text):
    for token in harmony.encode_raw(text):
        mask = automaton.mask()
        if mask is None or not mask[token]:
            return False
        automaton.advance(token)
    return True


def automaton(**rules):
    return HeaderAutomaton(VOCAB, SETUP, AnswerRules(**rules))


GET = "<|channel|>commentary to=functions.get <|constrain|>json<|message|>"


def test_arguments_are_held_and_thinking_is_free():
    grammars = argument_grammars(FUNCTIONS)
    think = "<|channel|>analysis<|message|>{not json<|end|><|start|>assistant"
    assert passes(automaton(arguments=grammars), think + GET + '{"name":"A","age":1}<|call|>')
    assert not passes(automaton(arguments=grammars), GET + "{}<|call|>")
    assert passes(automaton(arguments=grammars), GET.replace("get", "get_all") + "{}<|call|>")
    assert not passes(automaton(arguments=grammars), GET.replace("get", "get_all") + "[]<|call|>")
    assert passes(automaton(), GET + "anything<|call|>")


def test_the_final_message_is_held():
    rules = {"final": Grammar(PERSON), "preambles": False}
    assert passes(automaton(**rules), '<|channel|>final<|message|>{"name":"A","age":1}<|return|>')
    assert not passes(automaton(**rules), "<|channel|>final<|message|>Hello")
    assert not passes(automaton(**rules), "<|channel|>commentary<|message|>Let me see")
    assert passes(automaton(**rules), GET + "x<|call|>")


def test_who_may_be_called_and_who_must_be():
    assert not passes(automaton(functions=()), GET)
    assert passes(automaton(functions=("get",)), GET)
    assert not passes(automaton(functions=("get_all",)), GET)
    must = {"functions": ("get",), "must_call": True}
    assert not passes(automaton(**must), "<|channel|>final")
    assert passes(automaton(**must), "<|channel|>analysis<|message|>hm<|end|><|start|>assistant" + GET)


def test_the_end_of_a_thinking_budget_where_a_call_is_due():
    due = automaton(functions=("get",), must_call=True)
    assert passes(due, "<|channel|>analysis<|message|>hm")
    due.force_final()
    assert np.flatnonzero(due.mask()).tolist() == [END]
    assert passes(due, "<|end|><|start|>assistant" + GET + "{}<|call|>")


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "stops", "passed"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "wo"], "one t"),
        ("aaab", ["aab"], "a"),
        ("abab", ["abc"], "abab"),
        ("text", [], "text"),
        ("text", [""], "text"),
        ("grüße 🎉 x", ["🎉"], "grüße "),
    ],
)
def test_stops_in_pieces_of_any_size(text, stops, passed, size):
    finder, out, found = StopFinder(stops), "", False
    for start in range(0, len(text), size):
        piece, found = finder.push(text[start : start + size])
        out += piece
        if found:
            break
    assert (out if found else out + finder.finish()) == passed


TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"properties": {"a": TEXT | {"pattern": "(?!x)"}}}, "a, pattern"),
        ({"properties": {"a": TEXT | {"format": "x-own"}}}, "a, format"),
        ({"properties": {"a": {"type": "array", "items": TEXT, "uniqueItems": True}}}, "a, uniqueItems"),
        ({"properties": {"a": {"type": "array", "items": {"not": TEXT}}}}, "a[], not"),
        ({"properties": {"a": {"anyOf": [TEXT, TEXT | {"minLength": "5"}]}}}, "a.anyOf[1], minLength"),
        ({"properties": {"a": {"properties": {"b": 5}}}}, "a.b"),
        ({"additionalProperties": "x"}, "additionalProperties"),
        ({"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"not": TEXT}}}, "a, not"),
        ({"properties": {"a": {"$ref": "#/$defs/B"}}, "$defs": {"A": {"not": TEXT}}}, "a, $ref"),
        ({"properties": {"a": TEXT}, "dependentRequired": {"a": ["b"]}}, "the schema, dependentRequired"),
    ],
    ids=str,
)
def test_a_strict_schemas_refusal_names_the_place(schema, where):
    with pytest.raises(UsageError) as told:
        strict_grammar({"type": "object"} | schema)
    assert str(told.value).startswith(f"{where}: the JSON schema can't be")
