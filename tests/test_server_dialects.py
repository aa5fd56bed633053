"""The same thing in others' words: fields of OpenRouter, vLLM, Anthropic and Ollama, JSON of PHP."""

import json

import pytest
from support.calling import function
from support.live_server import MODEL, live
from support.obedient import ObedientEngine
from support.scripted import HELLO

from localoss.chat import harmony

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
THOUGHT, SAID = "A greeting.", "Hello!"


@pytest.fixture(scope="module")
def server():
    with live(ObedientEngine()) as running:
        running.engine = running.service.engine
        yield running


def ask(server, path="/v1/chat/completions", **body):
    """What is answered, and the prompt that the model was given."""
    server.engine.prompts.clear()
    server.engine.answers = [HELLO if "tool_choice" not in body else function("f", "{}")]
    messages = {"input": "Hi"} if path == "/v1/responses" else {"messages": [USER]}
    limit = {"max_tokens": 99} if path == "/v1/messages" else {"stream": False} if "/api" in path else {}
    answer = server.post(path, {"model": MODEL, **messages, **limit} | body)
    assert answer.status_code == 200, answer.text
    return answer, harmony.encoding().decode(server.engine.prompts[0])


def thought_of(answer):
    return answer.json()["choices"][0]["message"].get("reasoning_content")


@pytest.mark.parametrize(
    "off",
    [
        {"reasoning_effort": "none"},
        {"reasoning": {"enabled": False}},
        {"reasoning": {"effort": "none"}},
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"thinking": {"type": "disabled"}},
        {"reasoning": {"max_tokens": 0}},
    ],
)
def test_thinking_is_switched_off(server, off):
    answer, _ = ask(server, **off)
    assert thought_of(answer) is None and "x-localoss-ignored" not in answer.headers


@pytest.mark.parametrize("hidden", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
def test_thinking_is_kept_from_who_wants_none(server, hidden):
    answer, _ = ask(server, **hidden)
    assert thought_of(answer) is None and answer.json()["usage"]["completion_tokens"] > 10
    stream, _ = ask(server, stream=True, **hidden)
    assert '"content":"Hello"' in stream.text and "reasoning" not in stream.text.replace("reasoning_tok", "")
    assert thought_of(ask(server)[0]) == THOUGHT


@pytest.mark.parametrize("word", ["HIGH", "xhigh", " Max "])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", lambda word: {"reasoning_effort": word}),
        ("/v1/responses", lambda word: {"reasoning": {"effort": word}}),
        ("/v1/messages", lambda word: {"output_config": {"effort": word}}),
        ("/api/chat", lambda word: {"think": word}),
    ],
)
def test_every_api_knows_every_effort(server, path, body, word):
    assert "Reasoning: high" in ask(server, path, **body(word))[1]
    assert "Reasoning: medium" in ask(server, path, **body("auto"))[1]


def test_an_effort_that_is_none_is_told_with_those_that_are(server):
    answer = server.post(
        "/v1/chat/completions", {"model": MODEL, "messages": [USER], "reasoning_effort": "x"}
    )
    assert answer.status_code == 400 and "'minimal', 'low', 'medium'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [{"degrees": 24}, [{"degrees": 24}], [24, "degrees"], [{"stdout": "degrees", "outcome": 24}]],
    ids=json.dumps,
)
def test_what_a_tool_gave_may_be_any_json(server, content):
    said = {"role": "assistant", "tool_calls": [CALL | {"id": None}]}
    _, prompt = ask(server, messages=[USER, said, {"role": "tool", "content": content}])
    assert json.dumps(content, ensure_ascii=False) in prompt
    call = {"type": "shell_call", "call_id": "c", "action": {}}
    items = [USER, call, {"type": "shell_call_output", "call_id": "c", "output": content}]
    assert json.dumps(content, ensure_ascii=False) in ask(server, "/v1/responses", input=items)[1]
    used = {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": content}]}
    assert (
        json.dumps(content, ensure_ascii=False)
        in ask(server, "/v1/messages", messages=[USER, used, result])[1]
    )


@pytest.mark.parametrize(
    "block",
    [
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "It is red."}},
        {
            "type": "document",
            "source": {"type": "content", "content": [{"type": "text", "text": "It is red."}]},
        },
        {
            "type": "search_result",
            "source": "a",
            "title": "b",
            "content": [{"type": "text", "text": "It is red."}],
        },
    ],
)
def test_documents_that_are_text_are_read(server, block):
    assert "It is red." in ask(server, "/v1/messages", messages=[{"role": "user", "content": [block]}])[1]


FIELDS = {"type": "object", "properties": {"city": {"type": "string"}}}


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"name": "f", "parameters": FIELDS}},
        {"type": "function", "name": "f", "parameters": FIELDS},
        {"name": "f", "input_schema": FIELDS},
        {"function": {"name": "f", "inputSchema": FIELDS}},
    ],
)
def test_a_functions_fields_are_read_by_any_name(server, tool):
    assert "city?: string" in ask(server, tools=[tool])[1]
    if tool.get("type") == "function":
        assert "type f = " in ask(server, "/v1/messages", tools=[tool])[1]


def test_an_empty_object_of_phps_has_no_fields(server):
    tools = [{"type": "function", "function": {"name": "f", "parameters": []}}]
    answer, _ = ask(server, tools=tools, tool_choice="required")
    assert answer.json()["choices"][0]["message"]["tool_calls"][0]["function"] == {
        "name": "f",
        "arguments": "{}",
    }


@pytest.mark.parametrize(
    ("choice", "calls"),
    [
        ("any", True),
        ("f", True),
        ({"type": "any"}, True),
        ({"type": "required"}, True),
        ({"type": "tool", "name": "f"}, True),
        ({"type": "auto"}, True),
        ({"type": "none"}, False),
    ],
)
def test_a_choice_in_others_words(server, choice, calls):
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    ]
    answer, _ = ask(server, tools=tools, tool_choice=choice)
    assert ("tool_calls" in answer.json()["choices"][0]["message"]) is calls


@pytest.mark.parametrize("choice", [{}, {"type": "function"}, {"type": "tool"}])
def test_a_choice_without_a_name_says_what_is_missing(server, choice):
    body = {"model": MODEL, "messages": [USER], "tools": [CALL], "tool_choice": choice}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 400 and "say the name of the tool" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "json_object", "schema": FIELDS},
        {"type": "json_schema", "schema": FIELDS},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": FIELDS}},
    ],
)
def test_a_schema_of_the_answer_by_any_name(server, wanted):
    assert '"city"' in ask(server, response_format=wanted)[1]


def test_anthropics_former_name_of_a_schema(server):
    wanted = {"type": "json_schema", "schema": FIELDS | {"additionalProperties": False}}
    assert '"city"' in ask(server, "/v1/messages", output_format=wanted)[1]


@pytest.mark.parametrize("stops", [["!", "o"], ["o!", "lo"], ["Hello!", "zzz"]])
def test_anthropics_clients_are_told_which_stop_sequence_it_was(server, stops):
    message = ask(server, "/v1/messages", stop_sequences=stops)[0].json()
    first = min(stops, key=lambda stop: SAID.find(stop) if stop in SAID else 99)
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", first)
    message = ask(server, "/v1/messages", stop_sequences=["zzz", "yyy"])[0].json()
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


def test_what_says_nothing_of_an_answer_passes_in_objects_too(server):
    options = {"numa": True, "use_mlock": True, "tfs_z": 1, "mirostat": 0, "mirostat_tau": 5}
    answer, _ = ask(server, "/api/chat", options=options)
    assert answer.headers["x-localoss-ignored"] == "options.mirostat_tau"
    answer, _ = ask(
        server, reasoning={"effort": "low", "depth": 3}, messages=[USER | {"content": [{"text": "x"}]}]
    )
    assert answer.headers["x-localoss-ignored"] == "reasoning.depth"


def test_a_body_that_is_packed_is_refused_for_what_it_is(server):
    answer = server.post("/v1/chat/completions", {}, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415 and "gzip" in answer.json()["error"]["message"]


def test_text_to_be_put_in_the_middle_is_not_made_up(server):
    answer = server.post("/api/generate", {"model": MODEL, "prompt": "def f(", "suffix": "return"})
    assert answer.status_code == 400 and answer.json() == {"error": f"{MODEL} does not support insert"}


LOOKS_AHEAD = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^(?!x)y"}},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"response_format": {"type": "json_object", "schema": LOOKS_AHEAD}}),
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "x", "schema": LOOKS_AHEAD}}}),
        ("/api/chat", {"format": LOOKS_AHEAD}),
    ],
)
def test_a_format_that_isnt_strict_holds_as_far_as_it_can(server, path, body):
    """As zod's addresses have it: what can't be followed is left out, and the rest holds."""
    answer, _ = ask(server, path, **body)
    said = answer.json()
    texts = {
        "/api/chat": lambda: said["message"]["content"],
        "/v1/responses": lambda: said["output"][-1]["content"][0]["text"],
        "/v1/chat/completions": lambda: said["choices"][0]["message"]["content"],
    }
    assert json.loads(texts[path]()) == {"city": ""}


def test_a_strict_format_is_refused_with_its_place(server):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": LOOKS_AHEAD}}
    answer = server.post(
        "/v1/chat/completions", {"model": MODEL, "messages": [USER], "response_format": wanted}
    )
    assert answer.status_code == 400 and "city, pattern" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "tool"),
    [
        ("/v1/chat/completions", {"google_search": {}}),
        ("/v1/chat/completions", {"type": "builtin_function", "function": {"name": "$web_search"}}),
        ("/v1/responses", {"type": "x_search"}),
        ("/v1/messages", {"type": "text_editor_20250728", "name": "edit"}),
        ("/api/chat", {"type": "retrieval"}),
    ],
)
def test_a_tool_that_this_server_cant_run_is_left_out(server, path, tool):
    answer, prompt = ask(server, path, tools=[tool])
    kind = tool.get("type", "google_search")
    assert answer.headers["x-localoss-ignored"] == f"tools:{kind}" and "# Tools" not in prompt
