"""/v1/completions: raw text, logprobs and echo as harnesses use them, on a scripted engine and on noise."""

import numpy as np
import openai
import pytest
from support.live_server import MODEL, live
from support.scripted import ScriptedEngine

import localoss
from localoss.chat import harmony
from localoss.chat.generate import generate
from localoss.chat.turn import Turn
from localoss.options import SamplingParams

TEXT = "The sky is grün 🎉"


@pytest.fixture(scope="module")
def engine(model):
    return localoss.load(model("harmony"), context_tokens=256, threads=1, chunk_tokens=32)


@pytest.fixture(scope="module")
def noisy(engine):
    """A server on the real engine, whose weights are noise."""
    with live(engine) as server:
        yield server


def complete(server, prompt=TEXT, **options):
    return server.client().completions.create(model=MODEL, prompt=prompt, **options)


def reference(engine, tokens):
    """ln of each next token's probability, and the likeliest token, by the whole logits."""
    logits = engine.logits(tokens).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    logprobs -= logits.max(1, keepdims=True)
    return [logprobs[i, token] for i, token in enumerate(tokens[1:])], logits.argmax(1)


def test_text_goes_on():
    engine = ScriptedEngine([" blue, and wide.<|return|>"])
    with live(engine) as server:
        done = complete(server, prompt="The sky is", max_tokens=50, temperature=0.5)
        assert (done.choices[0].text, done.choices[0].finish_reason) == (" blue, and wide.", "stop")
        assert engine.prompts[-1] == harmony.encode_raw("The sky is") and engine.params.temperature == 0.5
        assert done.choices[0].logprobs is None
        assert complete(server, prompt="The sky is").usage.completion_tokens == 6  # of 16 at most
        assert complete(server, stop=[" and", "x"]).choices[0].text == " blue,"
        assert complete(server, prompt="").usage.prompt_tokens == 1
        streamed = list(complete(server, prompt="The", stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].text for chunk in streamed[:-1]) == " blue, and wide."
        assert streamed[-2].choices[0].finish_reason == "stop" and streamed[-1].usage.completion_tokens == 6


def test_many_prompts_and_choices():
    engine = ScriptedEngine([" 0", " 1", " 2", " 3"])
    with live(engine) as server:
        done = complete(server, prompt=["a", "b"], n=2, seed=3)
        assert [(c.index, c.text) for c in done.choices] == [(0, " 0"), (1, " 1"), (2, " 2"), (3, " 3")]
        assert [harmony.encoding().decode(prompt) for prompt in engine.prompts] == ["a", "a", "b", "b"]
        tokens = harmony.encode_raw("one two")
        complete(server, prompt=tokens)
        assert engine.prompts[-1] == tokens
        complete(server, prompt=[tokens, tokens[:1]])
        assert engine.prompts[-2:] == [tokens, tokens[:1]]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": [201_088]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["x"] * 300}, "300 prompts; send at most 256"),
        ({"prompt": "on " * 9000}, "context length"),
        ({"best_of": 3}, "best_of must be 1 or n"),
        ({"suffix": "x"}, "suffix isn't supported"),
        ({"logprobs": 99}, "logprobs: "),
        ({"prompt": None}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
    ],
)
def test_what_is_refused(body, says):
    with live(ScriptedEngine()) as server:
        answer = server.post("/v1/completions", {"model": MODEL, "prompt": "x"} | body)
        assert answer.status_code == 400 and says in answer.json()["error"]["message"]


def test_echo_judges_every_token_of_the_prompt(noisy, engine):
    tokens = harmony.encode_raw(TEXT * 9)  # more than a chunk and than a batch of rows
    expected, likeliest = reference(engine, tokens)
    done = complete(noisy, prompt=TEXT * 9, echo=True, max_tokens=0, logprobs=2)
    choice = done.choices[0]
    assert choice.text == TEXT * 9 and choice.finish_reason == "length"
    logprobs = choice.logprobs
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    np.testing.assert_allclose(logprobs.token_logprobs[1:], expected, atol=2e-3)
    for top, best in zip(logprobs.top_logprobs[1:], likeliest, strict=False):
        assert len(top) == 2 and max(top, key=top.get) in (
            harmony.encoding().decode([int(best)]),
            "bytes:" + "".join(f"\\x{byte:02x}" for byte in harmony.token_bytes(int(best))),
        )
    assert len(logprobs.tokens) == len(tokens) == done.usage.prompt_tokens


def test_echo_goes_on_with_the_answer(noisy, engine):
    tokens = harmony.encode_raw(TEXT)
    done = complete(noisy, prompt=tokens, echo=True, max_tokens=3, logprobs=1, temperature=0)
    alone = complete(noisy, prompt=tokens, max_tokens=3, logprobs=1, temperature=0)
    logprobs = done.choices[0].logprobs
    assert done.choices[0].text == TEXT + alone.choices[0].text
    assert logprobs.tokens[len(tokens) :] == alone.choices[0].logprobs.tokens
    greedy = Turn(tokens, None, SamplingParams(temperature=0, max_tokens=3))
    list(generate(engine, greedy))
    assert greedy.answer == alone.choices[0].text
    starts = [TEXT.encode().decode()[offset:] for offset in logprobs.text_offset[:4]]
    assert [start.startswith(token) for start, token in zip(starts, logprobs.tokens, strict=False)] == [
        True
    ] * 4
    for token, top in zip(logprobs.token_logprobs[-3:], logprobs.top_logprobs[-3:], strict=True):
        assert token == pytest.approx(max(top.values()))


def test_every_token_has_its_logprob(noisy):
    """Those that are half a character, and those that end the text: harnesses count on it."""
    for seed in range(16):
        done = complete(noisy, echo=True, max_tokens=1 + seed % 3, logprobs=0, seed=seed, temperature=1.5)
        logprobs, usage = done.choices[0].logprobs, done.usage
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == usage.total_tokens
    with live(ScriptedEngine([" blue<|return|>"])) as server:
        done = complete(server, logprobs=0)
        assert done.choices[0].text == " blue" and done.choices[0].logprobs.tokens == [" blue", "<|return|>"]
        streamed = [chunk.choices[0] for chunk in complete(server, logprobs=0, stream=True)]
        assert [token for choice in streamed if choice.logprobs for token in choice.logprobs.tokens] == [
            " blue",
            "<|return|>",
        ]


def test_without_logprobs_echo_runs_nothing(noisy):
    done = complete(noisy, echo=True, max_tokens=0)
    assert done.choices[0].text == TEXT and done.choices[0].logprobs is None


def test_a_prompt_may_hold_control_tokens(noisy):
    prompt = "<|start|>user<|message|>Hi<|end|>"
    done = complete(noisy, prompt=prompt, echo=True, max_tokens=0, logprobs=0)
    assert done.choices[0].text == prompt and done.choices[0].logprobs.tokens[0] == "<|start|>"


def test_a_prompt_that_fills_the_context(noisy):
    with pytest.raises(openai.BadRequestError, match="256 tokens"):
        complete(noisy, prompt=[0] * 256)
    assert complete(noisy, prompt=[0] * 255, max_tokens=9).choices[0].finish_reason == "length"
