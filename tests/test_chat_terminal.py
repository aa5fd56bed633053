"""run and chat at a terminal: styles, line editing, Ctrl-C and Ctrl-D. Driven through a pseudo-terminal."""

import json
import os
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")  # not on Windows

TESTS = Path(__file__).parent
PROMPT = r"\x1b\[\?2004h.*?>"  # prompt_toolkit takes pasted text from here on
LONG = "<|channel|>final<|message|>" + "on " * 200
SHORT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Done.<|return|>"


@pytest.fixture
def terminal(tmp_path):
    """Start the command line on a scripted engine in a terminal of 100 columns."""
    from support import forked  # not on Windows

    (tmp_path / "models" / "tiny").mkdir(parents=True)
    started = []

    def start(*arguments, variables=(), **script):
        path = tmp_path / "script.json"
        path.write_text(json.dumps(script))
        environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "LOCALOSS_HOME": str(tmp_path)}
        environment = environment | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"} | dict(variables)
        environment.pop("NO_COLOR", None) if "NO_COLOR" not in dict(variables) else None
        child = forked.Spawned([str(path), *arguments], environment, (30, 100), encoding="utf-8", timeout=15)
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def leave(child):
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_run_dims_thinking(terminal):
    child = terminal("run", "tiny", "Hi", answers=[SHORT])
    child.expect(pexpect.EOF)
    assert child.before.replace("\x1b[0m\x1b[2m", "") == "\x1b[2mHm.\x1b[0m\r\n\r\nDone.\r\n"


def test_run_colours_by_certainty(terminal):
    """The scripted engine is 61 % certain of every token."""
    child = terminal("run", "tiny", "Hi", "--show-probabilities", "--hide-thinking", answers=[SHORT])
    child.expect(pexpect.EOF)
    assert child.before == "\x1b[33mDone\x1b[0m\x1b[33m.\x1b[0m\r\n"


def test_run_hides_thinking(terminal):
    child = terminal("run", "tiny", "Hi", "--hide-thinking", answers=[SHORT])
    child.expect(pexpect.EOF)
    assert child.before == "Done.\r\n"


def test_run_without_codes_labels_the_parts(terminal):
    child = terminal("run", "tiny", "Hi", answers=[SHORT], variables={"TERM": "dumb"})
    child.expect(pexpect.EOF)
    assert child.before == "thinking:\r\nHm.\r\n\r\nanswer:\r\nDone.\r\n"


def test_the_model_cannot_send_codes_to_the_terminal(terminal):
    answer = "<|channel|>final<|message|>a\x1b]0;title\x07\x1b[31mb\r\n\tc\x9b1m<|return|>"
    child = terminal("run", "tiny", "Hi", answers=[answer])
    child.expect(pexpect.EOF)
    assert child.before == "a]0;title[31mb\r\n\tc1m\r\n"


def test_run_stops_at_ctrl_c(terminal):
    child = terminal("run", "tiny", "Hi", answers=[LONG], token_s=0.05)
    child.expect("on on ")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert "Traceback" not in child.before and "error" not in child.before and child.before.endswith("\r\n")


def test_chat_greets_answers_and_leaves(terminal):
    child = terminal("chat", "tiny", answers=[SHORT])
    child.expect("tiny · effort medium · /help for help")
    child.expect(PROMPT)
    child.sendline("Hi")
    child.expect("thought for .*, 2 tokens")
    child.expect("Done.")
    child.expect(PROMPT)
    assert leave(child) == 0


def test_chat_ctrl_c_stops_the_answer_and_the_chat_goes_on(terminal):
    child = terminal("chat", "tiny", answers=[LONG, SHORT], token_s=0.05)
    child.expect(PROMPT)
    child.sendline("Hi")
    child.expect("on on ")
    child.sendintr()
    child.expect(r"\(stopped\)")
    child.expect(PROMPT)
    child.sendline("Hi again")
    child.expect("Done.")
    child.expect(PROMPT)
    child.sendline("/exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_chat_ctrl_c_clears_the_line(terminal):
    child = terminal("chat", "tiny", answers=[SHORT])
    child.expect(PROMPT)
    child.send("half a line")
    child.expect("half a line")
    child.sendintr()
    child.expect(PROMPT)
    child.sendline("/effort")
    child.expect(r"\(effort medium\)")
    child.expect(PROMPT)
    assert leave(child) == 0


def test_chat_remembers_lines(terminal):
    child = terminal("chat", "tiny", answers=[SHORT])
    child.expect(PROMPT)
    child.sendline("/effort high")
    child.expect(r"\(effort high\)")
    child.expect(PROMPT)
    child.send("\x1b[A")  # up
    child.expect("/effort high")
    child.send("\x01\x0b/effort low\r")  # start of line, delete the rest
    child.expect(r"\(effort low\)")
    child.expect(PROMPT)
    assert leave(child) == 0


def test_chat_goes_on_after_a_prompt_that_is_too_long(terminal):
    child = terminal("chat", "tiny", answers=[SHORT], context_tokens=150)
    child.expect(PROMPT)
    child.sendline("word " * 150)
    child.expect("error: the conversation has")
    child.expect(PROMPT)
    child.sendline("Hi")
    child.expect("Done.")
    child.expect(PROMPT)
    assert leave(child) == 0
