"""Servers that run on this machine: found, listed, stopped; and programs that are launched on them."""

import json
import os
import sys

import pytest
from support.live_server import live
from support.scripted import ScriptedEngine

from localoss import cli
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
    assert code == 2 and "there are aider, claude, codex" in err


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script plays the program")
def test_launch_starts_the_program_with_what_it_must_know(server, home, capsys, monkeypatch):
    written = home / "written"
    fake = home / "bin" / "cn"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" > {written}\ncat "$2" >> {written}\nexit 3\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
    assert localoss(capsys, "launch", "continue", "--model", NAME, "--", "-p", "hi")[0] == 3
    arguments, config = written.read_text().splitlines()
    file, *rest = arguments.split()[1:]
    assert rest == ["-p", "hi"] and not os.path.exists(file)  # what it was told is gone with it
    assert json.loads(config)["models"][0]["apiBase"] == server.url + "/v1"
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
