"""What users choose once: the configuration file, the environment, presets; and the words that they try."""

import io
import json
import sys

import pytest
from support.scripted import ScriptedEngine

import localoss
from localoss import cli, settings
from localoss.chat import harmony
from localoss.hub import registry


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run a command line on a scripted engine; gives exit code, stdout, stderr and the engine's prompts."""
    for name in ("tiny", "other"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "localoss.json").write_text(name)
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    registry.known_models.cache_clear()

    def start(*arguments, piped=None):
        engine = ScriptedEngine()

        def load(folder, options, listener):
            start.folder, start.options = folder, options
            return engine

        monkeypatch.setattr(localoss, "load", load)
        monkeypatch.setattr(sys, "stdin", io.StringIO(piped or ""))
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        start.engine = engine
        return code, out, err, [harmony.encoding().decode(prompt) for prompt in engine.prompts]

    return start


def test_a_setting_is_written_shown_and_used(run, tmp_path):
    assert run("config", "temperature", "0.5")[0] == 0
    assert run("config", "context", "4096")[0] == 0
    assert run("config", "model", "other")[0] == 0
    assert run("run", "Hi there")[0] == 0
    assert run.folder.name == "other" and run.options.context_tokens == 4096
    assert run.engine.params.temperature == 0.5
    run("run", "tiny", "Hi", "--temperature", "0.9")
    assert run.folder.name == "tiny" and run.engine.params.temperature == 0.9
    assert run("config", "temperature", "none")[0] == 0
    run("run", "Hi there")
    assert run.engine.params.temperature == 1.0
    assert run("config", "temperature")[1] == "temperature is not set\n"


def test_every_setting_is_taken_shown_and_taken_out(run):
    examples = {"effort": "high", "kv_dtype": "int8", "gpu_layers": "3", "system": 'Say "no".'}
    sizes = ("memory_limit", "gpu_memory", "expert_memory", "session_disk")
    for name, kind in settings.CONFIG_KEYS.items():
        value = examples.get(name) or ("4GB" if name in sizes else {str: "x", float: "0.5"}.get(kind, "1"))
        code, out, err, *_ = run("config", name.replace("_", "-"), value)
        assert code == 0 and out.startswith(f"{name} = "), (name, err)
        assert run("config", name, "none")[1] == f"{name} is not set\n"
    code, _, err, *_ = run("config", "efort", "high")
    assert code and "did you mean effort?" in err


def test_the_environment_goes_before_the_file(run, tmp_path, monkeypatch):
    (tmp_path / "config.toml").write_text("top_k = 5\neffort = 'low'\n")
    monkeypatch.setenv("LOCALOSS_TOP_K", "7")
    monkeypatch.setenv("LOCALOSS_MUST_FIT", "1")
    _, _, _, prompts = run("chat", "tiny", piped="Hi\n")
    assert run.engine.params.top_k == 7 and run.options.must_fit and "Reasoning: low" in prompts[0]
    report = json.loads(run("config", "--json")[1])
    assert report["settings"]["top_k"] == {"value": 7, "from": "LOCALOSS_TOP_K"}
    assert report["settings"]["effort"]["from"] == str(tmp_path / "config.toml")


def test_what_is_asked_for_stands_in_a_default_s_place(run, tmp_path):
    (tmp_path / "config.toml").write_text("private = true\nsystem = 'Speak Latin.'\n")
    (tmp_path / "system.txt").write_text("Speak Greek.")
    assert run("chat", "tiny", piped="Hi\n")[0] == 0 and not list(tmp_path.glob("sessions/*"))
    code, _, err, prompts = run(
        "chat", "tiny", "--session=a", "--system-file", tmp_path / "system.txt", piped="Hi\n"
    )
    assert code == 0 and "Greek" in prompts[0] and "Latin" not in prompts[0], err
    assert (tmp_path / "sessions" / "a" / "messages.json").exists()


def test_presets(run, tmp_path):
    (tmp_path / "config.toml").write_text(
        "temperature = 0.1\n[presets.latin]\nsystem = 'Speak Latin.'\neffort = 'high'\ntemperature = 1\n"
    )
    for command in (("run", "tiny", "Hi"), ("chat", "tiny")):
        code, _, err, prompts = run(*command, "--preset", "latin", "--top-k", "3", piped="Hi\n")
        assert code == 0, err
        assert "Speak Latin." in prompts[0] and "Reasoning: high" in prompts[0]
        assert run.engine.params.temperature == 1.0 and run.engine.params.top_k == 3
    code, _, err, _ = run("run", "tiny", "Hi", "--preset", "latn")
    assert code == 2 and "there is no preset latn; did you mean latin?" in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("temprature = 1", "there is no setting temprature; did you mean temperature?"),
        ("temperature = 'hot'", "temperature is 'hot'; give a number"),
        ("effort = 'max'", "effort is 'max'; use one of low, medium, high"),
        ("memory_limit = 'much'", "'much' is no size"),
        ("threads = 1.5", "threads is 1.5; give a whole number"),
        ("must_fit = 1", "must_fit is 1; give true or false"),
        ("a b", "not TOML"),
        ("a = " + "[" * 50_000, "not TOML"),
        ("presets = 1", "presets are tables"),
        ("[presets.x]\nthreads = 1", "not threads"),
        ("\xff", "not UTF-8"),
    ],
)
def test_a_wrong_file_is_one_line(run, tmp_path, text, says):
    (tmp_path / "config.toml").write_bytes(text.encode("latin-1"))
    code, out, err, _ = run("run", "tiny", "Hi")
    assert (code, out) == (2, "") and err.count("\n") == 1 and says in err and "config.toml" in err


def test_writing_keeps_the_rest_of_the_file(run, tmp_path):
    path = tmp_path / "config.toml"
    text = "# my comment\ntop_k = 5\n\n[presets.x]\ntop_k = 9  # keep\n"
    path.write_text(text)
    assert run("config", "--top-k", "6")[0] == 2, "an option is none"
    assert run("config", "top-k", "6")[0] == 0
    assert path.read_text() == "# my comment\ntop_k = 6\n\n[presets.x]\ntop_k = 9  # keep\n"
    before = path.read_text()
    for name, value in (("top_k", "many"), ("nope", "1"), ("effort", "max")):
        code, _, err, _ = run("config", name, value)
        assert code == 2 and err.count("\n") == 1, err
    assert path.read_text() == before


def test_words_that_people_try(run):
    code, _, err, _ = run("run", "What is this?")
    assert code == 2 and "several models are installed" in err and "`localoss config model NAME`" in err
    run("config", "model", "tiny")
    code, out, err, prompts = run("run", "What is this?")
    assert (code, out) == (0, "Hello!\n"), err
    assert run.folder.name == "tiny" and "What is this?" in prompts[0]
    assert "<|message|>Summarize\n\nA text<|end|>" in run("run", "Summarize", piped="A text\n")[3][0]
    code, _, err, _ = run("run", "tinny", piped="A text")
    assert code == 2 and "did you mean tiny?" in err
    _, out, _, prompts = run("chat", "tiny", "First question", piped="Second\n")
    assert out == "Hello!\nHello!\n" and "First question" in prompts[0] and "Second" in prompts[1]
    _, _, _, prompts = run("chat", "/exit is what?", piped="")
    assert "/exit is what?" in prompts[0]


@pytest.mark.parametrize(
    "name", ["gpt-oss:20b", "gpt-oss", "gpt-oss:latest", "GPT-OSS:20B", "openai/gpt-oss-20b"]
)
def test_ollama_s_names(run, name):
    assert registry.canonical_name(name) == "gpt-oss-20b"
    assert registry.canonical_name("gpt-oss:120b") == "gpt-oss-120b"


def test_help_is_whole_and_grouped(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _, _ = run("--help")
    assert "..." not in out.split("Commands:")[1]
    assert run("help")[1] == out
    _, run_help, _, _ = run("help", "run")
    assert run_help == run("run", "--help")[1] and "\nSampling:\n" in run_help and "\nLoading:\n" in run_help
    assert run("help", "nope")[0] == 2
    assert run("ls")[1] == run("list")[1] != ""
    assert "Did you mean 'list'?" in run("lst")[2]
