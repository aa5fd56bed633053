"""`localoss chat` without a MODEL: which one opens, and what is said about it."""

import os
import sys
from pathlib import Path

import pytest
import reduced

import localoss
from localoss import cli, registry
from localoss.demo import install as installing
from localoss.errors import ModelError

pexpect = pytest.importorskip("pexpect")  # not on Windows

ROOT = Path(__file__).parent.parent
PROMPT = r"\x1b\[\?2004h.*?>"  # prompt_toolkit takes pasted text from here on
CHAT = """
import pathlib, sys
from localoss import cli
from localoss.demo import install
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
    child = pexpect.spawn(
        sys.executable,
        ["-c", CHAT, str(shipped), "chat", "--max-tokens", "12", "--seed", "3"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        encoding="utf-8",
        timeout=120,
        dimensions=(30, 100),
    )
    try:
        child.expect("making the demo model ready, once on this machine")
        child.expect("This is demo, a tiny model that shows the machinery")
        child.expect("localoss pull gpt-oss-20b")
        child.expect(r"demo · context [\d,]+ tokens · effort medium")
        child.expect(PROMPT)
        child.sendline("Hi")
        child.expect("ended by --max-tokens 12")
        child.expect(PROMPT)
        child.sendeof()
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0 and "Traceback" not in child.before
    finally:
        child.close(force=True)


def test_other_models_are_not_introduced(home, monkeypatch, capsys):
    from scripted import ScriptedEngine

    make_installed(home, "mine")
    monkeypatch.setattr(localoss, "load", lambda folder, **options: ScriptedEngine())
    monkeypatch.setattr(installing, "WEIGHTS", home / "nothing")
    read, write = os.pipe()
    os.write(write, b"Hi\n")
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert cli.main(["chat"]) == 0
    out, err = capsys.readouterr()
    assert out == "Hello!\n"
    assert err.splitlines()[0].startswith("mine · context")
