"""Servers that run on this machine: found, listed, stopped; and programs that are launched on them."""

import json
import os
import subprocess
import sys
import tempfile
import threading

import pytest
from support.live_server import live
from support.scripted import ScriptedEngine

from localoss import cli
from localoss.cli.launch import PROGRAMS
from localoss.hub import registry, running

NAME = "demo"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    monkeypatch.setattr(registry, "find_model", lambda name, tell: tmp_path / "models" / name)
    return tmp_path


@pytest.fixture
def server():
    """A server that its user's commands find, in this very process."""
    with live(ScriptedEngine(), name=NAME) as started, running.registered(started.url + "/v1"):
        yield started


def localoss(capsys, *arguments):
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_servers_are_found_while_they_run(home):
    assert running.running_servers() == []
    with running.registered("http://127.0.0.1:1234/v1"):
        (found,) = running.running_servers()
        assert (found.pid, found.url, found.port, found.runs) == (
            os.getpid(),
            "http://127.0.0.1:1234",
            1234,
            True,
        )
    assert running.running_servers() == []
    folder = home / "server" / "running"
    (folder / "999999999.json").write_text('{"url": "http://127.0.0.1:1", "started": 1.0}')
    (folder / f"{os.getpid()}.json").write_text(
        '{"url": "http://127.0.0.1:1", "started": 1.0}'
    )  # another's number
    (folder / "1.json").write_text("{")
    assert running.running_servers() == []
    assert [file.name for file in folder.glob("*.json")] == ["1.json"]


def test_ps_lists_and_stop_takes_a_model_out_of_memory(server, capsys):
    code, out, err = localoss(capsys, "ps")
    assert (code, err) == (0, "") and out.splitlines()[0].split()[:3] == ["SERVER", "PID", "MODEL"]
    assert out.splitlines()[1].split()[:3] == [server.url, str(os.getpid()), NAME]
    (listed,) = json.loads(localoss(capsys, "ps", "--json")[1])["servers"]
    assert listed["url"] == server.url and listed["models"][0]["context_length"] == 8192
    code, out, _ = localoss(capsys, "stop", NAME)
    assert code == 0 and "has left the memory" in out and not server.models.held()
    assert "none in memory" in localoss(capsys, "ps")[1]
    code, out, err = localoss(capsys, "stop", NAME)
    assert (code, out) == (1, "") and err.count("\n") == 1 and "no server has demo in memory" in err


def test_without_a_server_there_is_nothing_to_stop(capsys):
    assert localoss(capsys, "ps") == (0, "no server runs; `localoss serve` starts one\n", "")
    code, _, err = localoss(capsys, "stop", "--port", "7")
    assert code == 1 and err == "error: no server runs on port 7; nothing to stop\n"


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("codex", 'base_url="@/v1"'),
        ("claude", "ANTHROPIC_BASE_URL=@"),
        ("opencode", '"baseURL": "@/v1"'),
        ("aider", "OPENAI_API_BASE=@/v1"),
        ("continue", '"apiBase": "@/v1"'),
        ("goose", "OPENAI_HOST=@"),
        ("qwen", "OPENAI_BASE_URL=@/v1"),
        ("cline", '"baseUrl": "@/v1"'),
        ("llm", '"api_base": "@/v1"'),
    ],
)
def test_launch_prints_what_it_would_do(server, program, says, capsys):
    code, out, err = localoss(capsys, "launch", program, "--print", "--model", NAME, "--", "say hi")
    assert (code, err) == (0, "") and says.replace("@", server.url) in out
    assert "localoss serve" not in out and NAME in out and out.rstrip().endswith("'say hi'")


def test_launch_says_what_it_would_start(capsys):
    _, out, _ = localoss(capsys, "launch", "claude", "--print", "--model", NAME)
    assert out.splitlines()[0] == "localoss serve demo &" and "http://127.0.0.1:11435" in out
    code, _, err = localoss(capsys, "launch", "vim")
    assert code == 2 and "there are aider, claude, cline" in err


# Writes down all that it is told: its arguments, its environment, and the files that they name.
PLAYED = """#!PYTHON -S
import json, os, pathlib, sys
variables = ("ANTHROPIC", "CLAUDE", "GOOSE", "LLM", "LOCALOSS_API", "OPENAI", "OPENCODE")
environment = {name: value for name, value in os.environ.items() if name.startswith(variables)}
words = (*sys.argv[1:], *environment.values())
named = [pathlib.Path(word) for word in words if word.startswith("TEMPORARY")]
files = {path: path.read_text() for name in named for path in (name, *name.rglob("*")) if path.is_file()}
told = json.dumps([sys.argv[1:], environment, {str(path): text for path, text in files.items()}])
for folder in {str(name.parent if name.is_file() else name) for name in named}:
    told = told.replace(folder, "FOLDER")
pathlib.Path("WRITTEN").write_text(told)
sys.exit(3)
"""


@pytest.fixture
def played(server, home, monkeypatch):
    """Gives what a program was told by what is called: arguments, environment and files."""
    for name in ("bin", "user", "temporary"):
        (home / name).mkdir()
    places = {
        "PYTHON": sys.executable,
        "TEMPORARY": str(home / "temporary"),
        "WRITTEN": str(home / "written"),
    }
    text = PLAYED
    for word, place in places.items():
        text = text.replace(word, place)
    for program in PROGRAMS.values():
        fake = home / "bin" / program.command
        fake.write_text(text)
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(home / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("HOME", str(home / "user"))
    monkeypatch.setenv("TMPDIR", str(home / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def told(call):
        call()
        return json.loads((home / "written").read_text())

    return told


@pytest.mark.skipif(sys.platform == "win32", reason="a script plays the program")
@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_a_launched_program_is_told_what_print_shows(played, server, home, program, capsys):
    """And what it is told is gone with it, in a folder of its own: the user's files stay as they are."""
    asked = ("launch", program, "--model", NAME, "--", "-p", "say 'hi' \"$HOME\"")
    told = arguments, _, files = played(lambda: localoss(capsys, *asked))
    assert arguments[-2:] == ["-p", "say 'hi' \"$HOME\""]
    everything = json.dumps(told)
    assert server.url in everything and NAME in everything
    assert len(files) == len(PROGRAMS[program].files("", "", ""))
    assert not [*home.glob("user/*"), *home.glob("temporary/*")]
    script = localoss(capsys, *asked[:2], "--print", *asked[2:])[1]
    assert played(lambda: subprocess.run(["sh", "-ec", script], check=False)) == told


def test_print_shows_no_key(server, home, capsys, monkeypatch):
    monkeypatch.setenv("LOCALOSS_API_KEY", "a secret")
    for program in PROGRAMS:
        out = localoss(capsys, "launch", program, "--print", "--model", NAME)[1]
        assert "a secret" not in out and "KEY" in out


@pytest.mark.skipif(sys.platform == "win32", reason="a script plays the program")
def test_launch_ends_with_the_programs_own_code(played, capsys, monkeypatch):
    assert localoss(capsys, "launch", "cline", "--model", NAME)[0] == 3
    monkeypatch.setenv("PATH", "")
    code, _, err = localoss(capsys, "launch", "codex", "--model", NAME)
    assert code == 2 and "npm install -g @openai/codex" in err


def test_without_a_terminal_what_takes_long_is_a_line_now_and_then(capsys):
    from localoss.cli.loading import SpacedLines

    often, rarely = SpacedLines(0.0), SpacedLines(60.0)
    for number in range(3):
        often(f"often {number}")
        rarely(f"rarely {number}")
    assert capsys.readouterr().err.splitlines() == ["often 0", "rarely 0", "often 1", "often 2"]


def test_what_follows_schemas_starts_before_the_model_is_loaded(home, capsys, monkeypatch):
    """Else the first request with tools waits for it."""
    from localoss.chat import grammar
    from localoss.server import run

    started = threading.Event()
    seen = []
    monkeypatch.setattr(grammar, "warm_up", started.set)
    monkeypatch.setattr(run, "serve", lambda *arguments: seen.append(started.wait(60)))
    assert localoss(capsys, "serve", NAME, "--port", "0")[0] == 0
    assert seen == [True]
