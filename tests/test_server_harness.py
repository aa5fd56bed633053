"""lm_eval on its own two kinds of model for servers like ours, offline; it is in the extra `soak`."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support.live_server import live
from support.scripted import ScriptedEngine

import localoss
from localoss.chat import harmony

MODEL = "gpt-oss-tiny"  # tiktoken knows its vocabulary by the beginning of the name
QUESTIONS = [{"asked": f"{n} and {n + 1} make", "choices": [f"{n * 2}", f"{n * 2 + 1}"]} for n in range(6)]
CHOICE = """
task: choice
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: 1
metric_list: [{metric: acc}]
"""
SAID = """
task: said
output_type: generate_until
doc_to_target: "{{choices[1]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 40}
metric_list: [{metric: exact_match}]
"""
COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
doc_to_text: asked
"""
O200K = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"


@pytest.fixture
def evaluate(tmp_path):
    """Run lm_eval on a task against a URL: its result, and its samples in the questions' order."""
    pytest.importorskip("lm_eval", reason="pip install 'localoss[soak]'")
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, task in (("choice", CHOICE), ("said", SAID)):
        (tmp_path / f"{name}.yaml").write_text(task + COMMON % data)
    cache = tmp_path / "tiktoken"
    cache.mkdir()
    vocabulary = harmony.VOCABULARY_FOLDER / "o200k_base.tiktoken"
    shutil.copy(vocabulary, cache / hashlib.sha1(O200K.encode()).hexdigest())
    environment = os.environ | {
        "TIKTOKEN_CACHE_DIR": str(cache),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }

    def run(kind, url, task, *options):
        arguments = f"model={MODEL},base_url={url},num_concurrent=3,max_retries=1"
        if kind == "local-completions":
            arguments += ",tokenizer_backend=tiktoken"
        out = tmp_path / "out"
        command = [sys.executable, "-m", "lm_eval", "run", "--model", kind, "--model_args", arguments]
        command += ["--tasks", task, "--include_path", str(tmp_path), "--output_path", str(out)]
        done = subprocess.run(
            [*command, "--log_samples", *options],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        (results,) = out.rglob("results_*.json")
        (samples,) = out.rglob("samples_*.jsonl")
        lines = map(json.loads, samples.read_text().splitlines())
        by_question = sorted(lines, key=lambda sample: sample["doc_id"])
        return json.loads(results.read_text())["results"][task], by_question

    return run


@pytest.mark.soak
def test_multiple_choice_by_completions(evaluate, model):
    """What lm_eval makes of our logprobs is what the whole logits say."""
    engine = localoss.load(model("harmony"), context_tokens=256, threads=1)
    with live(engine, name=MODEL) as server:
        result, samples = evaluate("local-completions", f"{server.url}/v1/completions", "choice")
    right = []
    for question, sample in zip(QUESTIONS, samples, strict=True):
        asked, sums = harmony.encode_raw(question["asked"]), []
        for choice, (told, _) in zip(question["choices"], sample["filtered_resps"], strict=True):
            tokens = [*asked, *harmony.encode_raw(" " + choice)]
            logits = engine.logits(tokens).astype(np.float64)
            logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            sums.append(sum(logprobs[i - 1, tokens[i]] for i in range(len(asked), len(tokens))))
            assert float(told) == pytest.approx(sums[-1], abs=5e-3)
        right.append(sums[1] > sums[0])
    assert result["acc,none"] == pytest.approx(np.mean(right))


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["local-completions", "local-chat-completions"])
def test_answers(evaluate, kind):
    """Half of the answers are right, and end where `until` says."""
    start = "" if kind == "local-completions" else "<|channel|>final<|message|>"
    answers = [f"{start}{question['choices'][i % 2]}\n\nmore" for i, question in enumerate(QUESTIONS)]
    engine = Answering(answers)
    with live(engine, name=MODEL) as server:
        path = "completions" if kind == "local-completions" else "chat/completions"
        options = [] if kind == "local-completions" else ["--apply_chat_template"]
        result, samples = evaluate(kind, f"{server.url}/v1/{path}", "said", *options)
    assert result["exact_match,none"] == pytest.approx(0.5)
    assert [sample["filtered_resps"][0] for sample in samples] == [
        question["choices"][i % 2] for i, question in enumerate(QUESTIONS)
    ]


class Answering(ScriptedEngine):
    """Answers each question by its own text, in whatever order they come."""

    def generate(self, tokens, *arguments, **options):
        text = harmony.encoding().decode(tokens)
        (index,) = (i for i, question in enumerate(QUESTIONS) if question["asked"] in text)
        answers, self.answers = self.answers, [self.answers[index]]
        try:
            yield from super().generate(tokens, *arguments, **options)
        finally:
            self.answers = answers
