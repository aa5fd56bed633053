"""Ctrl-C at every moment of a chat: what was said stays, what was typed stays, and the chat goes on."""

import re

import pytest

pytest.importorskip("pexpect")  # not on Windows

from support.pseudo_terminal import FINAL, logged, thinking


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        (40, r"\d+ of 1,0\d\d tokens · [\d.,]+ tokens/s"),
        (80, r"reading [█░]{8} \d+ of 1,0\d\d tokens · [\d.,]+ tokens/s"),
        (200, r"reading [█░]{24} \d+ of 1,0\d\d tokens · [\d.,]+ tokens/s · Ctrl-C stops"),
    ],
)
def test_progress_within_the_first_chunk_fits_the_screen(chat, columns, form):
    terminal = chat(answers=[FINAL + "Done.<|return|>"], prefill_s=8, chunk_tokens=512, columns=columns)
    terminal.type("word " * 1000 + "\r")

    def bars():
        return "\n".join(line for line in terminal.screen() if re.fullmatch(form, line))

    terminal.wait_for(" of 1,0", where=bars)
    terminal.type("\x03")
    terminal.wait_for("(stopped; /regen")


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_in_the_prefill(chat, tmp_path, presses):
    terminal = chat(answers=[FINAL + "Done.<|return|>"], prefill_s=4, log=str(tmp_path / "log"))
    terminal.type("A long text\r")
    terminal.wait_for("reading ", "tokens/s · Ctrl-C stops")
    terminal.type("\x03" * presses)
    terminal.wait_for("(stopped; /regen answers your message")
    terminal.wait_for_prompt()
    assert "reading" not in terminal.everything()
    terminal.type("/regen\r")
    terminal.wait_for("Done.")
    assert "A long text<|end|>" in logged(tmp_path)[1]


def test_ctrl_c_in_thinking(chat):
    terminal = chat(
        answers=[thinking("I think about it. " * 50, "Never."), FINAL + "Done.<|return|>"], token_s=0.02
    )
    terminal.type("Hi\r")
    terminal.wait_for("I think about it.")
    terminal.type("\x03")
    terminal.wait_for("▸ thought for", "(stopped")
    terminal.wait_for_prompt()
    assert "Never" not in terminal.everything()
    terminal.type("/regen\r")
    terminal.wait_for("Done.")


def test_ctrl_c_in_the_answer_keeps_what_was_said(chat, tmp_path):
    answers = [thinking("Hm.", "Beginning " + "on " * 300), FINAL + "Done.<|return|>"]
    terminal = chat(answers=answers, token_s=0.02, log=str(tmp_path / "log"))
    terminal.type("Hi\r")
    terminal.wait_for("on on on")
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for_prompt()
    assert "Beginning on on on" in terminal.everything()
    terminal.type("Go on\r")
    terminal.wait_for("Done.")
    assert "final<|message|>Beginning on on on" in logged(tmp_path)[1]


def test_ctrl_c_clears_and_ctrl_d_leaves(chat):
    terminal = chat()
    terminal.type("half a line")
    terminal.wait_for("half a line")
    terminal.type("\x03")
    terminal.wait_for("empty", where=lambda: "empty" if terminal.line() == ">" else "")
    terminal.type("\x04")
    assert terminal.wait_for_end() == 0
    assert "Traceback" not in terminal.everything()


def test_ctrl_c_keeps_what_was_typed_ahead(chat):
    terminal = chat(answers=[FINAL + "on " * 300 + "<|return|>"], token_s=0.02)
    terminal.type("Hi\r")
    terminal.wait_for("on on on")
    terminal.type("my next question")
    terminal.take(0.3)
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for("> my next question", where=terminal.line)
