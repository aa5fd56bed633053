"""Ollama's API: what its clients send, and what they are told."""

import json

import pytest
from support.live_server import MODEL, live
from support.scripted import ScriptedEngine

from localoss.chat import harmony

ASK = [{"role": "user", "content": "Weather in Rome?"}]
FINAL = "<|channel|>final<|message|>"
ANSWER = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant" + FINAL + "Sunny, 21.<|return|>"
CALL = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city":"Rome"}<|call|>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]


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


def ask(server, path="/api/chat", **body):
    asked = {"messages": ASK} if path == "/api/chat" else {}
    return server.post(path, {"model": MODEL, "stream": False, **asked, **body})


def prompt_text(engine):
    return harmony.encoding().decode(engine.prompts[-1])


def test_a_chat(served):
    server, engine = served()
    answer = ask(server, think="high").json()
    assert answer["message"] == {"role": "assistant", "content": "Sunny, 21.", "thinking": "Hm."}
    assert (answer["done"], answer["done_reason"]) == (True, "stop")
    assert answer["prompt_eval_count"] == len(engine.prompts[0]) and answer["eval_count"] > 5
    assert "Reasoning: high" in prompt_text(engine)


def test_a_stream_is_lines_and_the_default(served):
    server, _ = served()
    answer = server.post("/api/chat", {"model": MODEL + ":latest", "messages": ASK})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    *lines, last = [json.loads(line) for line in answer.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == "Sunny, 21."
    assert "".join(line["message"].get("thinking", "") for line in lines) == "Hm."
    assert not any(line["done"] for line in lines) and last["done"] and last["message"]["content"] == ""


def test_options_reach_the_engine(served):
    server, engine = served()
    options = {"temperature": 0.5, "top_k": 5, "seed": 3, "num_predict": 6, "stop": ["x"], "num_ctx": 4096}
    answer = ask(server, options=options | {"repeat_penalty": 1.1, "mirostat": 2}, keep_alive="5m")
    params = engine.params
    assert (params.temperature, params.top_k, params.seed, params.max_tokens) == (0.5, 5, 3, 6)
    assert params.repetition_penalty == 1.1 and answer.json()["done_reason"] == "length"
    assert answer.headers["x-localoss-ignored"] == "options.mirostat"
    ask(server, options={"num_predict": -1})
    assert engine.params.max_tokens is None


def test_a_round_trip_with_a_tool(served):
    server, engine = served(CALL, ANSWER)
    message = ask(server, tools=TOOLS).json()["message"]
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": {"city": "Rome"}}
    sent = {"role": "assistant", "content": "", "tool_calls": [{"function": call["function"]}]}
    result = {"role": "tool", "tool_name": "weather", "content": "21"}
    assert ask(server, messages=[*ASK, sent, result], tools=TOOLS).json()["message"]["content"]
    assert '{"city": "Rome"}' in prompt_text(engine)
    assert "functions.weather to=assistant<|channel|>commentary<|message|>21" in prompt_text(engine)


def test_a_format_is_held_to(served):
    server, engine = served(FINAL + '{"city": "Rome"}<|return|>')
    for wanted in ("json", SCHEMA):
        assert json.loads(ask(server, format=wanted).json()["message"]["content"]) == {"city": "Rome"}
        assert "# Response Formats" in prompt_text(engine)


def test_generate(served):
    server, engine = served()
    answer = ask(server, "/api/generate", prompt="Weather?", system="Be brief.").json()
    assert (answer["response"], answer["thinking"]) == ("Sunny, 21.", "Hm.")
    assert "Be brief." in prompt_text(engine)
    assert ask(server, "/api/generate", prompt="").json()["done_reason"] == "load"
    ask(server, "/api/generate", prompt="Once", raw=True)
    assert engine.prompts[-1] == harmony.encode_raw("Once")


def test_what_there_is(served):
    server, _ = served()
    assert [model["name"] for model in server.get("/api/tags").json()["models"]] == [MODEL]
    assert server.get("/api/ps").json()["models"][0]["context_length"] == 8192
    version = server.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 13, 4)  # Codex CLI asks for that
    assert "tools" in server.post("/api/show", {"model": MODEL}).json()["capabilities"]
    assert ask(server, "/api/pull").json() == {"status": "success"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/chat", {"model": "other"}, 404),
        ("/api/pull", {"model": "other"}, 404),
        ("/api/chat", {"options": {"temperature": 9}}, 400),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["AAAA"]}]}, 400),
        ("/api/embed", {"input": "x"}, 404),
    ],
)
def test_errors_have_ollamas_shape(served, path, body, status):
    server, engine = served()
    answer = ask(server, path, **body)
    assert answer.status_code == status and isinstance(answer.json()["error"], str)
    assert not engine.prompts


@pytest.mark.parametrize("role", ["assistant", "system", "tool"])
def test_a_picture_that_was_read_before_is_left_out(served, role):
    server, engine = served(ANSWER)
    before = {"role": role, "tool_name": "look", "content": "a map", "images": ["AAAA"]}
    answer = ask(server, "/api/chat", messages=[*ASK, before, {"role": "user", "content": "And?"}])
    assert answer.status_code == 200, answer.text
    assert "a map\n[image left out" in harmony.encoding().decode(engine.prompts[0])


def test_the_real_client(served):
    ollama = pytest.importorskip("ollama", reason="pip install 'localoss[soak]'")
    server, _ = served(CALL, ANSWER, ANSWER)
    client = ollama.Client(host=server.url)
    call = client.chat(model=MODEL, messages=ASK, tools=TOOLS).message
    history = [*ASK, call, {"role": "tool", "tool_name": "weather", "content": "21"}]
    parts = client.chat(model=MODEL, messages=history, tools=TOOLS, stream=True)
    assert "".join(part.message.content for part in parts) == "Sunny, 21."
    assert client.generate(model=MODEL, prompt="Hi").response == "Sunny, 21."
    assert client.list().models[0].model == MODEL and client.show(MODEL).capabilities
