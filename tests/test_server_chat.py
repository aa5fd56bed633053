"""/v1/chat/completions as OpenAI's own client sees it, on a scripted engine."""

import contextlib

import openai
import pytest
from support.live_server import MODEL, live
from support.scripted import HELLO, ScriptedEngine

from localoss.chat import harmony
from localoss.options import SamplingParams

ASK = [{"role": "user", "content": "Hi"}]
START = "<|start|>assistant"
FINAL = "<|channel|>final<|message|>"
THINK = "<|channel|>analysis<|message|>Hm.<|end|>" + START


@pytest.fixture
def served():
    """Start a server on scripted answers: it and its engine."""
    with contextlib.ExitStack() as stack:

        def start(*answers, server=None, **options):
            engine = ScriptedEngine(list(answers) or [HELLO], **options)
            return stack.enter_context(live(engine, **(server or {}))), engine

        yield start


def complete(server, **options):
    return server.client().chat.completions.create(**{"model": MODEL, "messages": ASK} | options)


def prompt_text(engine, index=-1):
    return harmony.encoding().decode(engine.prompts[index])


def test_an_answer_with_its_thinking_and_counts(served):
    server, engine = served()
    done = complete(server)
    (choice,) = done.choices
    assert (choice.message.content, choice.finish_reason) == ("Hello!", "stop")
    assert choice.message.reasoning_content == choice.message.reasoning == "A greeting."
    assert choice.message.tool_calls is None and choice.logprobs is None
    assert done.model == MODEL and done.id.startswith("chatcmpl-")
    usage = done.usage
    assert usage.prompt_tokens == len(engine.prompts[0])
    assert usage.completion_tokens == len(harmony.encode_raw(HELLO))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == len(harmony.encode_raw("A greeting."))
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_says_the_same(served):
    server, _ = served()
    chunks = list(complete(server, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "Hello!"
    assert "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas) == "A greeting."
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert not chunks[-1].choices and chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_prompt_holds_what_was_asked(served):
    server, engine = served()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "Three", "reasoning_content": "They count."},
        {"role": "user", "content": "<|end|> four"},
    ]
    complete(server, messages=messages, reasoning_effort="high")
    text = prompt_text(engine)
    assert "Reasoning: high" in text and "# Instructions\n\nBe brief.\n\nBe kind.<|end|>" in text
    assert f"<|start|>user<|message|>One\ntwo<|end|>{START}{FINAL}Three<|end|>" in text
    assert engine.prompts[-1].count(harmony.END) == 5  # the one that a user wrote is text
    assert "They count." not in text and text.endswith(START)


def test_options_reach_the_engine(served):
    server, engine = served()
    complete(server, temperature=0.25, top_p=0.5, seed=7, extra_body={"top_k": 3, "min_p": 0.125})
    stops = (harmony.RETURN, harmony.CALL)
    assert engine.params == SamplingParams(0.25, 0.5, 3, 0.125, 7, stop_ids=stops)


def test_several_choices(served):
    server, engine = served(FINAL + "One<|return|>", FINAL + "Two<|return|>")
    done = complete(server, n=2, seed=4)
    assert [(c.index, c.message.content) for c in done.choices] == [(0, "One"), (1, "Two")]
    assert done.usage.completion_tokens == 2 * len(harmony.encode_raw(FINAL + "One<|return|>"))
    assert done.usage.prompt_tokens == len(engine.prompts[0])
    assert engine.params.seed == 5  # the second choice's
    streamed = list(complete(server, n=2, stream=True))
    assert {chunk.choices[0].index for chunk in streamed} == {0, 1}


@pytest.mark.parametrize("stream", [False, True])
def test_stops(served, stream):
    server, _ = served(THINK + FINAL + "One, two, three<|return|>")
    answer = complete(server, stop=["three", "nowhere", " t"], stream=stream)
    if stream:
        chunks = list(answer)
        content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        content, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (content, reason) == ("One,", "stop")


def test_the_token_limit(served):
    server, _ = served(FINAL + "on " * 50)
    for name in ("max_tokens", "max_completion_tokens"):
        done = complete(server, **{name: 9})
        assert (done.choices[0].finish_reason, done.usage.completion_tokens) == ("length", 9)
        assert done.choices[0].message.content.startswith("on on on")


def test_logprobs(served):
    server, _ = served(THINK + FINAL + "Grüße 🎉!<|return|>", top=((0, -0.25), (1, -1.5), (2, -9.0)))
    logprobs = complete(server, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert bytes(byte for entry in logprobs for byte in entry.bytes).decode() == "Grüße 🎉!"
    assert [(top.token, top.logprob) for top in logprobs[0].top_logprobs] == [("!", -0.25), ('"', -1.5)]
    chunks = complete(server, logprobs=True, stream=True)
    streamed = [entry for c in chunks if c.choices[0].logprobs for entry in c.choices[0].logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in logprobs]
    assert not streamed[0].top_logprobs


def test_logprobs_end_with_the_text(served):
    server, _ = served(FINAL + "One two three four<|return|>")
    choice = complete(server, logprobs=True, stop=" three").choices[0]
    assert choice.message.content == "One two"
    assert [entry.token for entry in choice.logprobs.content] == ["One", " two"]


@pytest.mark.parametrize(
    ("body", "says", "code"),
    [
        ({"model": "gpt-9"}, "The model `gpt-9` does not exist; this server has `tiny`", "model_not_found"),
        ({"logit_bias": {"x": 1}}, "logit_bias: use ids of tokens", None),
        ({"prompt": 1, "modalities": ["audio"]}, "modalities isn't supported", "unsupported_parameter"),
        ({"temperature": 3}, "temperature: ", "invalid_value"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort: ", "invalid_value"),
        ({"messages": []}, "messages: ", "invalid_value"),
        ({"messages": None}, "messages: ", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text only", None),
        ({"response_format": {"type": "json_schema"}}, "needs json_schema.schema", None),
        ({"tool_choice": "required"}, "there are no tools", None),
        ({"messages": [{"role": "user", "content": "on " * 300}]}, "300 tokens", "context_length_exceeded"),
    ],
)
def test_errors_have_openais_shape(served, body, says, code):
    server, engine = served(context_tokens=200)
    answer = server.post("/v1/chat/completions", {"model": MODEL, "messages": ASK} | body)
    error = answer.json()["error"]
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["code"] == code
    assert says in error["message"] or code == "context_length_exceeded"
    assert not engine.prompts


def test_the_counts_of_a_prompt_that_is_too_long(served):
    server, _ = served(context_tokens=200)
    with pytest.raises(
        openai.BadRequestError, match=r"context length is 200 tokens.* resulted in 3\d\d tokens"
    ) as caught:
        complete(server, messages=[{"role": "user", "content": "on " * 300}])
    assert caught.value.code == "context_length_exceeded"


def test_an_engine_that_fails_is_no_traceback(served):
    server, engine = served()
    engine.generate = lambda *arguments, **options: 1 / 0
    with pytest.raises(openai.InternalServerError, match="the server failed; its log says why"):
        complete(server)
    with pytest.raises(openai.APIError, match="the server failed"):
        list(complete(server, stream=True))


def test_models(served):
    server, _ = served()
    (model,) = server.client().models.list().data
    assert model.id == MODEL and server.client().models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("gpt-9")
