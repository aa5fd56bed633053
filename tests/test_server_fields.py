"""What clients send beyond what localoss knows: fields, kinds of tools, old history, words for an effort."""

import json
import logging

import httpx2
import pytest
from support.live_server import MODEL, live
from support.scripted import HELLO, ScriptedEngine

from localoss.chat import harmony
from localoss.server.core.toolbox import model_name, open_toolbox

ASK = [{"role": "user", "content": "Hi"}]
PATCH = '<|channel|>commentary to=functions.apply_patch<|message|>{"input": "*** Begin\\n\\"x\\""}<|call|>'
WEB_FUNCTION = {"type": "function", "name": "open", "parameters": {"type": "object"}}
WEB = {"type": "namespace", "name": "web", "tools": [WEB_FUNCTION]}
OPEN = "<|channel|>commentary to=functions.web__open<|message|>{}<|call|>"
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>A.<|return|>"
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
READS_NONE = "[image left out: this model reads text only]"


@pytest.fixture
def served(request):
    """Start a server that says `answers`: it and its engine."""
    with_exit = []

    def start(*answers, **options):
        engine = ScriptedEngine(list(answers) or [HELLO])
        context = live(engine, **options)
        with_exit.append(context)
        return context.__enter__(), engine

    yield start
    for context in with_exit:
        context.__exit__(None, None, None)


def prompt_text(engine):
    return harmony.encoding().decode(engine.prompts[-1])


def chat(server, **body):
    return server.post("/v1/chat/completions", {"model": MODEL, "messages": ASK} | body)


def respond(server, **body):
    return server.post("/v1/responses", {"model": MODEL, "input": "Hi"} | body)


def test_unknown_fields_are_named_to_the_client_and_once_in_the_log(served, caplog):
    server, _ = served()
    caplog.set_level(logging.WARNING, "localoss.server")
    for _ in range(2):
        answer = chat(
            server, colour=1, cache_prompt=True, echo=False, stream_options={"zeal": 2}, **{"ä\n": 1}
        )
        assert answer.status_code == 200
        assert answer.headers["x-localoss-ignored"] == "colour, ??, stream_options.zeal"
    assert [record.message.count("colour") for record in caplog.records].count(1) == 1
    assert chat(server, echo=True).headers["x-localoss-ignored"] == "echo"
    assert "x-localoss-ignored" not in chat(server, ttl=60, colour=None).headers
    streamed = chat(server, colour=1, stream=True)
    assert streamed.headers["x-localoss-ignored"] == "colour"
    nameless = chat(
        server, colour=1, **{"": 1}
    )  # last, it would leave the header's value with a blank at its end
    assert nameless.headers["x-localoss-ignored"] == "colour, ?"
    many = chat(server, **{f"field{index}": index for index in range(500)})
    assert len(many.headers["x-localoss-ignored"].split(", ")) == 16


def test_a_strict_server_refuses_unknown_fields(served):
    server, engine = served(strict=True)
    error = chat(server, colour=1)
    assert error.status_code == 400 and error.json()["error"]["code"] == "unknown_parameter"
    assert error.json()["error"]["param"] == "colour"
    assert respond(server, tools=[{"type": "web_search"}]).status_code == 400
    assert not engine.prompts and chat(server, cache_prompt=True).status_code == 200


def test_a_custom_tool_is_called_with_text(served):
    server, engine = served(PATCH)
    tool = {"type": "custom", "name": "apply_patch", "description": "Patches."}
    grammar = {"format": {"type": "grammar", "syntax": "lark", "definition": "start: X"}}
    answer = respond(server, tools=[tool | grammar, {"type": "web_search"}])
    (call,) = answer.json()["output"]
    assert (call["type"], call["name"]) == ("custom_tool_call", "apply_patch")
    assert call["input"] == '*** Begin\n"x"' and answer.headers["x-localoss-ignored"] == "tools:web_search"
    assert "start: X" in prompt_text(engine)
    result = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "Done."}
    respond(server, input=[{"role": "user", "content": "Hi"}, call, result], tools=[tool])
    said = prompt_text(engine)
    assert json.dumps({"input": call["input"]}) in said and "functions.apply_patch to=assistant" in said
    chat_tool = {"type": "custom", "custom": {"name": "apply_patch"}}
    message = chat(server, tools=[chat_tool]).json()["choices"][0]["message"]
    assert message["tool_calls"][0]["custom"] == {"name": "apply_patch", "input": '*** Begin\n"x"'}


def test_a_namespaces_functions_are_flattened_and_answered_in_it(served):
    server, engine = served(OPEN)
    answer = respond(server, tools=[WEB, {"type": "local_shell"}, {"type": "tool_search"}])
    (call,) = answer.json()["output"]
    assert (call["name"], call["namespace"]) == ("open", "web")
    assert answer.headers["x-localoss-ignored"] == "tools:local_shell, tools:tool_search"
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "A page."}
    respond(server, input=[{"role": "user", "content": "Hi"}, call, result], tools=[WEB])
    assert "functions.web__open to=assistant" in prompt_text(engine)


def test_long_names_of_namespaces_stay_apart():
    names = [{"type": "function", "name": "n" * 60 + end} for end in "ab"]
    box = open_toolbox([{"type": "namespace", "name": "mcp__files__", "tools": names}])
    assert len({function.name for function in box.functions}) == 2
    assert all(len(function.name) <= 64 for function in box.functions)
    assert [offered.name for offered in box.offered.values()] == [name["name"] for name in names]
    assert model_name("read", "mcp__files__") == "mcp__files__read"


def test_allowed_tools(served):
    tools = [{"type": "function", "function": {"name": name}} for name in ("one", "two")]
    box = open_toolbox(tools)
    allowed = {"mode": "required", "tools": [tools[1]]}
    for choice in ({"type": "allowed_tools", "allowed_tools": allowed}, {"type": "allowed_tools", **allowed}):
        chosen = box.choose(choice)
        assert chosen.may_call == ("two",) and chosen.must_call
    assert box.choose("none").may_call == () and box.choose(None).may_call is None


def test_functions_and_function_call_are_the_older_tools(served):
    server, engine = served('<|channel|>commentary to=functions.now<|message|>{"at": 1}<|call|>', HELLO)
    function = {"name": "now", "parameters": {"type": "object"}}
    choice = chat(server, functions=[function], function_call={"name": "now"}).json()["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "now", "arguments": '{"at": 1}'}
    history = [*ASK, choice["message"], {"role": "function", "name": "now", "content": "Noon."}]
    assert chat(server, messages=history, functions=[function]).status_code == 200
    assert "functions.now to=assistant" in prompt_text(engine) and "Noon." in prompt_text(engine)


@pytest.mark.parametrize(
    ("effort", "says"),
    [("none", "low"), ("minimal", "low"), ("low", "low"), ("xhigh", "high"), ("max", "high")],
)
def test_every_word_for_an_effort(served, effort, says):
    server, engine = served("<|channel|>final<|message|>A.<|return|>")
    bodies = [
        {"reasoning_effort": effort},
        {"reasoning": {"effort": effort}},
        {"chat_template_kwargs": {"reasoning_effort": effort}},
    ]
    for body in bodies:
        assert chat(server, **body).status_code == 200
        assert f"Reasoning: {says}" in prompt_text(engine)
    assert respond(server, reasoning={"effort": effort}).json()["reasoning"]["effort"] == says


def test_thinking_is_the_summary_where_one_is_asked_for(served):
    server, engine = served(THOUGHT)
    thought = respond(server, reasoning={"summary": "auto"}).json()["output"][0]
    assert thought["summary"] == [{"type": "summary_text", "text": "Hm."}] and not thought["content"]
    text = respond(server, reasoning={"summary": "auto"}, stream=True).text
    assert text.count('"type":"response.reasoning_summary_text.delta"') >= 1
    respond(server, input=[{"role": "user", "content": "Hi"}, thought])
    assert "<|channel|>analysis<|message|>Hm.<|end|>" in prompt_text(engine)


def test_images_are_refused_only_in_a_new_message(served):
    server, engine = served()
    old = {"role": "user", "content": [IMAGE]}
    assert chat(server, messages=[old]).status_code == 400
    answer = {"role": "assistant", "content": "A cat."}
    result = {"role": "tool", "tool_call_id": "gone", "content": [IMAGE]}
    assert chat(server, messages=[old, answer, result, *ASK]).status_code == 200
    assert prompt_text(engine).count(READS_NONE) == 2


def test_history_that_clients_send_back(served):
    server, engine = served()
    items = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I won't."}]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "compaction", "encrypted_content": "x"},
        {"type": "local_shell_call", "call_id": "c", "action": {"command": ["ls"]}},
        {"type": "local_shell_call_output", "call_id": "c", "output": "a.txt"},
        {"type": "function_call_output", "call_id": "orphan", "output": "lost"},
        {"role": "user", "content": "And?"},
    ]
    answer = respond(server, input=items)
    assert answer.headers["x-localoss-ignored"] == "input:web_search_call, input:compaction"
    for text in ("I won't.", '"ls"', "functions.local_shell to=assistant", "lost"):
        assert text in prompt_text(engine)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"city": "Rome"}}}
    chat(server, messages=[*ASK, {"role": "assistant", "tool_calls": [call]}])
    assert '{"city": "Rome"}' in prompt_text(engine)


def test_references_to_stored_items(served):
    server, engine = served()
    first = respond(server).json()
    message = first["output"][-1]
    references = [{"type": "item_reference", "id": message["id"]}, {"type": "item_reference", "id": "gone"}]
    answer = respond(server, input=[*references, {"role": "user", "content": "And?"}])
    assert "<|channel|>final<|message|>Hello!" in prompt_text(engine)
    assert answer.headers["x-localoss-ignored"] == "input:item_reference"


def test_input_tokens_are_counted_as_they_are_read(served):
    server, engine = served()
    body = {"model": MODEL, "input": "Hi", "instructions": "Be brief.", "tools": [WEB]}
    counted = server.post("/v1/responses/input_tokens", body).json()
    assert counted == {"object": "response.input_tokens", "input_tokens": counted["input_tokens"]}
    assert not engine.prompts
    respond(server, **body)
    assert counted["input_tokens"] == len(engine.prompts[0])


def test_paths_and_methods_that_there_are_not(served):
    server, _ = served()
    missing = server.post("/v1/embeddings", {})
    assert missing.status_code == 404 and "/v1/chat/completions" in missing.json()["error"]["message"]
    assert httpx2.head(server.url + "/v1/models").status_code == 200
    assert "POST" in httpx2.options(server.url + "/v1/responses").headers["allow"]


def test_sampling_that_clients_send_reaches_the_engine(served):
    server, engine = served()
    chat(
        server,
        frequency_penalty=0.5,
        presence_penalty=-1,
        repeat_penalty=1.1,
        logit_bias={"50": -100},
        top_p=0,
    )
    params = engine.params
    assert (params.frequency_penalty, params.presence_penalty, params.repetition_penalty) == (0.5, -1, 1.1)
    assert params.logit_bias == ((50, -100),) and 0 < params.top_p < 1e-5
    chat(server, top_k=-1, max_tokens=-1, min_tokens=3)
    assert (engine.params.top_k, engine.params.max_tokens, engine.params.min_tokens) == (0, None, 3)
    chat(server, ignore_eos=True, max_tokens=7)
    assert engine.params.min_tokens == engine.params.max_tokens == 7


def test_usage_in_every_chunk(served):
    server, _ = served(THOUGHT)
    options = {"include_usage": True, "continuous_usage_stats": True}
    lines = chat(server, stream=True, stream_options=options).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks if "usage" in chunk]
    assert len(counts) >= 3 and counts == sorted(counts) and counts[0] < counts[-1]


def test_other_names_of_the_model(served):
    server, _ = served(name="gpt-oss-20b", aliases=("claude-sonnet",))
    for name in ("gpt-oss-20b", "gpt-oss:20b", "openai/gpt-oss-20b", "claude-sonnet"):
        assert chat(server, model=name).status_code == 200
    assert chat(server, model="gpt-oss:120b").status_code == 404
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == [
        "gpt-oss-20b",
        "claude-sonnet",
    ]


WEATHER = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>"
WEATHER += '{"city": "Rome", "days": 3}<|call|>'
NOW = {"name": "now", "parameters": {"type": "object"}}


def data_of(answer):
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_arguments_stream_as_they_are_written(served):
    server, _ = served(WEATHER)
    chunks = data_of(chat(server, stream=True, tools=[{"type": "function", "function": NOW}]))
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert calls[0]["id"] and calls[0]["function"] == {"name": "now", "arguments": ""} and len(calls) > 5
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Rome", "days": 3}'
    assert all("id" not in call and call["index"] == 0 for call in calls[1:])
    events = data_of(respond(server, stream=True, tools=[NOW | {"type": "function"}]))
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert len(deltas) > 5 and "".join(deltas) == '{"city": "Rome", "days": 3}'


def test_a_call_that_is_cut_reaches_the_client(served):
    server, _ = served(WEATHER)
    tools = [{"type": "function", "function": NOW}]
    chunks = data_of(chat(server, stream=True, tools=tools, max_tokens=12))
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert any(chunk["choices"][0]["delta"].get("tool_calls") for chunk in chunks)
    response = respond(server, tools=[NOW | {"type": "function"}], max_output_tokens=12).json()
    assert response["status"] == "incomplete" and response["output"][-1]["status"] == "incomplete"
