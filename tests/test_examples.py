"""Each program of examples/ is short and does what its first line says, on the model that comes along."""

import runpy
import sys
from pathlib import Path

import pytest

import localoss
from localoss.chat.harmony import encoding
from tests.support.calling import browser, final, function, python
from tests.support.live_server import live
from tests.support.scripted import ScriptedEngine

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
MOST_LINES = 20
PRINTED = {
    "ask": ["37 + 48 = 85", "12 + 30 = 42"],
    "stream": ["[analysis]", "[final] 37 + 48 = 85", " tokens"],
    "tools": ['get_weather({"city":"Paris"})', "clear"],
    "structured": ["'color': 'blue'", "'warm': "],
    "logits": ["<|channel|>"],
    "client": ["37 + 48 = 85"],
}


@pytest.fixture(scope="module")
def demo():
    return localoss.load("demo", context_tokens=2048)


def test_every_example_is_run_below():
    assert {path.stem for path in EXAMPLES} == set(PRINTED)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Of the index of documents."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, demo, monkeypatch, capsys):
    if path.stem == "tools":
        pytest.importorskip("pydantic_monty")
        pytest.importorskip("trafilatura")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    monkeypatch.setattr("localoss.chat.api._engine_of", lambda model, options: demo)  # loaded once for all
    monkeypatch.setattr(sys, "argv", [path.name])
    if path.stem == "client":
        with live(demo) as server:
            monkeypatch.setattr(sys, "argv", [path.name, server.url])
            runpy.run_path(str(path))
    else:
        runpy.run_path(str(path))
    printed = capsys.readouterr().out
    assert all(text in printed for text in PRINTED[path.stem]), printed


def test_the_tools_of_the_example_are_run(monkeypatch, capsys):
    pytest.importorskip("pydantic_monty")
    pytest.importorskip("lxml")
    said = [
        function("get_weather", '{"city":"Paris"}'),
        final("Clear."),
        browser("search", '{"query":"get_weather"}'),
        python("6 * 7"),
        final("Twenty."),
    ]
    engine = ScriptedEngine(said, context_tokens=32_768)
    monkeypatch.setattr("localoss.chat.api._engine_of", lambda model, options: engine)
    monkeypatch.setattr(sys, "argv", ["tools.py"])
    (path,) = [path for path in EXAMPLES if path.stem == "tools"]
    runpy.run_path(str(path))
    assert capsys.readouterr().out == 'get_weather({"city":"Paris"})\nClear.\nTwenty.\n'
    prompt = encoding().decode(engine.prompts[-1])
    assert "<|start|>python to=assistant<|channel|>analysis<|message|>42\n<|end|>" in prompt
    assert "browser.search to=assistant" in prompt and "tools.py" in prompt
