"""What one request can cost: errors, lists, levels, values and bodies have bounds."""

import gc
import json
import time
from typing import Any

import httpx2
import pytest
from support.live_server import MODEL, live
from support.scripted import ScriptedEngine

from localoss.server.anthropic import api as anthropic_api
from localoss.server.anthropic.schemas import MessagesRequest
from localoss.server.chat import api as chat_api
from localoss.server.chat.schemas import ChatRequest
from localoss.server.completions import api as completions_api
from localoss.server.completions.api import CompletionRequest
from localoss.server.core import bodies
from localoss.server.core.errors import ApiError
from localoss.server.ollama import api as ollama_api
from localoss.server.ollama.schemas import ChatRequest as OllamaChat
from localoss.server.ollama.schemas import GenerateRequest
from localoss.server.responses import api as responses_api
from localoss.server.responses.schemas import ResponseRequest

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server():
    with live(ScriptedEngine()) as running:
        yield running


def schemas_of(schema: Any):
    """All of pydantic's core schemas within `schema`."""
    if isinstance(schema, dict):
        if "type" in schema:
            yield schema
        for value in schema.values():
            yield from schemas_of(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from schemas_of(value)


@pytest.mark.parametrize(
    "model", [ChatRequest, CompletionRequest, ResponseRequest, MessagesRequest, OllamaChat, GenerateRequest]
)
def test_every_list_ends_at_its_first_error_and_has_a_bound(model):
    lists = [schema for schema in schemas_of(model.__pydantic_core_schema__) if schema["type"] == "list"]
    assert lists
    for schema in lists:
        assert schema.get("fail_fast") and schema.get("max_length"), schema


WRONG: list[Any] = [{"role": 1}, 1.5, None, [None], {"type": 1}, {"role": "user", "content": [1]}]


LISTS: list[tuple[Any, str]] = [
    (ChatRequest, "messages"),
    (ChatRequest, "tools"),
    (ChatRequest, "stop"),
    (ChatRequest, "modalities"),
    (ResponseRequest, "input"),
    (ResponseRequest, "include"),
    (CompletionRequest, "prompt"),
]
# Each list and each error in a short run; each error in each list in a long one.
BOMBS = [
    pytest.param(
        *one, wrong, id=f"{one[1]}-{json.dumps(wrong)}", marks=pytest.mark.soak if (i + j) % 3 else ()
    )
    for i, one in enumerate(LISTS)
    for j, wrong in enumerate(WRONG)
]


@pytest.mark.parametrize(("model", "field", "wrong"), BOMBS)
def test_error_bombs_cost_little(model, field, wrong):
    base = CHAT | {"prompt": "Hi", "input": "Hi"}
    body = json.dumps(base | {field: [wrong] * 30_000}).encode()
    gc.disable()  # it would go through all that other tests have left, and take longer than the request
    began = time.process_time()
    with pytest.raises(ApiError) as refused:
        bodies.parse([body], model)
    taken_s = time.process_time() - began
    gc.enable()
    assert refused.value.status == 400 and (refused.value.param or "").startswith(field)
    assert taken_s < 2


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[' + b"[]," * 500_000 + b"1]}",
        b'{"messages":[' + b"{}," * 500_000 + b"1]}",
        b'{"messages":[' + b"1," * 2_000_000 + b"1]}",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"a":' + b"[" * 101 + b"]" * 101 + b"}",
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'"' + b'\\"' * 1_000_000,
        b"\xff\xfe\x00",
    ],
    ids=lambda body: repr(body[:16]),
)
def test_bodies_of_a_costly_shape_are_refused(server, body):
    answer = httpx2.post(server.url + "/v1/chat/completions", content=body, headers=JSON, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] in ("invalid_json", "invalid_value")


def test_brackets_within_text_are_none():
    text = '[{,\\"' * 200_000
    body = json.dumps(CHAT | {"messages": [{"role": "user", "content": text}]}).encode()
    assert bodies.parse([body], ChatRequest).messages[0].content == text


@pytest.mark.parametrize("place", ["response_format", "tools"])
@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e400"])
def test_a_schema_with_what_is_no_number_is_the_clients_fault(server, place, number):
    schema = '{"type":"number","maximum":' + number + "}"
    wanted = {
        "response_format": '{"type":"json_schema","json_schema":{"name":"x","schema":' + schema + "}}",
        "tools": '[{"type":"function","function":{"name":"f","parameters":' + schema + "}}]",
    }[place]
    body = json.dumps(CHAT)[:-1] + f', "{place}": {wanted}}}'
    answer = httpx2.post(server.url + "/v1/chat/completions", content=body, headers=JSON, timeout=60)
    assert answer.status_code == 400, answer.text


def test_bodies_in_memory_have_a_bound(server):
    held = server.models.bodies
    server.models.bodies = bodies.Bodies(most_bytes=1_000_000)
    try:
        big = CHAT | {"metadata": {"a": "x" * 2_000_000}}
        answer = server.post("/v1/chat/completions", big)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert server.post("/v1/chat/completions", CHAT).status_code == 200
        assert server.models.bodies._left == 1_000_000
    finally:
        server.models.bodies = held


def test_a_body_that_doesnt_arrive_is_given_up(server, monkeypatch):
    monkeypatch.setattr(bodies, "MAX_BODY_S", 0.2)

    def slowly():
        yield b"{"
        time.sleep(1)
        yield b"}"

    answer = httpx2.post(server.url + "/v1/chat/completions", content=slowly(), headers=JSON, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")


def test_every_post_reads_its_body_within_bounds(server):
    """No endpoint is left to FastAPI's own reading."""
    posts = [
        r
        for part in (chat_api, completions_api, responses_api, anthropic_api, ollama_api)
        for r in part.router.routes
    ]
    assert posts
    for route in posts:
        assert isinstance(route, bodies.BodyRoute), route


LONG = "the quick brown fox " * 100_000
TOO_LONG = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    ("/v1/chat/completions", {"messages": [{"role": "system", "content": LONG}, *CHAT["messages"]]}),
    ("/v1/chat/completions", {"messages": CHAT["messages"] * 3000}),
    ("/v1/responses", {"input": LONG}),
    ("/v1/completions", {"prompt": LONG}),
    ("/v1/completions", {"prompt": ["Hi", "<|start|>" * 9_000]}),
    ("/v1/completions", {"prompt": LONG.replace(" ", "\u4e00")}),
]


@pytest.mark.parametrize(("path", "body"), TOO_LONG, ids=range(len(TOO_LONG)))
def test_what_cannot_fit_is_not_read_to_its_end(server, path, body, monkeypatch):
    """2,000,000 characters took 45 s on a thread that everybody needs; a context's worth is read at most."""
    from localoss.chat import harmony

    encoded = []
    pieces = harmony.pieces

    def counting(text):
        for piece in pieces(text):
            encoded.append(len(piece))
            yield piece

    monkeypatch.setattr(harmony, "pieces", counting)
    answer = httpx2.post(f"{server.url}{path}", json={"model": MODEL, **body}, timeout=60)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 8192 tokens" in answer.json()["error"]["message"]
    assert sum(encoded) < 100_000, "characters"
