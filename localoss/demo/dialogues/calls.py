"""Dialogues with functions: the call with its arguments, and the answer from the result."""

import json
import random
from dataclasses import dataclass, replace
from typing import Any

from localoss.chat.harmony import Function, Message
from localoss.demo.dialogues import words
from localoss.demo.dialogues.case import Case, a_setup, answer, styled, thought
from localoss.demo.dialogues.words import choices


@dataclass(frozen=True)
class Parameter:
    """name, its JSON schema, and the values that it may take."""

    name: str
    schema: dict[str, Any]
    values: tuple[str | int | bool, ...]


@dataclass(frozen=True)
class Request:
    """A function that is offered, what the user says, and the arguments that this means."""

    function: Function
    text: str
    arguments: dict[str, str | int | bool]


def _parameter(name: str, kind: str, values: tuple[str | int | bool, ...]) -> Parameter:
    return Parameter(name, {"type": kind}, values)


def _choice(name: str, values: tuple[str | int | bool, ...]) -> Parameter:
    return Parameter(name, {"type": "string", "enum": list(values)}, values)


_NUMBERS = tuple(range(1, 100))
_PARAMETERS = (
    *(
        _parameter(name, "string", words.CITIES)
        for name in ("city", "place", "location", "town", "destination")
    ),
    *(
        _parameter(name, "string", words.PEOPLE)
        for name in choices("name | person | user | contact | owner | author")
    ),
    *(_parameter(name, "string", words.FOODS) for name in ("item", "food", "product")),
    *(_parameter(name, "string", words.COLORS) for name in ("color", "shade")),
    *(_parameter(name, "string", words.DAYS) for name in ("day", "date")),
    *(_parameter(name, "string", words.LANGUAGES) for name in ("language", "target")),
    *(
        _parameter(name, "integer", _NUMBERS)
        for name in choices(
            """count | days | limit | amount | minutes | number | size | id | page | level | age | hours |
            width"""
        )
    ),
    *(_parameter(name, "number", _NUMBERS) for name in ("price", "value", "weight", "rate", "height")),
    *(_parameter(name, "boolean", (True, False)) for name in ("urgent", "loud", "public", "active", "all")),
    _choice("unit", ("celsius", "kelvin")),
    _choice("mode", ("fast", "slow")),
    _choice("format", ("text", "html")),
    _choice("priority", ("low", "high")),
    _choice("order", ("up", "down")),
)
_RESULT_KEYS = choices(
    """temperature | price | status | count | total | distance | time | score | color | name | level | rate
    | balance | id | size | sky | wind | date | title | speed | height | weight | value | number | code
    | age"""
)
_RESULT_WORDS = (
    *choices("clear | open | closed | ready | done | late | free | full | good | sunny | ok | new | sent"),
    *(words.COLORS + words.PEOPLE[:10] + words.DAYS),
)
_ASKS = choices(
    """{v} {n}: {args} | please {v} the {n} with {args} | {v} the {n}, {args} | {v} a {n} with {args} | can
    you {v} the {n} for {args} | i want to {v} the {n} with {args} | {v} {n} with {args} | {v} the {n}
    for {args} | could you {v} a {n}, {args} | i need to {v} a {n}: {args} | {v} my {n}, {args}"""
)
_NAMES = choices("{v}_{n} | {v}_{n} | {v}_{n} | {v}{N} | {n}_{v} | {n}")


@dataclass(frozen=True)
class Family:
    """What people say to assistants: names of the function, of its parameters, and ways to ask.

    values and parameters have one entry per argument, and {0}, {1} in asks stand for them.
    """

    about: str
    names: tuple[str, ...]
    parameters: tuple[tuple[str, ...], ...]
    values: tuple[tuple[str, ...] | tuple[int, ...], ...]
    asks: tuple[str, ...]


_PLACE_NAMES = ("city", "location", "place", "town")
_PERSON_NAMES = ("name", "person", "contact", "user")
_FAMILIES = (
    Family(
        "the weather of a city",
        choices("get_weather | weather | current_weather | weather_now | check_weather | city_weather"),
        (_PLACE_NAMES,),
        (words.CITIES,),
        choices(
            """what is the weather in {0} | how is the weather in {0} | weather in {0} | what's the weather
            like in {0} | tell me the weather in {0} | is it warm in {0} | will it rain in {0} | how
            warm is it in {0} | is it cold in {0} | the weather for {0} please"""
        ),
    ),
    Family(
        "the weather of a city for some days",
        choices("get_weather | weather_days | city_weather | weather_list"),
        (_PLACE_NAMES, ("days", "count", "number")),
        (words.CITIES, _NUMBERS),
        choices(
            """what is the weather in {0} for {1} days | weather in {0} for the next {1} days | {1} days of
            weather in {0} | how will the weather in {0} be over {1} days"""
        ),
    ),
    Family(
        "the time in a city",
        choices("get_time | time | current_time | city_time | time_now | check_time"),
        (_PLACE_NAMES,),
        (words.CITIES,),
        choices(
            """what time is it in {0} | time in {0} | tell me the time in {0} | what is the time in {0} | how
            late is it in {0}"""
        ),
    ),
    Family(
        "a timer of some minutes",
        choices("set_timer | start_timer | timer | create_timer | add_timer"),
        (("minutes", "time", "count"),),
        (_NUMBERS,),
        choices(
            """set a timer for {0} minutes | start a timer of {0} minutes | timer for {0} minutes | wake me
            in {0} minutes"""
        ),
    ),
    Family(
        "an order of some things",
        choices("order_item | buy_item | add_item | order_product | buy_product"),
        (("item", "product", "food", "name"), ("count", "number", "amount")),
        (words.FOODS, _NUMBERS),
        choices(
            """order {1} {0} | buy {1} {0} | i want {1} {0} | please order {1} {0} | get me {1} {0} | i
            need {1} {0}"""
        ),
    ),
    Family(
        "a call to a person",
        choices("call_contact | call_phone | phone_call | call_user"),
        (_PERSON_NAMES,),
        (words.PEOPLE,),
        choices("call {0} | please call {0} | phone {0} | i want to call {0} | can you call {0}"),
    ),
    Family(
        "a message to a person",
        choices("send_message | send_email | message_send | write_message"),
        ((*_PERSON_NAMES, "to"), ("day", "date")),
        (words.PEOPLE, words.DAYS),
        choices("send {0} a message on {1} | write to {0} on {1} | message {0} on {1}"),
    ),
)


def calls(rng: random.Random) -> Case:
    """A request for one of one to three functions; the reply goes from the call to the answer."""
    request = _family(rng) if rng.random() < 0.4 else _generic(rng)
    setup = replace(a_setup(rng), functions=_with_others(rng, request.function))
    name, arguments = request.function.name, json.dumps(request.arguments, separators=(",", ":"))
    spoken = ", ".join(f"{key} {_shown(value)}" for key, value in request.arguments.items())
    steps = thought(
        setup, "", f"I call {name} with {spoken}.", f"Check: {len(request.arguments)} arguments. Right."
    )
    result = _result(rng)
    told = ", ".join(f"{key} {_shown(value)}" for key, value in result.items())
    call = Message("assistant", arguments, "commentary", f"functions.{name}", "json")
    tool = Message("tool", _written(rng, result), "commentary", "assistant", name=f"functions.{name}")
    reply = (*steps, call, tool, answer(f"The result: {told}."))
    keys = (f"function {name}", f"arguments {arguments}", f"result {told}")
    text = styled(rng, request.text, question=False)
    return Case("calls", keys, setup, (Message("user", text),), reply)


def offered(rng: random.Random, case: Case) -> Case:
    """`case`, whose question needs no function, with functions offered all the same."""
    return replace(case, setup=replace(case.setup, functions=_with_others(rng, _generic(rng).function)))


def until_call(case: Case) -> Case:
    """A case of `calls` that ends with the call."""
    return replace(case, reply=case.reply[:-2])


def from_result(case: Case) -> Case:
    """A case of `calls` that begins with the tool's result."""
    return replace(case, skill="results", messages=case.messages + case.reply[:-1], reply=case.reply[-1:])


def _generic(rng: random.Random) -> Request:
    """A verb and a noun, and arguments by their names."""
    verb, noun = rng.choice(words.VERBS), rng.choice(words.NOUNS)
    name = rng.choice(_NAMES).format(v=verb, n=noun, N=noun.capitalize())
    parameters = _some_parameters(rng)
    function = _function(rng, name, f"{verb} the {noun}", parameters)
    required = function.parameters["required"] if function.parameters else []
    given = [p for p in parameters if p.name in required or rng.random() < 0.5]
    arguments = {p.name: rng.choice(p.values) for p in given}
    spoken = [f"{key} {_shown(value)}" for key, value in arguments.items()]
    joined = ", ".join(spoken)
    if len(spoken) > 1 and rng.random() < 0.5:
        joined = f"{', '.join(spoken[:-1])} and {spoken[-1]}"
    return Request(function, rng.choice(_ASKS).format(v=verb, n=noun, args=joined), arguments)


def _family(rng: random.Random) -> Request:
    """A request that doesn't name the parameters."""
    family = rng.choice(_FAMILIES)
    parameters = [
        Parameter(rng.choice(names), _schema(values), values)
        for names, values in zip(family.parameters, family.values, strict=True)
    ]
    arguments = {p.name: rng.choice(p.values) for p in parameters}
    function = _function(rng, rng.choice(family.names), family.about, parameters)
    return Request(function, rng.choice(family.asks).format(*map(_shown, arguments.values())), arguments)


def _schema(values: tuple[Any, ...]) -> dict[str, Any]:
    return {"type": "string" if isinstance(values[0], str) else "integer"}


def _some_parameters(rng: random.Random) -> list[Parameter]:
    parameters = rng.sample(_PARAMETERS, rng.choice((1, 1, 2, 2, 3)))
    return list({p.name: p for p in parameters}.values())


def _function(rng: random.Random, name: str, what: str, parameters: list[Parameter]) -> Function:
    required = [p.name for p in parameters if rng.random() < 0.7] or [parameters[0].name]
    properties = {p.name: p.schema | _described(rng, p) for p in parameters}
    schema = {"type": "object", "properties": properties, "required": required}
    description = rng.choice((f"{what[0].upper()}{what[1:]}.", f"Use it to {what}.", ""))
    return Function(name, description, schema)


def _described(rng: random.Random, parameter: Parameter) -> dict[str, str]:
    return {"description": f"The {parameter.name}."} if rng.random() < 0.3 else {}


def _with_others(rng: random.Random, function: Function) -> tuple[Function, ...]:
    others = [
        (_family(rng) if rng.random() < 0.3 else _generic(rng)).function
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))
    ]
    functions = list({f.name: f for f in (*others, function)}.values())
    rng.shuffle(functions)
    return tuple(functions)


def _result(rng: random.Random) -> dict[str, str | int]:
    keys = rng.sample(_RESULT_KEYS, rng.choice((1, 2, 2, 3)))
    return {key: _number(rng) if rng.random() < 0.6 else rng.choice(_RESULT_WORDS) for key in keys}


def _number(rng: random.Random) -> int:
    return rng.randint(0, 99 if rng.random() < 0.8 else 999)


def _written(rng: random.Random, result: dict[str, str | int]) -> str:
    return json.dumps(result) if rng.random() < 0.5 else json.dumps(result, separators=(",", ":"))


def _shown(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)
