"""Grammars of schemas that llguidance can't follow as they stand: what it can't is named or left out."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from localoss.chat.grammar import ANY_OBJECT, Budget, Grammar, Remembered
from localoss.chat.json_schema import Schema, target, tidied
from localoss.errors import UsageError

_MAX_DEPTH = 100
_SIZES = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "multipleOf")
_LOGIC = ("not", "if", "then", "else", "dependentSchemas", "dependentRequired", "contains", "propertyNames")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_UNIONS = ("anyOf", "oneOf", "allOf")
_CHILDREN = ("items", "additionalProperties", "not", "if", "then", "else", "propertyNames", "contains")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
logger = logging.getLogger("localoss.chat")


def strict_grammar(schema: Schema, budget: Budget | None = None) -> Grammar:
    """A grammar of every keyword. Raises: UsageError that says what can't be followed, where and why."""
    schema, budget = tidied(schema), budget or Budget()
    try:
        return Grammar(schema, True, budget)
    except UsageError as error:
        where = _culprit(schema, budget)
        if where is None:
            raise
        raise UsageError(f"{where}: {error}") from None


def lenient_grammar(name: str, schema: Schema, budget: Budget | None = None) -> Grammar:
    """A grammar of as much of `schema` as can be followed. What is left out is logged once, with `name`.

    name: whose schema it is.
    """
    text = json.dumps(schema)
    found = _found.get(text)
    if found is None:
        found = _lenient(schema, budget or Budget())
        _found.put(found, text)
    grammar, left_out = found
    if left_out and (name, left_out) not in _told and len(_told) < 1000:
        _told.add((name, left_out))
        logger.warning("%s: not held to %s of its schema, which can't be followed", name, left_out)
    return grammar


_told: set[tuple[str, str]] = set()
_found: Remembered[tuple[Grammar, str]] = Remembered(64)


def _lenient(schema: Schema, budget: Budget) -> tuple[Grammar, str]:
    """The grammar, and what was left out step by step until it compiled."""
    schema = tidied(schema)
    left_out: list[str] = []
    for what, leave_out in _STEPS:
        try:
            return Grammar(schema, False, budget), ", ".join(left_out)
        except UsageError:
            budget.check()
            before = schema
            schema = leave_out(schema, budget)
            left_out += [what] * (schema != before)
    try:
        return Grammar(schema, False, budget), ", ".join(left_out)
    except UsageError:
        budget.check()
        return Grammar(ANY_OBJECT, False), "all"


def _without(keys: tuple[str, ...]) -> Callable[[Schema, Budget], Schema]:
    return lambda schema, _: _mapped(schema, lambda one: {k: v for k, v in one.items() if k not in keys})


def _without_unfit(schema: Schema, budget: Budget) -> Schema:
    """`schema` without patterns, formats, types and references that can't be followed by themselves."""

    def fit(one: Schema) -> Schema:
        unfit = {key for key, _ in _unfit(one, schema, budget)}
        kept = {key: value for key, value in one.items() if key not in unfit}
        patterns = one.get("patternProperties")
        if isinstance(patterns, Mapping) and "patternProperties" not in unfit:
            kept["patternProperties"] = {p: v for p, v in patterns.items() if _compiles("pattern", p, budget)}
        return kept

    fitting: Schema = _mapped(schema, fit)
    return fitting


def _as_outline(schema: Schema, _: Budget) -> Schema:
    """An object with the fields of `schema`, whatever they hold."""
    fields = schema.get("properties")
    names = list(fields) if isinstance(fields, Mapping) else []
    required = schema.get("required")
    wanted = [name for name in required if name in names] if isinstance(required, list) else []
    return {"type": "object", "properties": {name: {} for name in names}, "required": wanted}


_STEPS: list[tuple[str, Callable[[Schema, Budget], Schema]]] = [
    ("patterns, formats, types or references", _without_unfit),
    ("conditions", _without(_LOGIC)),
    ("sizes", _without(_SIZES)),
    ("patterns", _without(("pattern", "format", "patternProperties"))),
    ("bounds", _without(_BOUNDS)),
    ("unions", _without(_UNIONS)),
    ("the types of fields", _as_outline),
]


def _mapped(schema: Any, change: Callable[[Schema], Schema], depth: int = 0) -> Any:
    """`schema` with each of its objects changed."""
    if not isinstance(schema, Mapping):
        return schema
    if depth > _MAX_DEPTH:
        return {}
    result: Schema = {}
    for key, value in change(dict(schema)).items():
        if key in _NAMED and isinstance(value, Mapping):
            result[key] = {name: _mapped(one, change, depth + 1) for name, one in value.items()}
        elif key in (*_UNIONS, "prefixItems", "items") and isinstance(value, list):
            result[key] = [_mapped(one, change, depth + 1) for one in value]
        else:
            result[key] = _mapped(value, change, depth + 1) if key in _CHILDREN else value
    return result


def _culprit(schema: Schema, budget: Budget) -> str | None:
    """Where the innermost part of `schema` stands that can't be followed by itself, and its keyword.

    None if that isn't found within the budget.
    """
    definitions: Schema = {key: schema[key] for key in ("$defs", "definitions") if key in schema}

    def fits(part: Any) -> bool:
        if not isinstance(part, Mapping):
            return isinstance(part, bool)
        return _is_grammar(
            {**definitions, **part} if "$ref" in json.dumps(part) else dict(part), True, budget
        )

    def innermost(part: Any, where: str, depth: int) -> str:
        if not isinstance(part, Mapping) or depth > _MAX_DEPTH:
            return where or "the schema"
        for step, child in _children(part):
            if not fits(child):
                return innermost(child, f"{where}{step}".removeprefix("."), depth + 1)
        keys = [key for key in part if fits({other: one for other, one in part.items() if other != key})]
        if keys == ["$ref"] and isinstance(named := target(schema, part["$ref"]), Mapping):
            return innermost(named, where, depth + 1)
        return ", ".join([where or "the schema", *keys[:1]])

    try:
        return innermost(schema, "", 0)
    except UsageError:
        return None


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas within `schema`, each with the step that leads to it in a property's path."""
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            yield from ((f".{name}", one) for name, one in value.items())
        elif key in (*_UNIONS, "prefixItems", "items") and isinstance(value, list):
            yield from ((f".{key}[{index}]", one) for index, one in enumerate(value))
        elif key in _CHILDREN:
            yield ("[]" if key == "items" else f".{key}"), value


def _unfit(schema: Mapping[str, Any], root: Any, budget: Budget) -> Iterator[tuple[str, Any]]:
    """The keywords of one object that can't be followed whatever stands beside them."""
    for key, value in schema.items():
        if key == "$ref":
            if not isinstance(target(root, value), Mapping | bool):
                yield key, value
        elif key in ("pattern", "format", "type"):
            if not _compiles(key, value, budget):
                yield key, value
        elif (key in _NAMED and not isinstance(value, Mapping)) or (
            key in (*_UNIONS, "enum", "required") and not isinstance(value, list)
        ):
            yield key, value


def _compiles(key: str, value: Any, budget: Budget) -> bool:
    """Whether a keyword can be followed by itself."""
    return _is_grammar({"type": "string", key: value} if key != "type" else {key: value}, False, budget)


def _is_grammar(schema: Schema, strict: bool, budget: Budget) -> bool:
    """Raises: UsageError once the budget is spent."""
    budget.check()
    try:
        Grammar(schema, strict, budget)
    except UsageError:
        return False
    return True
