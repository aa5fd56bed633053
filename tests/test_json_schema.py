"""Schemas as Pydantic, zod, MCP servers and people write them: what is read, and what it is held to."""

import json
import re
from pathlib import Path

import pytest

from localoss.chat import harmony
from localoss.chat.grammar_limits import lenient_grammar
from localoss.chat.harmony import ChatSetup, Function, Message, encode_text
from localoss.chat.rules import argument_grammars
from localoss.errors import UsageError

CASES = json.loads((Path(__file__).parent / "golden" / "schemas.json").read_text(encoding="utf-8"))
# Here a value may indeed be anything.
UNTYPED = ["null", "empty", "ref http", "zod record", "not empty", "bool schema", "items bool", "type any"]
UNTYPED += ["type empty", "deep"]


def fields(**properties):
    return {"type": "object", "properties": properties}


def reads(schema):
    """What stands between the brackets of the function's type."""
    setup = ChatSetup(functions=(Function("f", "", schema),))
    text = harmony.encoding().decode(harmony.render(setup, [Message("user", "Hi")]))
    return text.split("type f = (", 1)[1].rsplit(") => any", 1)[0].removeprefix("_: ")


def takes(grammar, text):
    """Whether the grammar lets `text` be written to its end."""
    body = grammar.begin(harmony.VOCABULARY_TOKENS)
    for token in encode_text(text):
        if not body.mask(harmony.CALL)[token]:
            return False
        body.advance(token)
    return bool(body.mask(harmony.CALL)[harmony.CALL])


@pytest.mark.parametrize("name", CASES)
def test_no_type_that_is_known_is_read_as_any(name):
    assert bool(re.search(r"(: |= |\| |\(|^)any\b", reads(CASES[name]))) <= (name in UNTYPED)


@pytest.mark.parametrize("name", CASES)
def test_no_schema_that_isnt_strict_is_refused(name):
    functions = [Function("bad", "", CASES[name]), Function("good", "", CASES["int"])]
    grammars = argument_grammars(functions)
    assert set(grammars) == {"bad", "good"} and not takes(grammars["good"], '{"n": "x"}')


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("anyOf null", "a?: number | null, // default: null"),
        ("ref recursive root", "child?: {"),
        ("ref escaped", "a?: string"),
        ("allOf", "a?: string,\nb?: number,"),
        ("oneOf root", "a?: string,\nb?: string,"),
        ("enum mixed", 'a?: "x" | 1 | null | true | {"k": 1}'),
        ("const str", 'kind?: "circle",\nk2?: "sq"'),
        ("enum ints", "a?: 1 | 2 | 3"),
        ("enum ref", 'unit: "c" | "f"'),
        ("enum quotes", r'a?: "a\"b" | "c\\d" | "e\nf" | "日"'),
        ("list of models", "// File.\n    path: string,\n    old: string,\n    new: string,\n    }[]"),
        ("oneOf discr", 'kind: "c"'),
        ("addl", "Record<string, number>"),
        ("prefixItems", "a?: [string, number]"),
        ("type dict", "a?: string"),
        ("prop names odd", '"a b"?: string'),
        ("desc multi", "// l1\n// l2\na?: string"),
    ],
)
def test_what_the_model_reads(name, says):
    assert says in reads(CASES[name])


def test_a_nullable_model_keeps_its_fields():
    model = {"type": "object", "properties": {"x": {"type": "integer", "description": "X."}}}
    for schema in ({"anyOf": [model, {"type": "null"}]}, model | {"type": ["object", "null"]}):
        text = reads(fields(a=schema))
        assert "// X." in text and "x?: number" in text and "null" in text


def test_a_root_union_has_all_fields_and_requires_what_all_do():
    variants = [
        {**fields(kind={"const": kind}, **{kind: {"type": "number"}}), "required": ["kind", kind]}
        for kind in ("r", "w")
    ]
    assert reads({"oneOf": variants}) == '{\nkind: "r" | "w",\nr?: number,\nw?: number,\n}'


def test_references_are_bounded_in_depth_and_size():
    fan = {
        f"L{level}": fields(**{f"p{n}": {"$ref": f"#/$defs/L{level + 1}"} for n in range(10)})
        for level in range(12)
    }
    wide = reads(fields(a={"$ref": "#/$defs/L0"}) | {"$defs": fan | {"L12": {"type": "string"}}})
    assert len(wide) < 200_000
    loop = {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}
    assert "a?: any" in reads(fields(a={"$ref": "#/$defs/A"}) | {"$defs": loop})
    deep = {"type": "string"}
    for _ in range(60):
        deep = fields(c=deep) | {"required": ["c"]}
    assert reads(deep).count("c: ") == 24 and lenient_grammar("f", deep)


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "string", "pattern": "(?=x)y"},
        {"type": "array", "items": {"type": "string", "pattern": r"(a)\1"}},
        {"$ref": "#/$defs/Missing"},
        {"type": "banana"},
        {"type": "string", "enum": "x"},
        {"type": "object", "properties": 3},
    ],
)
def test_only_what_cannot_be_followed_is_left_out(bad, caplog):
    grammar = lenient_grammar(f"f{bad}", fields(bad=bad, n={"type": "integer"}) | {"required": ["n"]})
    assert takes(grammar, '{"n": 1}') and not takes(grammar, '{"n": "x"}')
    assert "not held to" in caplog.text
    with pytest.raises(UsageError, match=r"^function 'f': bad(\[\])?, .*can't be followed: .{9}"):
        argument_grammars([Function("f", "", fields(bad=bad))], strict=["f"])
