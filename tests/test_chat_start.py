"""A prompt that is there before the model: typed to, waited for, left, and told what went wrong."""

import time

import pytest

pytest.importorskip("pexpect")  # not on Windows

from support.pseudo_terminal import scripted_chat

DONE = "<|channel|>final<|message|>Done.<|return|>"
COMPILING = "compiling kernels, once on this machine: 1 of 86"


@pytest.fixture
def chat(tmp_path):
    """Start a chat whose engine loads slowly, at its first prompt."""
    started = []

    def start(*arguments, load_s, **script):
        terminal = scripted_chat(tmp_path, *arguments, answers=[DONE], load_s=load_s, **script)
        started.append(terminal)
        terminal.wait_for(COMPILING, where=terminal.status)
        return terminal

    yield start
    for terminal in started:
        terminal.close()


def test_a_message_typed_meanwhile_waits_for_the_model(chat, tmp_path):
    terminal = chat(load_s=8, log=str(tmp_path / "log"))
    terminal.type("half a messag")
    terminal.wait_for("> half a messag", where=terminal.line)
    assert "a notice" not in terminal.everything(), "it loads still"
    terminal.type("e\r")
    terminal.wait_for(COMPILING, where=terminal.line)
    terminal.wait_for("a notice", "Done.", timeout_s=60)
    terminal.wait_for_prompt()
    assert COMPILING not in terminal.everything()
    assert terminal.everything().count("a notice") == 1
    assert "half a message<|end|>" in (tmp_path / "log").read_text()


def test_a_draft_stays_when_the_model_comes(chat, tmp_path):
    terminal = chat(load_s=2)
    terminal.type("a draft")
    terminal.wait_for("63 of 8,192 tokens", where=terminal.status, timeout_s=60)
    terminal.settle()
    lines = terminal.everything().split("\n")
    assert terminal.line() == "> a draft" and lines.index("a notice") < lines.index("> a draft")
    terminal.type(", sent\r")
    terminal.wait_for("> a draft, sent", "Done.")


@pytest.mark.parametrize("sent", ["", "\r"])
def test_a_model_that_cannot_be_loaded_ends_the_chat(chat, sent):
    terminal = chat(load_s=3, load_error="layer-000.safetensors: damaged; pull it again")
    terminal.type("hello" + sent)
    assert terminal.wait_for_end(60) == 2
    text = terminal.everything()
    assert text.count("error: layer-000.safetensors: damaged; pull it again") == 1
    assert "Traceback" not in text and COMPILING not in text


@pytest.mark.parametrize("leaving", ["\x04", "/exit\r"])
def test_leaving_does_not_wait(chat, leaving):
    terminal = chat(load_s=3600)
    terminal.type(leaving)
    assert terminal.wait_for_end(60) == 0
    assert "Traceback" not in terminal.everything()


def test_help_comes_and_ctrl_c_stops_waiting(chat):
    terminal = chat(load_s=3600)
    terminal.type("/help\r")
    terminal.wait_for("/effort", "Ctrl-D leaves.")
    terminal.type("hello\r")
    terminal.wait_for(COMPILING, where=terminal.line)
    ends, pressed = time.monotonic() + 60, 0.0
    while "(stopped; " not in terminal.everything() and time.monotonic() < ends:
        if time.monotonic() > pressed + 0.5:  # again: it is lost if the terminal is just leaving raw mode
            terminal.type("\x03")
            pressed = time.monotonic()
        terminal.take()
    terminal.wait_for("(stopped; the model still loads: Up brings your line back)")
    terminal.type("\x1b[A")
    terminal.wait_for("> hello", where=terminal.line)
    terminal.type("\x03")  # between two prompts the terminal is not raw: a Ctrl-D then is lost
    terminal.wait_for_prompt()
    terminal.type("\x04")
    assert terminal.wait_for_end(60) == 0


def test_a_dumb_terminal_is_told_first(tmp_path):
    terminal = scripted_chat(tmp_path, answers=[DONE], load_s=1, variables={"TERM": "dumb"})
    terminal.wait_for("a notice", timeout_s=60)
    terminal.wait_for_prompt()
    terminal.type("Hi\r")
    terminal.wait_for("Done.")
    assert b"\x1b[" not in terminal.seen.split(b"/help for help")[1].split(b"> ")[0]
    terminal.close()


def test_compiling_is_counted_and_timed(monkeypatch):
    from localoss.cli import loading

    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(loading.time, "monotonic", lambda: float(next(clock)))
    told = []
    progress = loading.CompileProgress(told.append)
    for number in range(90):
        progress(f"kernel {number}")
    assert told[0] == "compiling kernels, once on this machine: 1 of 86"
    assert told[33].startswith("compiling kernels, once on this machine: 34 of 86, about ")
    assert told[89].startswith("compiling kernels, once on this machine: 90 of 90, about 2")
