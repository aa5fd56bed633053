"""Function calling and structured outputs over HTTP, on a scripted engine and on noise."""

import contextlib
import json

import jsonschema
import openai
import pydantic
import pytest
from support.live_server import MODEL, live
from support.scripted import HELLO, ScriptedEngine

import localoss
from localoss.chat import harmony

ASK = [{"role": "user", "content": "Weather in Rome?"}]
START = "<|start|>assistant"
FINAL = "<|channel|>final<|message|>"
THINK = "<|channel|>analysis<|message|>Ask the tool.<|end|>" + START
HEADER = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
CALL = HEADER + '{"city":"Rome"}<|call|>'
SUNNY = FINAL + "Sunny.<|return|>"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name, parameters=None, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [tool("get_weather", CITY, description="Weather of a city."), tool("stop")]


@pytest.fixture
def served():
    """Start a server on scripted answers: it and its engine."""
    with contextlib.ExitStack() as stack:

        def start(*answers, **options):
            engine = ScriptedEngine(list(answers) or [HELLO], **options)
            return stack.enter_context(live(engine)), engine

        yield start


def complete(server, **options):
    return server.client().chat.completions.create(
        **{"model": MODEL, "messages": ASK, "tools": TOOLS} | options
    )


def prompt_text(engine):
    return harmony.encoding().decode(engine.prompts[-1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_call(served, stream):
    server, engine = served(THINK + CALL)
    if stream:
        with server.client().chat.completions.stream(model=MODEL, messages=ASK, tools=TOOLS) as events:
            done = events.get_final_completion()
    else:
        done = complete(server)
    (choice,) = done.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and not choice.message.content
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "get_weather",
        {"city": "Rome"},
    )
    assert call.id.startswith("call_")
    text = prompt_text(engine)
    assert "namespace functions {" in text and "// Weather of a city.\ntype get_weather = (_: {" in text


def test_thinking_is_kept_for_the_result_and_dropped_after_the_answer(served):
    server, engine = served(THINK + CALL, THINK + SUNNY, SUNNY)
    messages = list(ASK)
    message = complete(server, messages=messages).choices[0].message
    # As a client would send it that knows nothing of reasoning.
    sent = {"role": "assistant", "tool_calls": [call.model_dump() for call in message.tool_calls]}
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"sky":"blue"}'}
    messages += [sent, result]
    answer = complete(server, messages=messages).choices[0].message
    text = prompt_text(engine)
    thought = "<|channel|>analysis<|message|>Ask the tool.<|end|>"
    assert f"{thought}{START} to=functions.get_weather<|channel|>commentary" in text
    assert '<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>{"sky":"blue"}' in text
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": "And Oslo?"}]
    complete(server, messages=messages)
    text = prompt_text(engine)
    assert "Ask the tool." not in text and '{"city":"Rome"}' in text and "Sunny." in text


def test_a_preamble_is_content_before_a_call(served):
    server, engine = served("<|channel|>commentary<|message|>Let me look.<|end|>" + START + CALL, SUNNY)
    message = complete(server).choices[0].message
    assert message.content == "Let me look." and message.tool_calls
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "blue"}
    complete(server, messages=[*ASK, message.model_dump(exclude_none=True), result])
    assert prompt_text(engine).count("Let me look.") == 1


def test_the_history_of_another_server_is_read(served):
    server, engine = served(SUNNY)
    calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": "stop", "arguments": f'{{"n":{n}}}'}}
        for n in (1, 2)
    ]
    results = [{"role": "tool", "tool_call_id": f"call_{n}", "content": f"result {n}"} for n in (1, 2)]
    said = {"role": "assistant", "content": "Two calls.", "reasoning_content": "Both.", "tool_calls": calls}
    complete(server, messages=[*ASK, said, *results])
    text = prompt_text(engine)
    for piece in ("analysis<|message|>Both.", "commentary<|message|>Two calls.", '{"n":1}', '{"n":2}'):
        assert piece in text
    assert text.index("result 1") < text.index("result 2")


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_is_told_as_such(served, stream):
    """What a stream has given of it is begun only: its arguments are no JSON, and length says why."""
    server, _ = served(THINK + CALL)
    limit = len(harmony.encode_raw(THINK + CALL)) - 1
    answer = complete(server, max_tokens=limit, stream=stream)
    if stream:
        chunks = list(answer)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        arguments = "".join(call.function.arguments or "" for call in calls)
        assert (
            calls[0].id
            and calls[0].function.name == "get_weather"
            and '{"city":"Rome"}'.startswith(arguments)
        )
        assert chunks[-1].choices[0].finish_reason == "length"
    else:
        assert answer.choices[0].finish_reason == "length" and not answer.choices[0].message.tool_calls


def allowed_at_the_start(**options):
    """What the first header's mask lets through, as text."""
    seen = []

    class Looking(ScriptedEngine):
        def generate(self, tokens, *arguments, mask, **more):
            seen.append({harmony.encoding().decode([int(i)]) for i in mask().nonzero()[0]})
            yield from super().generate(tokens, *arguments, mask=None, **more)

    with live(Looking([HELLO])) as server:
        complete(server, **options)
    return seen[0]


def test_tool_choice(served):
    assert allowed_at_the_start() == {"<|channel|>", " to"}
    assert allowed_at_the_start(tool_choice="none") == {"<|channel|>"}
    for choice in ("required", {"type": "function", "function": {"name": "stop"}}):
        server, _ = served(FINAL + "I won't.<|return|>")
        with pytest.raises(openai.InternalServerError):  # the scripted engine insists, and the mask forbids
            complete(server, tool_choice=choice)
    server, _ = served(CALL)
    assert complete(server, tool_choice="required").choices[0].finish_reason == "tool_calls"
    with pytest.raises(openai.InternalServerError):
        complete(server, tool_choice={"type": "function", "function": {"name": "stop"}})
    with pytest.raises(openai.BadRequestError, match="'fly', which isn't among the tools"):
        complete(server, tool_choice={"type": "function", "function": {"name": "fly"}})


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ([tool("a b")], "function name 'a b'"),
        ([tool("x"), tool("x")], "two tools have the name 'x'"),
        ([tool("x", {"type": "banana"}, strict=True)], "schema, type: the JSON schema can't be followed: In"),
        ([tool("x", {"not": {}}, strict=True)], "can't be followed: Unimplemented keys"),
        ([{"type": "namespace", "name": "x"}], "needs a name and tools"),
        ([{"type": "custom"}], "needs a name"),
    ],
)
def test_tools_that_cannot_be(served, tools, says):
    server, engine = served()
    with pytest.raises(openai.BadRequestError) as caught:
        complete(server, tools=tools)
    assert says in caught.value.body["message"] and not engine.prompts


def test_a_schema_that_isnt_strict_may_hold_what_cannot_be_followed(served):
    server, _ = served('<|channel|>commentary to=functions.x<|message|>{"a": 1}<|call|>')
    tools = [tool("x", {"type": "object", "not": {"required": ["b"]}})]
    assert complete(server, tools=tools).choices[0].message.tool_calls[0].function.arguments == '{"a": 1}'


class Weather(pydantic.BaseModel):
    city: str
    celsius: float


def test_parse(served):
    server, engine = served(THINK + FINAL + '{"city": "Rome", "celsius": 21.5}<|return|>')
    done = server.client().chat.completions.parse(model=MODEL, messages=ASK, response_format=Weather)
    assert done.choices[0].message.parsed == Weather(city="Rome", celsius=21.5)
    text = prompt_text(engine)
    assert "# Response Formats\n\n## Weather\n\n{" in text and '"celsius"' in text
    server.client().chat.completions.create(
        model=MODEL, messages=ASK, response_format={"type": "json_object"}
    )
    assert "## json_object" in prompt_text(engine)


@pytest.fixture(scope="module")
def noisy(model):
    """A server on the real engine, whose weights are noise."""
    with live(localoss.load(model("harmony"), context_tokens=1024, threads=1)) as server:
        yield server


FLAG = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "mood": {"enum": ["glad", "sad", "très 🎉"]},
        "marks": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 6}, "maxItems": 3},
    },
    "required": ["ok", "mood", "marks"],
    "additionalProperties": False,
}


def test_noise_calls_by_the_schema(noisy):
    """Whatever is drawn, a delivered call is valid, and one that isn't complete isn't delivered."""
    tools = [tool("get_weather", CITY), tool("flag", FLAG)]
    flag = {"type": "function", "function": {"name": "flag"}}
    reasons = []
    for seed in range(12):
        done = complete(noisy, tools=tools, tool_choice=flag, seed=seed, max_tokens=150, temperature=1.5)
        choice = done.choices[0]
        reasons.append(choice.finish_reason)
        assert bool(choice.message.tool_calls) == (choice.finish_reason == "tool_calls")
        for call in choice.message.tool_calls or []:
            jsonschema.validate(json.loads(call.function.arguments), FLAG)
            assert call.function.name == "flag"
    assert set(reasons) <= {"tool_calls", "length"} and "tool_calls" in reasons


def test_noise_answers_by_the_schema(noisy):
    wanted = {"type": "json_schema", "json_schema": {"name": "flag", "schema": FLAG, "strict": True}}
    reasons = []
    for seed in range(12):
        done = complete(
            noisy, tools=openai.NOT_GIVEN, response_format=wanted, seed=seed, max_tokens=150, temperature=1.5
        )
        choice = done.choices[0]
        reasons.append(choice.finish_reason)
        if choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.message.content), FLAG)
    assert set(reasons) <= {"stop", "length"} and "stop" in reasons


OK = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
OK |= {"additionalProperties": False}


def test_the_thinking_budget(noisy):
    """Noise would think on for ever: at the budget the answer begins, or the call where one is due.

    The JSON has at most 32 characters of space in each of four places, so there is always room for it.
    """
    wanted = {"type": "json_schema", "json_schema": {"name": "ok", "schema": OK, "strict": True}}
    for seed in range(4):
        options = {"seed": seed, "max_tokens": 200, "extra_body": {"think_budget": seed * 3}}
        done = complete(noisy, tools=openai.NOT_GIVEN, response_format=wanted, **options)
        assert done.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(done.choices[0].message.content), OK)
        assert done.usage.completion_tokens_details.reasoning_tokens <= seed * 3
        done = complete(noisy, tools=[tool("ok", OK)], tool_choice="required", **options)
        assert done.choices[0].finish_reason == "tool_calls"
    done = noisy.client().responses.create(
        model=MODEL, input="Hi", max_output_tokens=20, extra_body={"think_budget": 0}
    )
    assert [item.type for item in done.output] == ["message"]


def test_the_servers_own_thinking_budget(noisy, monkeypatch):
    monkeypatch.setattr(noisy.service, "default_think_budget", 4)
    for more in ({}, {"extra_body": {"think_budget": 0}}):
        done = complete(noisy, tools=openai.NOT_GIVEN, max_tokens=20, **more)
        assert done.usage.completion_tokens_details.reasoning_tokens <= (0 if more else 4)
        assert done.choices[0].message.content
