"""/tools and /prompt, the question before a call at a terminal, and what a call leaves there."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from localoss.chat.agent import STOPPED, Agent, CallDone
from localoss.chat.harmony import Message
from localoss.cli import main, tool_calls
from localoss.cli.chat import tooling
from localoss.errors import UsageError
from localoss.tools.approval import Approvals, Question
from localoss.tools.choice import ToolOptions, open_tools

SERVER = str(Path(__file__).parent / "support" / "hostile_mcp.py")
FUNCTION = {"type": "function", "function": {"name": "now"}, "command": ["date"]}


@pytest.fixture
def chat(tmp_path):
    """A chat with a folder that is written to, a function and an MCP server; `asked` is what was sent."""
    pytest.importorskip("mcp")
    (tmp_path / "tools.json").write_text(json.dumps([FUNCTION]))
    servers = {"notes": {"command": sys.executable, "args": [SERVER]}}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    options = ToolOptions(
        (str(tmp_path / "tools.json"),), folder=tmp_path, write=True, mcp=tmp_path / "mcp.json"
    )
    toolset = open_tools(options, Approvals(None, tmp_path / "approvals.json"))
    asked = []
    yield SimpleNamespace(toolset=toolset, last_calls=[], ask=asked.append, asked=asked)
    toolset.close()


def test_tools_are_listed_and_approvals_set(chat, capsys, tmp_path):
    tooling.tools(chat, "")
    said = capsys.readouterr().err
    assert "notes: all that MCP server notes reaches" in said and "  notes__echo (ask)" in said
    assert "  apply_patch (ask)" in said and "  now (ask)" in said and "  read_file\n" in said
    for argument in ("notes always", "notes/echo never", "now never", "apply_patch always"):
        tooling.tools(chat, argument)
    kept = Approvals(None, tmp_path / "approvals.json").kept
    assert kept == {
        "mcp:notes": "always",
        "mcp:notes/echo": "never",
        "command:date": "never",
        f"files:{tmp_path.resolve()}": "always",
    }
    tooling.tools(chat, "now ask")
    assert "command:date" not in chat.toolset.approvals.kept
    for argument in ("echo", "echo always", "notes sometimes", "always"):
        with pytest.raises(UsageError):
            tooling.tools(chat, argument)


def test_prompts_of_servers(chat, capsys):
    tooling.prompt(chat, "")
    assert "notes:explain topic=…  Explains" in capsys.readouterr().err
    tooling.prompt(chat, 'notes:explain topic="two words"')
    assert chat.asked == ["Explain two words."]
    with pytest.raises(UsageError, match=r"needs topic=…"):
        tooling.prompt(chat, "notes:explain")
    with pytest.raises(UsageError, match="there is no prompt 'x'"):
        tooling.prompt(chat, "x")


def test_the_last_calls_in_full(capsys):
    chat = SimpleNamespace(toolset=object(), last_calls=[])
    tooling.tools(chat, "last")
    call = Message("assistant", "1 +\\\n1", "analysis", "python")
    chat.last_calls.append(CallDone(call, Message("tool", "2\x1b[1m\n", "analysis", name="python"), 0.25))
    tooling.tools(chat, "last")
    assert (
        "called nothing" in (said := capsys.readouterr().err) and "1 +\\\n1\n" in said and "\x1b" not in said
    )
    chat.toolset = None
    tooling.tools(chat, "")
    assert "no tools" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "result", "ok", "line"),
    [
        ("x = 1\nx + 1", "2\n", True, "▸ python · x = 1 (+1 lines) → 2 · 0.2 s"),
        (
            "1/0",
            "Traceback\n  File\nZeroDivisionError: no",
            False,
            "▹ python · 1/0 → ZeroDivisionError: no · 0.2 s",
        ),
        ("x" * 200, "", True, f"▸ python · {'x' * 59}… → nothing · 0.2 s"),
        ("\x1b[2J", "\x07", True, "▸ python · [2J → nothing · 0.2 s"),
    ],
)
def test_a_call_leaves_a_line(text, result, ok, line):
    call = Message("assistant", text, "analysis", "python")
    done = CallDone(call, Message("tool", result, "analysis", name="python"), 0.2, ok=ok)
    assert tool_calls.folded(done) == line


@pytest.mark.parametrize(
    ("typed", "said"),
    [("y\n", "yes"), ("YES\n", "yes"), ("a\n", "always"), ("e\n", "never"), ("n\n", "no"),
     ("\n", "no"), ("", "no"), ("ya\n", "no")],
)  # fmt: skip
def test_the_question_shows_all_of_it(typed, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    detail = "\n".join(f"+line {number}" for number in range(500))
    assert tool_calls.ask_at_terminal(Question("k", "rm -rf 'a b'", detail)) == said
    shown = capsys.readouterr().err
    assert "  rm -rf 'a b'\n" in shown and "+line 0\n" in shown and "+line 499\n" in shown


def test_ctrl_c_at_the_question_stops_the_answer(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps([FUNCTION]))

    def ask(question):
        raise KeyboardInterrupt

    toolset = open_tools(ToolOptions((str(tmp_path / "tools.json"),)), Approvals(ask, None))
    done = Agent(toolset).carry_out(Message("assistant", "{}", "commentary", "functions.now", "json"))
    assert done.is_stopped and done.result.text == STOPPED


def test_the_list_of_tools(capsys):
    assert main(["tools", "list"]) == 0
    said = capsys.readouterr().out
    assert "--tools python" in said and "--mcp FILE" in said
