"""What a client is told of a body that is wrong: the place in its own terms, and what belongs there."""

import json

import pytest

from localoss.server.anthropic.schemas import MessagesRequest
from localoss.server.chat.schemas import ChatRequest
from localoss.server.completions.api import CompletionRequest
from localoss.server.core.bodies import parse
from localoss.server.core.errors import ApiError
from localoss.server.ollama.schemas import ChatRequest as OllamaRequest
from localoss.server.responses.schemas import ResponseRequest

ASKED = [{"role": "user", "content": "Hi"}]


def told(model, **fields):
    with pytest.raises(ApiError) as error:
        parse([json.dumps({"model": "m", **fields}).encode()], model)
    assert str(error.value).startswith(f"{error.value.param}: ") and error.value.status == 400
    return error.value.param, str(error.value).removeprefix(f"{error.value.param}: ")


@pytest.mark.parametrize(
    ("model", "fields", "where", "says"),
    [
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content",
            "a valid string or a valid list",
        ),
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages.0.content.0.text",
            "a valid string",
        ),
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, 5]}]},
            "messages.0.content.1",
            "an object",
        ),
        (ChatRequest, {"messages": ASKED, "stop": ["a", 5]}, "stop.1", "a valid string"),
        (ChatRequest, {"messages": ASKED, "stop": ["a"] * 17}, "stop", "at most 16"),
        (ChatRequest, {"messages": ASKED, "tool_choice": 5}, "tool_choice", "a valid string or an object"),
        (ChatRequest, {"messages": "Hi"}, "messages", "a valid list"),
        (ResponseRequest, {"input": 5}, "input", "a valid string or a valid list"),
        (ResponseRequest, {"input": [5]}, "input.0", "an object"),
        (
            ResponseRequest,
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": {}}]}]},
            "input.0.content.0.text",
            "a valid string",
        ),
        (
            ResponseRequest,
            {"input": [{"type": "function_call", "name": "x", "call_id": "c", "arguments": 5}]},
            "input.0.arguments",
            "a valid string or an object",
        ),
        (CompletionRequest, {"prompt": 5}, "prompt", "a valid string or a valid list"),
        (CompletionRequest, {"prompt": ["a", 5]}, "prompt.1", "a valid string"),
        (CompletionRequest, {"prompt": [1, 2, "a"]}, "prompt.2", "a valid integer"),
        (CompletionRequest, {"prompt": [[1], [2, "a"]]}, "prompt.1.1", "a valid integer"),
        (CompletionRequest, {"prompt": [999_999]}, "prompt.0", "less than"),
        (
            MessagesRequest,
            {"max_tokens": 9, "messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages.0.content.0.text",
            "a valid string",
        ),
        (
            MessagesRequest,
            {"max_tokens": 9, "messages": ASKED, "system": 5},
            "system",
            "a valid string or a valid list",
        ),
        (
            OllamaRequest,
            {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content",
            "a valid string",
        ),
    ],
)
def test_the_branch_of_the_values_own_type_is_named(model, fields, where, says):
    param, text = told(model, **fields)
    assert param == where and says in text
    assert "Message" not in text and "Item" not in text  # no names of ours


def test_what_is_missing_is_named_where_it_is_missing():
    assert told(ChatRequest, messages=[{"content": "x"}]) == ("messages.0.role", "Field required")


def test_a_key_that_is_named_like_a_branch_is_a_place():
    assert told(ResponseRequest, input="x", metadata={"str": 5})[0] == "metadata.str"


def test_of_two_mistakes_the_first_is_told():
    fields = {"temperature": "warm", "messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}
    assert told(ChatRequest, **fields)[0] == "temperature"
