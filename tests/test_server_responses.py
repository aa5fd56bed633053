"""/v1/responses as OpenAI's own client sees it: items, events in their order, conversations kept."""

import contextlib
import json
import os
import stat
import time

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from support.live_server import MODEL, live
from support.scripted import HELLO, ScriptedEngine

from localoss.chat import harmony
from localoss.chat.harmony import Message
from localoss.errors import LocalossError
from localoss.server.core.response_store import KEPT_DAYS, Record, ResponseStore

START = "<|start|>assistant"
FINAL = "<|channel|>final<|message|>"
THINK = "<|channel|>analysis<|message|>Ask the tool.<|end|>" + START
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Rome"}<|call|>'
PREAMBLE = "<|channel|>commentary<|message|>Let me look.<|end|>" + START
SUNNY = FINAL + "Sunny.<|return|>"
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def served():
    """Start a server on scripted answers: it and its engine."""
    with contextlib.ExitStack() as stack:

        def start(*answers, **options):
            engine = ScriptedEngine(list(answers) or [HELLO], **options)
            return stack.enter_context(live(engine)), engine

        yield start


def respond(server, input="Hi", **options):
    return server.client().responses.create(model=MODEL, input=input, **options)


def prompt_text(engine, index=-1):
    return harmony.encoding().decode(engine.prompts[index])


def checked_events(server, body):
    """The raw events of a stream, each valid for OpenAI's own types."""
    events, adapter = [], pydantic.TypeAdapter(ResponseStreamEvent)
    answer = server.post("/v1/responses", body | {"model": MODEL, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    for block in answer.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
        adapter.validate_python(events[-1], strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def test_an_answer_with_its_thinking_and_counts(served):
    server, engine = served()
    done = respond(server, instructions="Be brief.", metadata={"a": "b"}, reasoning={"effort": "low"})
    Response.model_validate(done.to_dict(), strict=True)
    thinking, message = done.output
    assert (thinking.type, thinking.content[0].text) == ("reasoning", "A greeting.")
    assert (message.role, message.phase, message.status) == ("assistant", "final_answer", "completed")
    assert (done.output_text, done.status, done.metadata) == ("Hello!", "completed", {"a": "b"})
    assert done.reasoning.effort == "low" and "Reasoning: low" in prompt_text(engine)
    assert "# Instructions\n\nBe brief.<|end|>" in prompt_text(engine)
    usage = done.usage
    assert usage.input_tokens == len(engine.prompts[0])
    assert usage.output_tokens_details.reasoning_tokens == len(harmony.encode_raw("A greeting."))
    assert usage.total_tokens == usage.input_tokens + len(harmony.encode_raw(HELLO))


def test_the_order_of_events(served):
    server, _ = served(THINK + SUNNY)
    events = checked_events(server, {"input": "Hi"})
    kinds = [event["type"] for event in events]
    brief = [kind for i, kind in enumerate(kinds) if not i or kind != kinds[i - 1]]
    item = ["response.output_item.added", "response.content_part.added"]
    done = ["response.content_part.done", "response.output_item.done"]
    assert brief == [
        "response.created",
        "response.in_progress",
        *[*item, "response.reasoning_text.delta", "response.reasoning_text.done", *done],
        *[*item, "response.output_text.delta", "response.output_text.done", *done],
        "response.completed",
    ]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    final = events[-1]["response"]
    assert text == final["output"][1]["content"][0]["text"] == "Sunny."
    assert events[0]["response"]["status"] == "in_progress" and not events[0]["response"]["output"]
    assert {event["output_index"] for event in events[2:-1]} == {0, 1}
    ids = [item["id"] for item in final["output"]]
    assert [event["item_id"] for event in events if "item_id" in event] == sorted(
        (event["item_id"] for event in events if "item_id" in event), key=ids.index
    )


def test_the_events_of_a_call(served):
    server, _ = served(THINK + PREAMBLE + CALL)
    events = checked_events(server, {"input": "Hi", "tools": [TOOL]})
    names = [event["type"].removeprefix("response.") for event in events]
    assert names[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    deltas = [event["delta"] for event in events if event["type"].endswith("function_call_arguments.delta")]
    assert len(deltas) > 1 and json.loads("".join(deltas)) == {"city": "Rome"}, "as they are written"
    first = names.index("function_call_arguments.delta")
    assert names[first - 1] == "output_item.added" and set(names[first : first + len(deltas)]) == {
        names[first]
    }
    _, preamble, call = events[-1]["response"]["output"]
    assert preamble["phase"] == "commentary" and preamble["content"][0]["text"] == "Let me look."
    assert call["name"] == "get_weather" and json.loads(call["arguments"]) == {"city": "Rome"}


def test_the_clients_own_stream(served):
    server, _ = served(THINK + SUNNY)
    with server.client().responses.stream(model=MODEL, input="Hi") as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(texts) == stream.get_final_response().output_text == "Sunny."


def test_a_conversation_by_previous_response_id(served):
    server, engine = served(THINK + CALL, THINK + SUNNY, SUNNY)
    system = {"role": "system", "content": "Be kind."}
    first = respond(server, [system, {"role": "user", "content": "Weather in Rome?"}], tools=[TOOL])
    call = next(item for item in first.output if item.type == "function_call")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "blue"}
    second = respond(server, [result], tools=[TOOL], previous_response_id=first.id)
    text = prompt_text(engine)
    assert "# Instructions\n\nBe kind." in text and text.count("Be kind.") == 1
    assert "analysis<|message|>Ask the tool.<|end|>" in text and '{"city":"Rome"}' in text
    assert "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>blue<|end|>" in text
    third = respond(server, "And Oslo?", tools=[TOOL], previous_response_id=second.id)
    text = prompt_text(engine)
    assert "Ask the tool." not in text and f"{FINAL}Sunny.<|end|><|start|>user<|message|>And Oslo?" in text
    assert third.previous_response_id == second.id


def test_a_conversation_that_the_client_keeps(served):
    """All items sent back, with nothing stored; then without the reasoning items."""
    server, engine = served(THINK + PREAMBLE + CALL, SUNNY)
    asked = [{"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]}]
    first = respond(server, asked, tools=[TOOL], store=False)
    call = first.output[-1]
    result = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": [{"type": "input_text", "text": "x"}],
    }
    for kept in (first.output, [call]):
        respond(server, [*asked, *[item.to_dict() for item in kept], result], tools=[TOOL], store=False)
        text = prompt_text(engine)
        assert text.count("Ask the tool.") == 1 and text.count("Let me look.") == 1
        assert text.index("Ask the tool.") < text.index("Let me look.") < text.index('{"city":"Rome"}')


def test_what_is_stored_can_be_read_and_forgotten(served):
    server, _ = served()
    client = server.client()
    kept, other = respond(server), respond(server, store=False)
    assert client.responses.retrieve(kept.id) == kept
    items = client.responses.input_items.list(kept.id).data
    assert items[0].content[0].text == "Hi" and items[0].role == "user"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(other.id)
    following = respond(server, previous_response_id=kept.id)
    client.responses.delete(kept.id)
    for gone in (kept.id, following.id, "resp_none"):
        with pytest.raises(openai.BadRequestError, match="not found") as caught:
            respond(server, previous_response_id=gone)
        assert caught.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(kept.id)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut(served, stream):
    server, engine = served(THINK + CALL, HELLO)
    limit = len(harmony.encode_raw(THINK + CALL)) - 1
    if stream:
        events = checked_events(server, {"input": "Hi", "tools": [TOOL], "max_output_tokens": limit})
        done = Response.model_validate(events[-1]["response"])
        assert events[-1]["type"] == "response.incomplete"
    else:
        done = respond(server, tools=[TOOL], max_output_tokens=limit)
    assert (done.status, done.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [(item.type, item.status) for item in done.output][1:] == [("function_call", "incomplete")]
    respond(server, "Go on", previous_response_id=done.id)
    assert "Ask the tool." not in prompt_text(engine)  # half a turn leaves nothing of its thinking


def test_thinking_that_is_cut(served):
    server, _ = served(THINK)
    done = respond(server, max_output_tokens=5)
    assert (done.output[0].status, done.output[0].content[0].text) == ("incomplete", "Ask the")


class Weather(pydantic.BaseModel):
    city: str
    celsius: float


def test_parse(served):
    server, engine = served(THINK + FINAL + '{"city": "Rome", "celsius": 21.5}<|return|>')
    done = server.client().responses.parse(model=MODEL, input="Hi", text_format=Weather)
    assert done.output_parsed == Weather(city="Rome", celsius=21.5)
    assert "# Response Formats\n\n## Weather" in prompt_text(engine)


def test_logprobs(served):
    server, _ = served(SUNNY)
    done = respond(server, include=["message.output_text.logprobs"], top_logprobs=1)
    (entry, *_) = logprobs = done.output[0].content[0].logprobs
    assert "".join(entry.token for entry in logprobs) == "Sunny." and len(entry.top_logprobs) == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "computer_call"}]}, "holds nothing that this model can read"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "holds nothing that this model can read"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "a b", "arguments": ""}]}, "'a b'"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "needs call_id, name and arguments"),
        ({"input": [{"content": "x"}]}, "needs a role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "reads text only"),
        ({"tool_choice": {"type": "web_search"}}, "type 'web_search', which this server can't run"),
        ({"conversation": "x"}, "conversation isn't supported"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "needs a schema"),
        ({"input": "on " * 9000}, "context length"),
    ],
)
def test_what_is_refused(served, body, says):
    server, engine = served()
    answer = server.post("/v1/responses", {"model": MODEL, "input": "Hi"} | body)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"], answer.text
    assert not engine.prompts


def test_a_stream_that_fails(served):
    server, engine = served()
    engine.generate = lambda *arguments, **options: 1 / 0
    events = checked_events(server, {"input": "Hi"})
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["message"] == "the server failed; its log says why"


def record(name, created_at, previous=None, **more):
    return Record({"id": name, "created_at": created_at, **more}, previous, [Message("user", name)], {}, [])


def test_the_store_outlives_the_server_and_forgets_after_a_month(tmp_path):
    path = tmp_path / "deep" / "responses.sqlite3"
    store = ResponseStore(path)
    now = time.time()
    store.put(record("old", now - (KEPT_DAYS + 1) * 86_400))
    store.put(record("a", now))
    store.put(record("b", now, "a"))
    assert store.response("old")
    store.close()
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store = ResponseStore(path)
    assert [message.text for message in store.conversation("b")[0]] == ["a", "b"]
    assert store.response("old") is None and store.conversation("old") is None
    store.put(record("old", now - (KEPT_DAYS + 1) * 86_400))
    store._looked -= 2 * 86_400  # it runs on for days
    store.put(record("c", now))
    assert store.response("old") is None and store.response("c")
    store.close()


def test_a_store_that_cannot_be(tmp_path):
    path = tmp_path / "responses.sqlite3"
    path.write_text("this is no database, but long enough to be one" * 100)
    with pytest.raises(LocalossError, match=r"can't be stored .*move the file away"):
        ResponseStore(path)
