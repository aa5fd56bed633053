"""Sessions: kept through restarts and kills, one program at a time, nothing typed or answered lost."""

import json
import os
import random
import signal
import stat
import time

import pytest

pytest.importorskip("pexpect")  # not on Windows

from support import forked
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
        process = forked.Process(
            [str(path), "chat", "tiny", *arguments],
            os.environ | {"PYTHONPATH": str(TESTS.parent), "LOCALOSS_HOME": str(tmp_path)},
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


def names(tmp_path):
    return sorted(path.parent.name for path in tmp_path.glob("sessions/*/messages.json"))


def test_every_chat_is_kept(chat, tmp_path):
    assert finished(chat("One", arguments=()))[0] == 0
    (name,) = names(tmp_path)
    assert messages(tmp_path, name) == [("user", "One"), ("assistant", "Answer 0.")]
    assert finished(chat("Two", arguments=("--continue",)))[0] == 0
    assert [text for _, text in messages(tmp_path, name)] == ["One", "Answer 0.", "Two", "Answer 0."]
    finished(chat("Three", arguments=()))
    assert len(names(tmp_path)) == 2, "a new one"


def test_a_question_is_kept_before_its_answer(chat, tmp_path):
    process = chat("What was asked", arguments=(), token_s=0.05)
    ends = time.monotonic() + 30
    while not names(tmp_path) and time.monotonic() < ends:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert messages(tmp_path, names(tmp_path)[0]) == [("user", "What was asked")]
    code, out, _ = finished(chat("/regen", arguments=("--continue",)))
    assert (code, out) == (0, "Answer 0.\n")


def test_nothing_stays_of_a_private_chat_or_an_empty_one(chat, tmp_path):
    code, out, _ = finished(chat("One", "/session", arguments=("--private",)))
    assert (code, out) == (0, "Answer 0.\n") and not list(tmp_path.glob("sessions/*"))
    finished(chat("/help", arguments=()))
    assert not list(tmp_path.glob("sessions/*"))
    for arguments in (("--private", "--session", "a"), ("--private", "--continue")):
        code, _, err = finished(chat("One", arguments=arguments))
        assert code == 2 and "--private were both given; give one of them" in err


def test_a_chat_goes_on_where_nothing_can_be_kept(chat, tmp_path):
    (tmp_path / "sessions").write_text("a file")
    code, out, err = finished(chat("One", arguments=()))
    assert (code, out) == (0, "Answer 0.\n") and "(this chat is not kept: " in err


def test_sessions_are_named_and_gone_to(chat, tmp_path):
    (tmp_path / "notes.txt").write_text("Notes that are no title.")
    lines = [f"/read {tmp_path}/notes.txt", "Where to in May?", "/session my trip", "/session"]
    _, _, err = finished(chat(*lines, "/clear", "Second chat", "/sessions my-trip", "Three", arguments=()))
    assert err.count("(session my-trip)") == 2
    assert "(a new conversation; the one before is session my-trip)" in err
    other, mine = names(tmp_path)
    assert mine == "my-trip" and messages(tmp_path, other)[0] == ("user", "Second chat")
    assert [t for role, t in messages(tmp_path, mine) if role == "user"] == ["Where to in May?", "Three"]
    _, _, err = finished(chat("/sessions", "/sessions 9", "/sessions nope", "/sessions 2", "/session"))
    assert err.count("Where to in May?") == 1 and "\n  1  my-trip\n" in err
    assert "there are 2 sessions" in err and "there is no session nope" in err
    assert f"(session {other})" in err
    _, _, err = finished(chat("/session my-trip", arguments=("--session", other)))
    assert "there is a session my-trip already" in err


def test_a_private_chat_can_be_kept_later(chat, tmp_path):
    finished(chat("One", "/session later", "Two", arguments=("--private",)))
    assert [text for role, text in messages(tmp_path, "later") if role == "user"] == ["One", "Two"]


def test_caches_are_bounded_and_messages_stay(chat, tmp_path, monkeypatch):
    from localoss.chat import session_store

    for index in range(3):
        finished(chat("One", arguments=("--session", f"s{index}")))
    sizes = [session_store._bytes_of(tmp_path / "sessions" / f"s{i}" / "cache") for i in range(3)]
    monkeypatch.setenv("LOCALOSS_SESSION_DISK", str(sum(sizes) + 10))
    finished(chat("One", arguments=("--session", "s3")))
    there = [(tmp_path / "sessions" / f"s{i}" / "cache").exists() for i in range(4)]
    assert there == [False, True, True, True], "the oldest goes first"
    assert all(messages(tmp_path, f"s{i}")[0] == ("user", "One") for i in range(4))
    monkeypatch.setenv("LOCALOSS_SESSION_DISK", "10")
    code, _, err = finished(chat("Two", "Three", arguments=("--session", "s3")))
    assert code == 0 and err.count("is not kept, and a restart reads the messages anew") == 1
    assert not list(tmp_path.glob("sessions/*/cache"))
    assert len(messages(tmp_path, "s3")) == 6


def test_sessions_are_exported(chat, tmp_path, monkeypatch, capsys):
    from localoss import cli

    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    (tmp_path / "notes.txt").write_text("Some ``` notes.")
    saved = [tmp_path / f"saved.{kind}" for kind in ("md", "txt", "json")]
    lines = [f"/read {tmp_path}/notes.txt", "One", *(f"/save {path}" for path in saved)]
    _, _, err = finished(chat(*lines, f"/save {saved[0]}", f"/save {tmp_path}/notes.txt"))
    assert "notes.txt: holds something else" in err and err.count(f"messages in {saved[0]})") == 2
    text = saved[0].read_text()
    assert "## You\n\n`notes.txt`\n\n````\nSome ``` notes.\n````\n\nOne\n\n## Answer\n\nAnswer 0.\n" in text
    assert "You:\nnotes.txt:\n\nSome ``` notes.\n\nOne\n\nAnswer:\nAnswer 0.\n" in saved[1].read_text()
    assert json.loads(saved[2].read_text())["messages"][0]["text"] == "One"
    for path in saved:
        out = tmp_path / f"out{path.suffix}"
        assert cli.main(["sessions", "export", "trip", str(out)]) == 0
        assert out.read_text().splitlines()[1:] == path.read_text().splitlines()[1:] or path == saved[2]
    capsys.readouterr()
    assert cli.main(["sessions", "export", "trip"]) == 0
    assert "## You" in capsys.readouterr().out
    assert cli.main(["sessions", "export", "trip", "--format", "doc"]) == 2
    assert cli.main(["sessions"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("trip") and "One" in out and "caches may take 4.00 GB" in err


def ask_for_a_while(terminal, asked, rng):
    """Type questions one after the other for a random time; the number of the next one."""
    ends = time.monotonic() + rng.uniform(0.0, 1.5)
    while time.monotonic() < ends:
        terminal.type(f"Question {asked}\r")
        asked += 1
        while time.monotonic() < ends and "> " not in terminal.line() + " ":
            terminal.take(0.01)
        terminal.take(0.05)
    return asked


def ask_until_one_stands(terminal, asked, rng):
    asked = ask_until_an_answer_begins(terminal, asked, rng)
    terminal.wait_for_prompt()
    return asked


def ask_until_an_answer_begins(terminal, asked, rng):
    """Type one, and wait until its answer is shown: that may take long on a busy machine."""
    shown = terminal.everything().count("Answer ")
    terminal.type(f"Question {asked}\r")
    ends = time.monotonic() + 60
    while terminal.everything().count("Answer ") <= shown and time.monotonic() < ends:
        terminal.take(0.01)
    terminal.take(rng.uniform(0.0, 0.1))
    return asked + 1


def kill_and_resume(tmp_path, kills, seed):
    """Kill a chat at random moments again and again; every time, see what the next one finds.

    The first has no option: every chat is kept.
    """
    rng, told, asked = random.Random(seed), [], 0
    for kill in range(kills):
        terminal = scripted_chat(
            tmp_path, *(["--continue"] if told else []), answers=ANSWERS, token_s=0.003, prefill_s=0.05
        )
        started = time.monotonic()
        terminal.wait_for("tokens", where=terminal.status)  # the status, once all is loaded
        resume_s = time.monotonic() - started
        asks = (ask_for_a_while, ask_until_an_answer_begins, ask_until_one_stands)[kill % 3]
        asked = asks(terminal, asked, rng)
        terminal.child.kill(signal.SIGKILL)
        terminal.take(0.2)
        text = terminal.everything()
        terminal.close()
        assert "set aside" not in text and "Traceback" not in text, text
        (name,) = {path.parent.name for path in tmp_path.glob("sessions/*/messages.json")} or {None}
        now = messages(tmp_path, name) if name else []
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
    assert sum(role == "assistant" for role, _ in told) > 10
