"""`localoss plan -i` in a terminal: keys change the plan, and what is shown follows."""

import sys

import pytest

pytest.importorskip("pexpect")  # not on Windows

from support.pseudo_terminal import Terminal

UP, DOWN, RIGHT, LEFT = "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D"


@pytest.fixture
def plan(tmp_path):
    started = []

    def start(*arguments, columns=80):
        command = [sys.executable, "-m", "localoss", "plan", "gpt-oss-20b", "-i", *arguments]
        terminal = Terminal(command, columns, 24, {"LOCALOSS_HOME": str(tmp_path)})
        started.append(terminal)
        return terminal.wait_for("q leaves")

    yield start
    for terminal in started:
        terminal.close()


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_arrows_change_the_plan(plan, columns):
    terminal = plan("--memory", "16GB", "--context", "4096", columns=columns)
    terminal.wait_for("context     ◂ 4,096 ▸", "fits: ", "tokens/s", "█")
    before = terminal.everything()
    terminal.type(RIGHT)
    terminal.wait_for("◂ 8,192 ▸")
    terminal.type(DOWN + RIGHT * 5)
    terminal.wait_for("KV cache    ◂ int8 ▸")
    terminal.settle()
    assert terminal.everything() != before
    terminal.type(DOWN + RIGHT * 3)
    terminal.wait_for("GPU layers  ◂ 3 ▸", " GB on")
    terminal.type("\r")
    assert terminal.wait_for_end() == 0
    told = "".join(terminal.everything().split())  # a line to copy: it may wrap
    assert "--context8192--kv-dtypeint8--gpu-layers3" in told
    assert max(len(line) for line in terminal.screen()) <= columns


def test_a_context_that_does_not_fit_is_told(plan):
    terminal = plan("--memory", "15GB", "--context", "131072")
    terminal.wait_for("from disk: ")
    terminal.type(LEFT * 6)
    terminal.wait_for("fits: ")
    terminal.type("q")
    assert terminal.wait_for_end() == 0 and "--context" not in terminal.everything()


def test_without_a_terminal_it_is_one_line(capsys):
    from localoss import cli

    assert cli.main(["plan", "gpt-oss-20b", "-i"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "-i needs a terminal" in err
