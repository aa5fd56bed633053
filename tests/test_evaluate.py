"""Perplexity, KL divergence and agreement against plain NumPy in float64, and `localoss eval`."""

import json
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.golden_files import kl_divergence, log_softmax, read_golden

import localoss
from localoss import cli
from localoss.chat.harmony import encode_raw
from localoss.errors import ContextFullError, UsageError
from localoss.measure.evaluate import joined, score, score_text, windows

ROOT = Path(__file__).parent.parent
TEXT = "The quick brown fox jumps over the lazy dog. " * 3


def load(folder, context_tokens, **options):
    return localoss.load(folder, context_tokens=context_tokens, **options)


def nll(engine, tokens, first):
    """-ln p of tokens[first:], from logits that are all held at once."""
    rows = log_softmax(engine.logits(tokens))[first - 1 : -1]
    return -rows[np.arange(len(rows)), tokens[first:]]


# Scores


@pytest.mark.parametrize("first", [1, 2, 57, 95])
def test_scores_are_those_of_all_logits(model, first):
    tokens = read_golden("short").tokens
    engine = load(model("short"), 96, chunk_tokens=40)
    reference = load(model("short", attention="int4", unembedding="bf16"), 96, chunk_tokens=40)
    scores = joined(list(score(engine, tokens, first, reference)))
    np.testing.assert_allclose(scores.nll, nll(engine, tokens, first), rtol=1e-5)
    np.testing.assert_allclose(scores.reference_nll, nll(reference, tokens, first), rtol=1e-5)
    ours, theirs = (model.logits(tokens)[first - 1 : -1] for model in (engine, reference))
    np.testing.assert_allclose(scores.kl, kl_divergence(theirs, ours), rtol=1e-4, atol=1e-6)
    assert (scores.kl > 0).all()
    agrees = ours.argmax(axis=1) == theirs.argmax(axis=1)
    assert scores.agrees.tolist() == agrees.tolist()
    assert 0 < scores.agrees.mean() < 1 or first == 95
    assert scores.perplexity == pytest.approx(np.exp(nll(engine, tokens, first).mean()), rel=1e-5)
    assert scores.mean_kl == scores.kl.mean() and scores.p99_kl == np.percentile(scores.kl, 99)


def test_a_model_does_not_differ_from_itself(model):
    engines = [load(model("short"), 96) for _ in range(2)]
    scores = joined(list(score(engines[0], read_golden("short").tokens, 1, engines[1])))
    assert scores.kl.max() <= 1e-6 and scores.top1_agreement == 1
    assert scores.perplexity == scores.reference_perplexity


def test_without_a_reference_nothing_is_compared(model):
    scores = joined(list(score(load(model("short"), 96), read_golden("short").tokens)))
    assert len(scores.nll) == 95 and not len(scores.kl) and not len(scores.agrees)


@pytest.mark.parametrize("tokens", [[], [5], [5, 6, 7]])
def test_nothing_to_predict(model, tokens):
    with pytest.raises(UsageError, match="longer text"):
        next(score(load(model("short"), 96), tokens, first=len(tokens) or 1))


@pytest.mark.parametrize(("rows", "chunk_tokens"), [(1, 7), (5, 64), (64, 13), (200, 300)])
def test_streamed_logits(model, rows, chunk_tokens):
    tokens = read_golden("window").tokens[:130]
    engine = load(model("window"), 300, chunk_tokens=chunk_tokens)
    pieces = [piece.copy() for piece in engine.stream_logits(tokens, 9, rows)]
    assert max(map(len, pieces)) <= rows
    np.testing.assert_array_equal(np.concatenate(pieces), engine.logits(tokens)[9:])
    with pytest.raises(ContextFullError):
        next(engine.stream_logits([1] * 301))


def test_memory_does_not_grow_with_the_text(model):
    """400 positions of 201,088 logits would be 322 MB, of each model."""
    engines = [load(model("harmony"), 512) for _ in range(2)]
    tokens = list(range(5000, 5400))
    tracemalloc.start()
    scores = joined(list(score(engines[0], tokens, 1, engines[1])))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(scores.kl) == 399
    assert peak_bytes < 130e6


# Windows


@given(st.integers(2, 300), st.integers(2, 70), st.data())
def test_windows_score_each_token_once(tokens, context, data):
    stride = data.draw(st.integers(1, context - 1))
    scored = []
    for start, end, first in windows(tokens, context, stride):
        assert 0 <= start < end <= tokens and end - start <= context and first >= 1
        scored += range(start + first, end)
        assert first >= min(start + first, context - stride)  # tokens before the first one
    assert scored == list(range(1, tokens))


@pytest.mark.parametrize("stride", [0, 20, 21])
def test_a_stride_that_leaves_no_context(stride):
    with pytest.raises(UsageError, match="use 1 to 19"):
        list(windows(100, 20, stride))


def test_a_text_longer_than_the_context(model):
    tokens = read_golden("window").tokens
    engine, told = load(model("window"), 64), []
    scores = score_text(engine, tokens, 24, progress=lambda part: told.append(len(part.nll)))
    expected = [nll(engine, tokens[:64], 1)]
    for start in range(24, 300 - 40, 24):
        end = min(start + 64, 300)
        expected.append(nll(engine, tokens[start:end], max(40, 0)))
    np.testing.assert_allclose(scores.nll, np.concatenate(expected), rtol=1e-5)
    assert len(scores.nll) == sum(told) == 299


def test_cancelling_keeps_what_was_scored(model):
    engine, calls = load(model("window"), 64), []

    def cancelled():
        calls.append(1)
        return len(calls) > 10

    scores = score_text(engine, read_golden("window").tokens, 24, cancelled=cancelled)
    assert 0 < len(scores.nll) < 299


# The command


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run `localoss eval` in this process: arguments to (exit code, stdout, stderr)."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))

    def run_cli(*arguments):
        code = cli.main(["eval", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run_cli


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_json(model, run, text):
    folder, tokens = model("harmony"), encode_raw(TEXT)
    code, out, err = run(folder, text, "--context", "16", "--stride", "4", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    expected = score_text(load(folder, 16), tokens, 4)
    assert report["perplexity"] == pytest.approx(expected.perplexity, rel=1e-9)
    assert report["nll"] == pytest.approx(expected.nll.mean(), rel=1e-9)
    assert (report["tokens"], report["scored_tokens"]) == (len(tokens), len(tokens) - 1)
    assert (report["context"], report["stride"], report["against"]) == (16, 4, None)
    assert (report["model"], report["file"]) == (str(folder), str(text))


def test_against_another_model(model, run, text):
    ours, reference = model("harmony"), model("harmony", attention="bf16", unembedding="bf16")
    code, out, _ = run(ours, text, "--against", reference, "--json")
    report = json.loads(out)
    assert code == 0 and report["stride"] == report["context"] // 2 == len(encode_raw(TEXT)) // 2
    assert 0 < report["mean_kl"] < report["p99_kl"] < 0.1 and 0.5 < report["top1_agreement"] <= 1
    assert report["reference_perplexity"] == pytest.approx(report["perplexity"], rel=0.05)
    code, out, _ = run(ours, text, "--against", reference)
    assert code == 0
    shown = [line.split()[0] for line in out.splitlines()]
    assert (shown[0], shown[2:]) == ("perplexity", ["KL", "same"])
    assert f"{report['mean_kl']:.5f}" in out and f"{report['perplexity']:.4f}" in out


def test_what_an_int8_cache_costs(model, run, text):
    folder = model("harmony")
    _, out, _ = run(folder, text, "--against", folder, "--kv-dtype", "int8", "--json")
    report = json.loads(out)
    assert report["kv_dtype"] == "int8" and 0 < report["mean_kl"] < 0.01
    _, out, _ = run(folder, text, "--against", folder, "--json")
    assert json.loads(out)["mean_kl"] <= 1e-6


def test_text_from_stdin_and_control_tokens(model, run, text, monkeypatch):
    (text.parent / "marked.txt").write_text("<|start|>user<|message|>Hi<|end|>")
    _, out, _ = run(model("harmony"), text.parent / "marked.txt", "--json")
    assert json.loads(out)["tokens"] == 5
    with open(text, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, out, _ = run(model("harmony"), "-", "--max-tokens", "7", "--json")
    assert code == 0 and json.loads(out)["tokens"] == 7


def test_errors_are_one_line(model, run, text, tmp_path):
    small, other = model("short"), model("harmony")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "one.txt").write_text("word")
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    cases = [
        ((other, tmp_path / "empty.txt"), ["empty.txt", "0 tokens"]),
        ((other, tmp_path / "one.txt"), ["one.txt", "1 tokens"]),
        ((other, tmp_path / "latin.txt"), ["latin.txt", "not UTF-8", "byte 2"]),
        ((other, tmp_path / "none.txt"), ["none.txt", "No such file"]),
        ((other, tmp_path), ["directory"]),
        (("nothing", text), ["no model or folder 'nothing'"]),
        ((other, text, "--against", "nothing"), ["no model or folder 'nothing'"]),
        ((other, text, "--against", small), ["201,088", "203", "cannot be compared"]),
        ((small, text), ["203", "gpt-oss's"]),
        ((other, text, "--context", "8", "--stride", "8"), ["stride is 8", "use 1 to 7"]),
        ((other,), ["which text?", "- for stdin"]),
        (("demo", "--against", other), ["--against needs a text"]),
        ((other, text, "--context", "1"), ["--context"]),
    ]
    for arguments, words in cases:
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), (arguments, err)
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert all(word in err for word in words), err


def test_ctrl_c_tells_what_was_scored(model, tmp_path):
    pexpect = pytest.importorskip("pexpect")  # not on Windows
    (tmp_path / "long.txt").write_text(TEXT * 500)
    child = pexpect.spawn(
        sys.executable,
        ["-m", "localoss", "eval", str(model("harmony")), str(tmp_path / "long.txt"), "--context", "128"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "LOCALOSS_HOME": str(tmp_path)},
        encoding="utf-8",
        timeout=120,
        dimensions=(30, 140),
    )
    try:
        child.expect(r"[\d,]+ of 15,000 tokens, perplexity")
        child.sendintr()
        child.expect(r"perplexity     [\d.]+ ±")
        child.expect("the beginning of the text")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 130 and "Traceback" not in child.before
    finally:
        child.close(force=True)
