"""Anthropic's API: what its clients send, and what they are told."""

import json

import pytest
from support.live_server import MODEL, live
from support.scripted import ScriptedEngine

from localoss.chat import harmony

ASK = [{"role": "user", "content": "Weather in Rome?"}]
FINAL = "<|channel|>final<|message|>"
ANSWER = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant" + FINAL + "Sunny, 21.<|return|>"
CALL = "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant<|channel|>commentary "
CALL += 'to=functions.weather <|constrain|>json<|message|>{"city":"Rome"}<|call|>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"name": "weather", "description": "Weather.", "input_schema": SCHEMA}]


@pytest.fixture
def served():
    """Start a server that says `answers`: it and its engine."""
    contexts = []

    def start(*answers, **options):
        engine = ScriptedEngine(list(answers) or [ANSWER])
        contexts.append(live(engine, **options))
        return contexts[-1].__enter__(), engine

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


def ask(server, path="/v1/messages", **body):
    return server.post(path, {"model": MODEL, "max_tokens": 100, "messages": ASK} | body)


def prompt_text(engine):
    return harmony.encoding().decode(engine.prompts[-1])


def events_of(answer):
    lines = [line for line in answer.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_message(served):
    server, engine = served()
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    message = ask(server, system=system, output_config={"effort": "high"}).json()
    assert message["content"] == [{"type": "text", "text": "Sunny, 21."}]
    assert (message["type"], message["role"], message["stop_reason"]) == ("message", "assistant", "end_turn")
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(engine.prompts[0])
    assert "Be brief." in prompt_text(engine) and "Reasoning: high" in prompt_text(engine)


def test_thinking_is_shown_to_who_asks_for_it(served):
    server, _ = served()
    thought, text = ask(server, thinking={"type": "adaptive"}).json()["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "Hm.") and text["type"] == "text"
    assert len(ask(server, thinking={"type": "disabled"}).json()["content"]) == 1


def test_how_a_message_ends(served):
    server, _ = served()
    cut = ask(server, max_tokens=6).json()
    assert cut["stop_reason"] == "max_tokens"
    stopped = ask(server, stop_sequences=[","]).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", ",")
    assert stopped["content"][0]["text"] == "Sunny"


def test_a_stream_comes_in_anthropics_order(served):
    server, _ = served()
    events = events_of(ask(server, stream=True, thinking={"type": "enabled", "budget_tokens": 50}))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("text", "") for delta in deltas) == "Sunny, 21."
    assert sum(delta["type"] == "signature_delta" for delta in deltas) == 1
    assert events[-2]["usage"]["output_tokens"] > 0


def test_a_round_trip_with_a_tool(served):
    server, engine = served(CALL, ANSWER)
    (call,) = (message := ask(server, tools=TOOLS).json())["content"]
    assert message["stop_reason"] == "tool_use"
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Rome"})
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "21"}]}
    history = [
        *ASK,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    ask(server, messages=history, tools=TOOLS)
    text = prompt_text(engine)
    assert "<|channel|>analysis<|message|>Ask.<|end|>" in text  # what the client doesn't send back
    assert "functions.weather to=assistant<|channel|>commentary<|message|>21<|end|>" in text
    assert text.index("21<|end|>") < text.index("And?")


def test_tool_choices(served):
    server, _ = served(CALL)
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        assert ask(server, tools=TOOLS, tool_choice=choice).json()["stop_reason"] == "tool_use"
    long = [
        {"name": "mcp__" + "x" * 100, "input_schema": SCHEMA},
        {"type": "web_search_20250305", "name": "w"},
    ]
    answer = ask(server, path="/v1/messages/count_tokens", tools=long)
    assert answer.headers["x-localoss-ignored"] == "max_tokens, tools:web_search_20250305"


def test_tokens_are_counted_as_they_are_read(served):
    server, engine = served()
    counted = ask(server, path="/v1/messages/count_tokens", tools=TOOLS, system="Be brief.").json()
    ask(server, tools=TOOLS, system="Be brief.")
    assert counted == {"input_tokens": len(engine.prompts[0])}


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"model": "claude-9"}, 404, "not_found_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"max_tokens": 0}, 400, "invalid_request_error"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "invalid_request_error"),
    ],
)
def test_errors_have_anthropics_shape(served, body, status, kind):
    server, engine = served()
    answer = ask(server, **body)
    assert answer.status_code == status and answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == kind and answer.json()["error"]["message"]
    assert not engine.prompts


def test_the_key_may_come_as_x_api_key(served):
    server, _ = served(api_key="secret")
    body = {"model": MODEL, "max_tokens": 9, "messages": ASK}
    assert server.post("/v1/messages", body, headers={"x-api-key": "secret"}).status_code == 200
    refused = server.post("/v1/messages", body, headers={"x-api-key": "other"})
    assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"


def test_the_real_client(served):
    anthropic = pytest.importorskip("anthropic", reason="pip install 'localoss[soak]'")
    server, _ = served(CALL, ANSWER, ANSWER)
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    options = {"model": MODEL, "max_tokens": 100, "tools": TOOLS}
    called = client.messages.create(messages=ASK, **options)
    call = called.content[-1]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "21"}
    history = [*ASK, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    with client.messages.stream(messages=history, **options) as stream:
        assert "".join(stream.text_stream) == "Sunny, 21."
        assert stream.get_final_message().stop_reason == "end_turn"
    assert client.messages.count_tokens(model=MODEL, messages=ASK).input_tokens > 10
