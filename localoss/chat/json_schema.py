"""Schemas of functions as the model reads them: references resolved, unions and constants written out.

openai-harmony renders a schema as TypeScript and knows plain objects, arrays and enums of text; all else it
calls `any`. Names in a list of types it writes as they stand, so what it doesn't know is given to it as one.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any]

_MAX_DEPTH, _MAX_SCHEMAS = 24, 1000  # of what is written out: references may name each other without end
_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
# Names of types that Python, Gemini and people write.
_OTHER_NAMES = {
    "str": "string",
    "text": "string",
    "int": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "dict": "object",
    "map": "object",
    "list": "array",
    "tuple": "array",
    "none": "null",
}
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONES = ("items", "additionalProperties", "not", "if", "then", "else", "propertyNames", "contains")
_KEPT = ("title", "description", "default", "examples")
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


def tidied(schema: Any, depth: int = 0) -> Any:
    """`schema` without keywords that say nothing (null, an empty type) and with JSON Schema's names of types.

    `$schema` and `$id` go too: they name a dialect and a place, and tell nothing of the value.
    """
    if not isinstance(schema, Mapping) or depth > 200:
        return schema
    result: Schema = {}
    for key, value in schema.items():
        if (value is None and key not in ("default", "const")) or key in ("$schema", "$id"):
            continue
        if key == "type":
            if (names := _type_names(value)) is not None:
                result[key] = names
        elif key == "enum" and value == []:
            continue
        elif key in _MAPS and isinstance(value, Mapping):
            result[key] = {
                name: tidied({} if inner is None else inner, depth + 1) for name, inner in value.items()
            }
        elif (key in _LISTS or key == "items") and isinstance(value, list):
            result[key] = [tidied(inner, depth + 1) for inner in value]
        elif key in _ONES:
            result[key] = tidied(value, depth + 1)
        else:
            result[key] = value
    return result


def _type_names(value: Any) -> Any:
    """The types that are meant; None where any is."""
    if isinstance(value, str):
        name = value.lower()
        name = _OTHER_NAMES.get(name, name)
        if name in ("", "any", "unknown", "mixed"):
            return None
        return name if name in _TYPES else value
    if isinstance(value, list):
        names = [_type_names(one) for one in value if isinstance(one, str)]
        return None if None in names or not names else names
    return value


def target(root: Any, reference: Any) -> Any:
    """What `reference` names within `root`; None if that isn't there."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found = root
    for part in filter(None, unquote(reference[1:]).split("/")):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, Mapping) and key in found:
            found = found[key]
        else:
            return None
    return found


def readable(parameters: Mapping[str, Any] | None) -> Schema | None:
    """The schema for openai-harmony to render, so that it names the fields and types of `parameters`."""
    if not parameters:
        return None
    return _Reader(tidied(parameters)).rewritten_root()


class _Reader:
    """Rewrites one schema; `_left` bounds how much is written out."""

    def __init__(self, root: Schema) -> None:
        self._root, self._left = root, _MAX_SCHEMAS

    def rewritten_root(self) -> Schema:
        schema = self._resolved(self._root, ())[0]
        unions = schema.get("anyOf") or schema.get("oneOf")
        if isinstance(unions, list) and unions:
            schema = self._as_one_object(schema, unions)
        return self._rewritten(schema, ("#",))

    def _as_one_object(self, schema: Schema, unions: list[Any]) -> Schema:
        """A root union as one object: a function has one list of arguments. Required is what all require."""
        variants = [self._resolved(variant, ())[0] for variant in unions]
        if any(variant.get("type", "object") != "object" for variant in variants):
            return schema
        rest = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
        properties = dict(rest.get("properties", {}))
        for variant in variants:
            for name, inner in _mapping(variant.get("properties")).items():
                known = properties.get(name)
                properties[name] = inner if known in (None, inner) else {"anyOf": [known, inner]}
        required = set.intersection(*(_names(variant.get("required")) for variant in variants))
        required |= _names(rest.get("required"))
        return {**rest, "type": "object", "properties": properties, "required": sorted(required)}

    def _resolved(self, schema: Any, seen: tuple[str, ...]) -> tuple[Schema, tuple[str, ...]]:
        """`schema` with its reference followed and its allOf merged, and the references that led there."""
        if not isinstance(schema, Mapping):
            return {}, seen
        result = dict(schema)
        while "$ref" in result:
            reference = result.pop("$ref")
            found = target(self._root, reference)
            if not isinstance(found, Mapping):
                break
            if reference in seen or len(seen) > _MAX_DEPTH:
                result |= _outline(found)
                break
            seen = (*seen, reference)
            result = {**found, **result}
        for part in result.pop("allOf", None) or ():
            inner, seen = self._resolved(part, seen)
            result = _merged(result, inner)
        return result, seen

    def _rewritten(self, schema: Any, seen: tuple[str, ...], depth: int = 0) -> Schema:
        self._left -= 1
        schema, seen = self._resolved(schema, seen)
        notes = _notes(schema)
        kinds = schema.get("type")
        if isinstance(kinds, list) and len(kinds) == 2 and "null" in kinds:  # so a nullable object says more
            (kind,) = [one for one in kinds if one != "null"] or ["null"]
            if kind in ("object", "array"):
                schema |= {"type": kind, "nullable": True}
        if depth >= _MAX_DEPTH or self._left <= 0:
            kind = schema.get("type")
            return notes | ({"type": [_type_text(kind)]} if isinstance(kind, str) else {})
        if not any(key in schema for key in ("anyOf", "oneOf", "enum", "const")):
            if isinstance(schema.get("properties"), Mapping) and schema.get("type", "object") == "object":
                return notes | self._object(schema, seen, depth)
            items = schema.get("items")
            if schema.get("type") == "array" and isinstance(items, Mapping):
                inner = self._resolved(items, seen)[0]
                if isinstance(inner.get("properties"), Mapping) and not _is_union(inner):
                    items = self._rewritten(items, seen, depth + 1)
                    nullable = {"nullable": True} if schema.get("nullable") else {}
                    return notes | {"type": "array", "items": items} | nullable
        if _is_plain(schema):
            return notes | {key: schema[key] for key in ("type", "enum", "nullable") if key in schema}
        variants = self._variants(schema)
        if any("properties" in self._resolved(variant, seen)[0] for variant in variants):
            return notes | {"oneOf": [self._rewritten(variant, seen, depth + 1) for variant in variants]}
        text = self._text(schema, seen, depth)
        return notes | ({"type": [text]} if text != "any" else {})

    def _object(self, schema: Schema, seen: tuple[str, ...], depth: int) -> Schema:
        properties = {
            _key(name): self._rewritten(inner, seen, depth + 1)
            for name, inner in schema["properties"].items()
            if inner is not False
        }
        required = [_key(name) for name in sorted(_names(schema.get("required")))]
        result: Schema = {"type": "object", "properties": properties, "required": required}
        return result | ({"nullable": True} if schema.get("nullable") else {})

    def _variants(self, schema: Schema) -> list[Any]:
        """The members of a union, with what is said beside it; a nullable object is one with null."""
        unions = schema.get("anyOf") or schema.get("oneOf")
        if not isinstance(unions, list):
            return []
        beside = {key: value for key, value in schema.items() if key in ("type", "properties", "required")}
        variants = [_merged(beside, one) if isinstance(one, Mapping) else {} for one in unions]
        return variants + ([{"type": "null"}] if schema.get("nullable") else [])

    def _text(self, schema: Any, seen: tuple[str, ...], depth: int) -> str:
        """The schema as a TypeScript type on one line."""
        self._left -= 1
        schema, seen = self._resolved(schema, seen)
        if depth >= _MAX_DEPTH or self._left <= 0:
            return "any"
        if "const" in schema:
            return _literal(schema["const"])
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return _union(_literal(value) for value in schema["enum"])
        if variants := self._variants(schema):
            return _union(self._text(variant, seen, depth + 1) for variant in variants)
        kinds = schema.get("type")
        if kinds is None:
            kinds = "object" if "properties" in schema else "array" if "items" in schema else "any"
        listed = [kinds] if isinstance(kinds, str) else list(kinds) if isinstance(kinds, list) else ["any"]
        texts = [self._kind_text(str(kind), schema, seen, depth) for kind in listed]
        return _union([*texts, "null"] if schema.get("nullable") else texts)

    def _kind_text(self, kind: str, schema: Schema, seen: tuple[str, ...], depth: int) -> str:
        if kind == "object":
            return self._object_text(schema, seen, depth)
        if kind != "array":
            return _type_text(kind)
        items = schema.get("prefixItems", schema.get("items"))
        if isinstance(items, list):
            return "[" + ", ".join(self._text(one, seen, depth + 1) for one in items) + "]"
        text = self._text(items, seen, depth + 1)
        return f"({text})[]" if " | " in text else f"{text}[]"

    def _object_text(self, schema: Schema, seen: tuple[str, ...], depth: int) -> str:
        required = _names(schema.get("required"))
        fields = [
            f"{_key(name)}{'' if name in required else '?'}: {self._text(inner, seen, depth + 1)}"
            for name, inner in _mapping(schema.get("properties")).items()
            if inner is not False
        ]
        if fields:
            return "{ " + ", ".join(fields) + " }"
        others = [*_mapping(schema.get("patternProperties")).values(), schema.get("additionalProperties")]
        values = [self._text(one, seen, depth + 1) for one in others if isinstance(one, Mapping)]
        return f"Record<string, {_union(values)}>" if values else "object"


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> Schema:
    """What holds for both, as far as a reader needs it."""
    merged = {**one, **other}
    for key in ("properties", "$defs"):
        if key in one and key in other:
            merged[key] = {**_mapping(one[key]), **_mapping(other[key])}
    if "required" in one and "required" in other:
        merged["required"] = sorted(_names(one["required"]) | _names(other["required"]))
    return merged


def _is_union(schema: Mapping[str, Any]) -> bool:
    return "anyOf" in schema or "oneOf" in schema


def _is_plain(schema: Schema) -> bool:
    """Whether openai-harmony renders it as it is: one type that it knows, or an enum of simple texts."""
    if _is_union(schema) or "const" in schema:
        return False
    if isinstance(schema.get("enum"), list):
        texts = schema["enum"]
        is_text = all(isinstance(text, str) and re.fullmatch(r"[^\"\\\x00-\x1f]*", text) for text in texts)
        return is_text and schema.get("type") == "string"
    kind = schema.get("type")
    if kind == "object":
        return not any(
            isinstance(schema.get(k), Mapping) for k in ("additionalProperties", "patternProperties")
        )
    return isinstance(kind, str) and kind in ("string", "number", "integer", "boolean")


def _outline(schema: Mapping[str, Any]) -> Schema:
    """The types of `schema` without what is in them, where it would go on without end."""
    unions = schema.get("anyOf") or schema.get("oneOf")
    variants = [one for one in unions if isinstance(one, Mapping)] if isinstance(unions, list) else [schema]
    kinds = [one.get("type", "object" if "properties" in one else None) for one in variants]
    if not kinds or not all(isinstance(kind, str) for kind in kinds):
        return {}
    return {"type": kinds[0] if len(kinds) == 1 else kinds}


def _notes(schema: Schema) -> Schema:
    notes = {key: schema[key] for key in _KEPT if key in schema}
    for key in ("title", "description"):
        if isinstance(text := notes.get(key), str):
            notes[key] = "\n// ".join(text.splitlines())
        else:
            notes.pop(key, None)
    return notes


def _key(name: str) -> str:
    """A field's name as TypeScript has it: in quotes unless it is a word."""
    return name if _IDENTIFIER.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _union(texts: Iterable[str]) -> str:
    parts = list(dict.fromkeys(texts))
    return "any" if not parts or "any" in parts else " | ".join(parts)


def _type_text(kind: str) -> str:
    if kind == "array":
        return "any[]"
    return "number" if kind == "integer" else kind if kind in _TYPES else "any"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _names(value: Any) -> set[str]:
    return {name for name in value if isinstance(name, str)} if isinstance(value, list) else set()
