"""What a stream says while a prompt is read, and nothing else can come yet."""

import json

import pytest
from support.live_server import MODEL, live
from support.scripted import ScriptedEngine

from localoss.server.chat import api as chat_api
from localoss.server.core import service

ASK = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def server(monkeypatch):
    """A server whose engine reads a prompt slowly, and which gives signs of life often."""
    monkeypatch.setattr(service, "_PING_AFTER_S", 0.05)
    monkeypatch.setattr(chat_api, "_PROGRESS_EVERY_S", 0.05)
    with live(ScriptedEngine(prefill_s=0.6)) as started:
        yield started


def streamed(server, path, **body):
    """The data of a stream's events, or its lines; and whether there were comments."""
    answer = server.post(path, {"model": MODEL, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    lines = answer.text.splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith(("data: {", "{"))]
    return [json.loads(line) for line in data], any(line.startswith(":") for line in lines)


def test_a_response_tells_of_itself_in_events(server):
    """Codex gives up after 300 s without an event, and comments are none."""
    events, has_comments = streamed(server, "/v1/responses", input="Hi")
    kinds = [event["type"] for event in events]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert kinds.count("response.in_progress") > 3 and not has_comments
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_a_chat_that_asks_is_told_how_far_its_prompt_is_read(server):
    asked = {"messages": ASK, "return_progress": True}
    for cached in (0, 1):
        chunks, _ = streamed(server, "/v1/chat/completions", **asked)
        told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
        read = [one["processed"] for one in told]
        assert len(read) > 3 - 2 * cached and read == sorted(set(read))
        assert read[-1] == told[-1]["total"] > 10 and bool(told[0]["cache"]) == bool(cached)
        assert all(one["time_ms"] >= 0 for one in told)
        first_text = next(
            i for i, chunk in enumerate(chunks) if chunk["choices"][0]["delta"].get("reasoning")
        )
        assert all("prompt_progress" not in chunk for chunk in chunks[first_text:])
    chunks, has_comments = streamed(server, "/v1/chat/completions", messages=ASK)
    assert has_comments and not any("prompt_progress" in chunk for chunk in chunks)


@pytest.mark.parametrize(
    ("path", "body"), [("/api/chat", {"messages": ASK}), ("/api/generate", {"prompt": "Hi"})]
)
def test_ollamas_lines_say_nothing_now_and_then(server, path, body):
    lines, _ = streamed(server, path, **body)
    said = [line.get("response", line.get("message", {}).get("content")) for line in lines]
    assert said[:3] == ["", "", ""] and "".join(said) == "Hello!"
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


def test_anthropics_clients_get_a_ping(server):
    events, _ = streamed(server, "/v1/messages", messages=ASK, max_tokens=99)
    assert [event["type"] for event in events].count("ping") > 3
