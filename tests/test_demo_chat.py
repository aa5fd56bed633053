"""`localoss chat` without a MODEL: which one opens, and what is said about it."""

import os
import sys

import pytest
from support import reduced

import localoss
from localoss import cli
from localoss.errors import ModelError
from localoss.hub import bundled as installing
from localoss.hub import registry

pytest.importorskip("pexpect")  # not on Windows

from support.pseudo_terminal import Terminal

CHAT = """
import pathlib, sys
from localoss import cli
from localoss.hub import bundled as install
install.WEIGHTS = pathlib.Path(sys.argv[1])
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return reduced.write(tmp_path_factory.mktemp("shipped") / "weights")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    return tmp_path


def make_installed(home, *names):
    for name in names:
        (home / "models" / name).mkdir(parents=True)
        (home / "models" / name / "localoss.json").touch()


def test_the_demo_model_if_there_is_no_other(home):
    assert registry.default_model() == "demo"
    make_installed(home, "demo")
    assert registry.default_model() == "demo"


def test_the_only_other_one(home):
    make_installed(home, "demo", "mine")
    (home / "models" / "begun").mkdir()  # a pull that isn't complete
    assert registry.default_model() == "mine"


def test_several_are_named(home, capsys):
    make_installed(home, "demo", "mine", "yours")
    with pytest.raises(ModelError, match="mine, yours"):
        registry.default_model()
    assert cli.main(["chat"]) == 2
    assert capsys.readouterr().err.startswith("error: several models are installed")


def test_demo_has_a_description():
    assert "a tiny model that shows the machinery" in registry.known_models()["demo"].description


def test_chat_without_a_model_at_a_terminal(shipped, home):
    """On random weights: what it answers means nothing, but it answers."""
    command = [sys.executable, "-c", CHAT, str(shipped), "chat", "--max-tokens", "12", "--seed", "3"]
    terminal = Terminal(command, variables={"LOCALOSS_HOME": str(home)})
    try:
        terminal.wait_for("This is demo, a tiny model that shows the machinery", "localoss pull gpt-oss-20b")
        terminal.wait_for("demo · effort medium · /help for help", timeout_s=120)
        making = "making the demo model ready, once on this machine"
        terminal.wait_for(making, where=terminal.status, timeout_s=120)
        terminal.type("Hi\r")
        terminal.wait_for("ended by --max-tokens 12", timeout_s=300)
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0 and making not in terminal.everything()
    finally:
        terminal.close()


def test_other_models_are_not_introduced(home, monkeypatch, capsys):
    from support.scripted import ScriptedEngine

    make_installed(home, "mine")
    monkeypatch.setattr(localoss, "load", lambda folder, options, listener: ScriptedEngine())
    monkeypatch.setattr(installing, "WEIGHTS", home / "nothing")
    read, write = os.pipe()
    os.write(write, b"Hi\n")
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert cli.main(["chat"]) == 0
    out, err = capsys.readouterr()
    assert out == "Hello!\n"
    assert err.splitlines()[0].startswith("mine · effort")
