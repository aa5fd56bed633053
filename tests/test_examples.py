"""Each program of examples/ is short and does what its first line says, on the model that comes along."""

import runpy
import sys
from pathlib import Path

import pytest

import localoss
from tests.support.live_server import live

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


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, demo, monkeypatch, capsys):
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
