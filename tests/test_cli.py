"""The command line on a scripted engine: what is written where, and every error in one line."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.scripted import HELLO, ScriptedEngine

import localoss
from localoss import cli, settings
from localoss.chat import harmony
from localoss.errors import UsageError
from localoss.options import LoadOptions, SamplingParams

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A data folder of the test's own, with one model in it."""
    folder = tmp_path / "home"
    (folder / "models" / "tiny").mkdir(parents=True)
    monkeypatch.setenv("LOCALOSS_HOME", str(folder))
    monkeypatch.delenv("LOCALOSS_DEBUG", raising=False)
    return folder


@pytest.fixture
def engine(monkeypatch):
    """The engine that `localoss.load` will give."""
    scripted = ScriptedEngine()
    monkeypatch.setattr(localoss, "load", lambda folder, options, listener: scripted, raising=False)
    return scripted


@pytest.fixture
def localoss_cli(capsys, monkeypatch):
    """Run the command line in this process: arguments to (exit code, stdout, stderr)."""

    def run(*arguments, piped=""):
        reading, writing = os.pipe()
        os.write(writing, piped.encode())
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def prompt_text(engine):
    return harmony.encoding().decode(engine.prompts[-1])


def is_one_line(err, *words):
    return err.startswith("error: ") and err.count("\n") == 1 and all(word in err for word in words)


# run -----------------------------------------------------------------------------------------------------


def test_run_writes_the_answer_alone(engine, localoss_cli):
    assert localoss_cli("run", "tiny", "Hi") == (0, "Hello!\n", "")
    assert "<|start|>user<|message|>Hi<|end|><|start|>assistant" in prompt_text(engine)
    assert "Reasoning: medium" in prompt_text(engine)


def test_run_joins_prompt_and_pipe(engine, localoss_cli):
    localoss_cli("run", "tiny", "Sum up:", piped="one\ntwo\n")
    assert "<|message|>Sum up:\n\none\ntwo<|end|>" in prompt_text(engine)


def test_run_takes_the_pipe_alone(engine, localoss_cli):
    localoss_cli("run", "tiny", piped="Only this\n")
    assert "<|message|>Only this<|end|>" in prompt_text(engine)


def test_run_passes_its_options_on(engine, localoss_cli, tmp_path):
    (tmp_path / "system.txt").write_text("Speak Latin.\n")
    drawing = ["--temperature", "0.3", "--top-p", "0.9", "--top-k", "17", "--min-p", "0.05", "--seed", "11"]
    system = str(tmp_path / "system.txt")
    code, *_ = localoss_cli("run", "tiny", "Hi", "--effort", "high", "--system-file", system, *drawing)
    assert code == 0
    stops = (harmony.RETURN, harmony.CALL)
    assert engine.params == SamplingParams(0.3, top_p=0.9, top_k=17, min_p=0.05, seed=11, stop_ids=stops)
    assert "Reasoning: high" in prompt_text(engine)
    assert "# Instructions\n\nSpeak Latin.<|end|>" in prompt_text(engine)


def test_run_passes_what_the_engine_is_made_with_to_load(monkeypatch, localoss_cli, home):
    asked = []

    def load(folder, options, listener):
        asked[:] = [folder, options]
        return ScriptedEngine()

    monkeypatch.setattr(localoss, "load", load, raising=False)
    memory = ["--context", "512", "--kv-dtype", "int8", "--memory-limit", "12.5GB", "--must-fit", "--lookup"]
    gpu = ["--gpu-layers", "7", "--gpu-experts", "none", "--gpu-memory", "8GB"]
    localoss_cli("run", "tiny", "Hi", "--threads", "3", *memory, *gpu)
    folder, options = asked
    assert folder == home / "models" / "tiny"
    assert 4096 < options.prompt_tokens < 4296
    assert replace(options, prompt_tokens=0) == LoadOptions(
        context_tokens=512,
        threads=3,
        kv_dtype="int8",
        memory_limit=12_500_000_000,
        must_fit=True,
        lookup=True,
        gpu_layers=7,
        gpu_experts="none",
        gpu_memory=8_000_000_000,
    )


@pytest.mark.parametrize("command", ["run", "bench", "serve"])
def test_gpu_experts_that_are_no_number(command, localoss_cli):
    code, out, err = localoss_cli(
        command, "tiny", *(["Hi"] if command == "run" else []), "--gpu-experts", "all of them"
    )
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "--gpu-experts is 'all of them'; give a number of layers, auto or none" in err


@pytest.mark.parametrize("command", ["run", "bench", "serve"])
def test_gpu_layers_that_are_no_number(command, localoss_cli):
    code, out, err = localoss_cli(
        command, "tiny", *(["Hi"] if command == "run" else []), "--gpu-layers", "-3"
    )
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "--gpu-layers is '-3'; give a number of layers, auto or all" in err


def test_run_json(engine, localoss_cli):
    code, out, err = localoss_cli("run", "tiny", "Hi", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert (report["answer"], report["thinking"], report["finish"]) == ("Hello!", "A greeting.", "return")
    assert [m["channel"] for m in report["messages"]] == ["analysis", "final"]
    assert report["prompt_tokens"] == len(engine.prompts[0])
    assert report["generated_tokens"] == len(harmony.encode_raw(HELLO))
    assert {"load_s", "prefill_s", "decode_s", "prefill_tokens_per_s", "decode_tokens_per_s"} <= report.keys()


def test_run_says_when_the_answer_never_came(engine, localoss_cli):
    code, out, err = localoss_cli("run", "tiny", "Hi", "--max-tokens", "4")
    assert (code, out) == (0, "")
    assert err == "note: --max-tokens 4 ended the answer before its final message\n"


def test_run_keeps_an_answer_that_max_tokens_cut(engine, localoss_cli):
    length = len(harmony.encode_raw(HELLO)) - 2
    assert localoss_cli("run", "tiny", "Hi", "--max-tokens", str(length)) == (0, "Hello\n", "")


def test_run_raw(engine, localoss_cli):
    engine.answers = [" upon a time<|endoftext|>"]
    assert localoss_cli("run", "tiny", "Once", "--raw") == (0, " upon a time\n", "")
    assert engine.prompts == [harmony.encode_raw("Once")]


def test_a_full_context_keeps_what_was_said(engine, localoss_cli):
    engine.answers = ["<|channel|>final<|message|>" + "word " * 400]
    engine.context_tokens = 120
    code, out, err = localoss_cli("run", "tiny", "Hi")
    assert code == 1 and out.startswith("word word") and is_one_line(err, "120", "--context")


def test_a_prompt_longer_than_the_context(engine, localoss_cli):
    engine.context_tokens = 200
    code, out, err = localoss_cli("run", "tiny", "word " * 300)
    assert (code, out) == (1, "") and is_one_line(err, "200", f"{len(harmony.encode_raw('word ' * 300))}"[0])
    assert not engine.prompts


def test_a_foreign_vocabulary(engine, localoss_cli):
    engine.vocab = 2056
    for extra in ([], ["--raw"]):
        code, out, err = localoss_cli("run", "tiny", "Hi", *extra)
        assert (code, out) == (2, "") and is_one_line(err, "2,056", "gpt-oss")
    code, _, err = localoss_cli("chat", "tiny", piped="Hi\n")
    assert code == 2 and is_one_line(err, "2,056", "gpt-oss")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "tiny"], ["no prompt"]),
        (["run", "tiny", "Hi", "--temperature", "-1"], ["--temperature", "0"]),
        (["run", "tiny", "Hi", "--top-p", "1.5"], ["--top-p", "1"]),
        (["run", "tiny", "Hi", "--max-tokens", "0"], ["--max-tokens", "1"]),
        (["run", "tiny", "Hi", "--effort", "huge"], ["huge", "low"]),
        (["run", "tiny", "Hi", "--effot", "low"], ["--effot", "--effort"]),
        (["run", "tiny", "Hi", "--system", "a", "--system-file", "b"], ["--system-file"]),
        (["run", "tiny", "Hi", "--system-file", "absent.txt"], ["absent.txt", "No such file"]),
        (["run", "tiny", "Hi", "--raw", "--system", "a"], ["--raw"]),
        (["run", "tini", "Hi"], ["did you mean tiny"]),
        (["run", "gpt-oss-20b", "Hi"], ["`localoss pull gpt-oss-20b`"]),
        (["run", "gpt-oss-20", "Hi"], ["did you mean gpt-oss-20b"]),
        (["run", "no/such/folder", "Hi"], ["no/such/folder"]),
        (["run", "", "Hi"], ["no model"]),
        (["run", __file__, "Hi"], ["is a file"]),
        (["rnu", "tiny"], ["'rnu'", "'run'"]),
    ],
)
def test_wrong_requests_are_one_line(engine, localoss_cli, arguments, words):
    code, out, err = localoss_cli(*arguments)
    assert (code, out) == (2, "") and is_one_line(err, *words), err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LOCALOSS_HOME", __file__, ["is a file"]),
        ("LOCALOSS_HOME", "~nobody-of-this-name/x", ["give a folder"]),
        ("LOCALOSS_DEBUG", "perhaps", ["'perhaps'", "1 or 0"]),
    ],
)
def test_malformed_variables_are_one_line(engine, localoss_cli, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    code, _, err = localoss_cli("run", "tiny", "Hi")
    assert code == 2 and is_one_line(err, name, *words), err


def test_a_malformed_instruction_set(monkeypatch):
    monkeypatch.setenv("LOCALOSS_SIMD", "sse9")
    with pytest.raises(UsageError, match=r"LOCALOSS_SIMD is 'sse9'; use one of .*portable"):
        settings.simd()


def test_a_bug_is_one_line_too(engine, localoss_cli, monkeypatch):
    monkeypatch.setattr(engine, "generate", lambda *a, **k: 1 / 0)
    code, _, err = localoss_cli("run", "tiny", "Hi")
    assert code == 1 and is_one_line(err, "ZeroDivisionError", "LOCALOSS_DEBUG=1")
    monkeypatch.setenv("LOCALOSS_DEBUG", "1")
    assert "Traceback" in localoss_cli("run", "tiny", "Hi")[2]


def test_no_subcommand_gives_help(localoss_cli):
    code, out, _ = localoss_cli()
    assert code == 0 and "quantize" in out and "chat" in out


def test_version(localoss_cli):
    assert localoss_cli("version") == localoss_cli("--version")
    assert localoss_cli("version")[0] == 0


# chat over pipes -----------------------------------------------------------------------------------------


def test_chat_reads_lines_and_keeps_the_conversation(engine, localoss_cli):
    code, out, err = localoss_cli("chat", "tiny", piped="Hi\n\nAnd you?\n")
    assert (code, out) == (0, "Hello!\nHello!\n")
    assert err.startswith("tiny · effort medium · /help for help\n")
    assert "<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>Hello!<|end|>" in prompt_text(
        engine
    )
    assert "A greeting." not in prompt_text(engine)
    assert engine.sequences[0] is engine.sequences[1] is not None


def test_chat_commands(engine, localoss_cli):
    lines = [
        "Hi",
        "/effort high",
        "Again",
        "/effort",
        "/effort silly",
        "/clear",
        "Anew",
        "/hepl",
        "/exit",
        "Never",
    ]
    code, _, err = localoss_cli("chat", "tiny", piped="\n".join(lines))
    assert code == 0 and len(engine.prompts) == 3
    assert "Reasoning: high" in harmony.encoding().decode(engine.prompts[1])
    assert "Hi" not in prompt_text(engine) and "Anew" in prompt_text(engine)
    assert err.count("(effort high)") == 2 and "'silly'" in err and "did you mean /help?" in err


def test_chat_stops_at_a_prompt_that_is_too_long(engine, localoss_cli):
    engine.context_tokens = 150
    code, _, err = localoss_cli("chat", "tiny", piped="word " * 200)
    assert code == 1 and is_one_line(err[err.index("error:") :], "150")


# As a program of its own ---------------------------------------------------------------------------------


def start(tmp_path, *arguments, **script):
    (tmp_path / "script.json").write_text(json.dumps(script))
    command = [
        sys.executable,
        str(TESTS / "support" / "scripted.py"),
        str(tmp_path / "script.json"),
        *arguments,
    ]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    return subprocess.Popen(command, text=True, env=environment, **pipes)


def test_a_reader_that_leaves_is_no_error(tmp_path):
    process = start(tmp_path, "run", "tiny", "Hi", answers=["<|channel|>final<|message|>" + "word " * 5000])
    assert process.stdout.read(4) == "word"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(20) == 0


def test_output_that_the_encoding_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    out, err = start(
        tmp_path, "run", "tiny", "Hi", answers=["<|channel|>final<|message|>a→b<|return|>"]
    ).communicate()
    assert (out, err) == ("a?b\n", "")


def test_python_m_localoss_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "localoss", "nope"], capture_output=True, text=True, cwd=TESTS.parent
    )
    assert done.returncode == 2 and is_one_line(done.stderr, "nope")
