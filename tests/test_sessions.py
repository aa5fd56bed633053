"""Sessions: kept through restarts and kills, one program at a time, nothing typed or answered lost."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time

import pytest

pytest.importorskip("pexpect")  # not on Windows

from support.pseudo_terminal import TESTS, scripted_chat

from localoss.chat import harmony
from localoss.chat.conversation import Conversation
from localoss.chat.harmony import ChatSetup, Message

THINKING = "<|channel|>analysis<|message|>" + "Let me see. " * 12 + "<|end|><|start|>assistant"
ANSWERS = [f"{THINKING}<|channel|>final<|message|>Answer {i}.<|return|>" for i in range(3)]


@pytest.fixture
def chat(tmp_path):
    """Start `localoss chat --session trip` over a scripted engine, with the given lines on its stdin."""

    def start(*lines, arguments=("--session", "trip"), **script):
        (tmp_path / "models" / "tiny").mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / "tiny" / "localoss.json").touch()
        path = tmp_path / f"script{time.monotonic_ns()}.json"
        path.write_text(json.dumps({"answers": ANSWERS, "log": str(tmp_path / "log")} | script))
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "support" / "scripted.py"), str(path), "chat", "tiny", *arguments],
            env=os.environ | {"PYTHONPATH": str(TESTS.parent), "LOCALOSS_HOME": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.stdin.write("".join(f"{line}\n" for line in lines))
        process.stdin.flush()
        return process

    return start


def finished(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def messages(tmp_path, name="trip"):
    document = json.loads((tmp_path / "sessions" / name / "messages.json").read_bytes())
    return [(message["role"], message["text"]) for message in document["messages"]]


def prefilled(err):
    """The third column of /stats' last table."""
    table = err[err.rindex("turn  prompt") :].split("\n")[1:]
    return [int(row.split()[2].replace(",", "")) for row in table if row.split() and row.split()[0].isdigit()]


def test_a_session_goes_on(chat, tmp_path):
    code, out, err = finished(chat("One", "Two", "/stats"))
    assert (code, out) == (0, "Answer 0.\nAnswer 1.\n"), err
    folder = tmp_path / "sessions" / "trip"
    kept = [("user", "One"), ("assistant", "Answer 0."), ("user", "Two"), ("assistant", "Answer 1.")]
    assert messages(tmp_path) == kept
    for path in [folder / "messages.json", *(folder / "cache").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    code, out, err = finished(chat("Three", "/stats", arguments=("--continue",)))
    assert code == 0 and "(session: 4 messages" in err
    asked = [Message("user", "One"), Message("assistant", "Answer 0.", "final"), Message("user", "Two")]
    setup = ChatSetup()
    before = len(harmony.render(setup, asked))
    asked += [Message("assistant", "Answer 1.", "final"), Message("user", "Three")]
    assert prefilled(err) == [len(harmony.render(setup, asked)) - before], "the answer and what is new"


def test_effort_and_instructions_belong_to_the_session(chat, tmp_path):
    finished(chat("One", arguments=("--session", "trip", "--effort", "high", "--system", "Speak Latin.")))
    finished(chat("Two"))
    finished(chat("Three", arguments=("--session", "trip", "--effort", "low")))
    prompts = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert ["high" in prompt for prompt in prompts] == [True, True, False]
    assert all("Speak Latin." in prompt for prompt in prompts)


def test_two_programs_on_one_session(chat):
    first = chat("One")
    assert first.stdout.readline() == "Answer 0.\n"
    code, out, err = finished(chat("Two"))
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "another localoss has this session open" in err
    code, _, _ = finished(first)
    assert code == 0
    assert finished(chat("Two"))[0] == 0


@pytest.mark.parametrize("name", ["positions", "index.json"])
def test_a_damaged_cache_is_set_aside(chat, tmp_path, name):
    finished(chat("One"))
    path = tmp_path / "sessions" / "trip" / "cache" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 32
    path.write_bytes(data)
    code, out, err = finished(chat("Two", "/stats"))
    assert code == 0 and "Answer 0." in out
    assert (
        err.count("the saved cache of session trip is set aside: it is damaged; the conversation is read")
        == 1
    )
    assert prefilled(err)[0] > 70, "all of it"
    assert (path.parent.parent / "cache-set-aside" / name).exists()
    assert "set aside" not in finished(chat("Three"))[2]


def test_a_foreign_cache_is_set_aside(chat, tmp_path):
    finished(chat("One"))
    (tmp_path / "models" / "other").mkdir()
    (tmp_path / "models" / "other" / "localoss.json").write_text("{}")
    code, out, err = finished(chat("/model other", "Two"))
    assert code == 0 and "set aside: it belongs to another model" in err and out.endswith("Answer 0.\n")
    assert messages(tmp_path)[-2:] == [("user", "Two"), ("assistant", "Answer 0.")]


def test_damaged_messages_are_one_line(chat, tmp_path):
    finished(chat("One"))
    (tmp_path / "sessions" / "trip" / "messages.json").write_text('{"format": 1}')
    code, out, err = finished(chat("Two"))
    assert (code, out) == (2, "") and err.count("\n") == 1 and "not a saved conversation" in err


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a b", "x" * 65])
def test_names_that_are_none(chat, name):
    code, _, err = finished(chat("One", arguments=("--session", name)))
    assert code == 2 and err.count("\n") == 1 and "session" in err


def test_sessions_are_listed_shown_and_removed(chat, tmp_path, monkeypatch, capsys):
    from localoss import cli

    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    assert cli.main(["chat", "--continue"]) == 2
    assert "there is no session to continue" in capsys.readouterr().err
    finished(chat("One"))
    finished(chat("Hello", arguments=("--session", "b")))
    assert cli.main(["sessions", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["b", "trip"] and "2 messages  tiny" in lines[0]
    assert cli.main(["sessions", "list", "--json"]) == 0
    assert [one["messages"] for one in json.loads(capsys.readouterr().out)["sessions"]] == [2, 2]
    assert cli.main(["sessions", "show", "trip"]) == 0
    assert capsys.readouterr().out == "user:\nOne\n\nassistant:\nAnswer 0.\n\n"
    assert cli.main(["sessions", "show", "trip", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["messages"][0]["text"] == "One"
    assert cli.main(["sessions", "show", "nope"]) == 2
    assert cli.main(["sessions", "rm", "trip"]) == 2, "not without --yes"
    assert cli.main(["sessions", "rm", "trip", "--yes"]) == 0
    assert not (tmp_path / "sessions" / "trip").exists() and (tmp_path / "sessions" / "b").exists()


def kill_and_resume(tmp_path, kills, seed):
    """Kill a chat at random moments again and again; every time, see what the next one finds."""
    rng, told, asked = random.Random(seed), [], 0
    for kill in range(kills):
        terminal = scripted_chat(
            tmp_path, "--session", "trip", answers=ANSWERS, token_s=0.003, prefill_s=0.05
        )
        started = time.monotonic()
        terminal.wait_for("tokens", where=terminal.status)  # the status, once all is loaded
        resume_s = time.monotonic() - started
        dies_at = time.monotonic() + rng.uniform(0.0, 1.5)
        while time.monotonic() < dies_at:
            terminal.type(f"Question {asked}\r")
            asked += 1
            while time.monotonic() < dies_at and "> " not in terminal.line() + " ":
                terminal.take(0.01)
            terminal.take(0.05)
        terminal.child.kill(signal.SIGKILL)
        terminal.take(0.2)
        text = terminal.everything()
        terminal.close()
        assert "set aside" not in text and "Traceback" not in text, text
        path = tmp_path / "sessions" / "trip" / "messages.json"
        now = messages(tmp_path) if path.exists() else []
        assert now[: len(told)] == told, "all that was there"
        said = [message for role, message in now if role == "user"]
        answered = sum(role == "assistant" for role, _ in now)
        assert text.count("Answer ") <= answered + 1 + ("(session:" in text), text
        told = now
        held = text.split("of which ")[1].split(" ")[0] if "of which" in text else "0"
        print(f"kill {kill + 1}: resumed after {resume_s:.2f} s, {len(said)} messages, {held} tokens held")
    conversation = Conversation(ChatSetup())
    assert conversation.is_answered and asked >= kills
    return told


def test_killed_at_random(tmp_path):
    told = kill_and_resume(tmp_path, 4, seed=1)
    assert any(role == "assistant" for role, _ in told)


@pytest.mark.soak
def test_killed_fifty_times(tmp_path):
    told = kill_and_resume(tmp_path, 50, seed=2)
    assert sum(role == "assistant" for role, _ in told) > 25
