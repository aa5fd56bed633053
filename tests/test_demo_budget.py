"""A model's own thinking budget holds where nobody gives one: the demo model would go on and on."""

import json
import sys

import pytest
from support.demo import put_into
from support.obedient import ObedientEngine

import localoss
from localoss import cli
from localoss.chat import grammar
from localoss.chat.grammar_process import GrammarProcess
from localoss.hub.registry import known_models, usual_think_budget
from localoss.options import LoadOptions
from localoss.server import run
from localoss.server.core.catalogue import Catalogue, Entry
from localoss.server.core.response_store import ResponseStore

ENDLESS = "<|channel|>analysis<|message|>" + "on " * 900
BUDGET = 128


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return put_into(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def at_home(home, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(home))
    monkeypatch.setattr(localoss, "load", lambda folder, options, listener: ObedientEngine(answers=[ENDLESS]))
    monkeypatch.setattr(sys, "stdin", None)


def test_only_the_demo_model_has_one():
    assert {name: usual_think_budget(name) for name in known_models() if usual_think_budget(name)} == {
        "demo": BUDGET
    }
    assert usual_think_budget("/some/folder") is None


@pytest.mark.parametrize(("options", "tokens"), [([], BUDGET), (["--think-budget", "9"], 9)])
def test_run(capsys, options, tokens):
    assert cli.main(["run", "demo", "Hi", "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["thinking_tokens"] == tokens


@pytest.mark.parametrize(("given", "tokens"), [(None, BUDGET), (9, 9)])
def test_a_server(home, tmp_path, given, tokens):
    catalogue = Catalogue(
        Entry("demo", home / "models" / "demo"), LoadOptions(), lambda folder, options: ObedientEngine()
    )
    options = run.ServeOptions("127.0.0.1", tmp_path / "responses", think_budget=given)
    models = run._models(catalogue, options, ResponseStore(None))
    try:
        service = models.held()[0].service
        assert service.think_budget(None) == tokens and service.think_budget(3) == 3
    finally:
        models.stop()


def test_schemas_find_their_process_warm(monkeypatch):
    process = GrammarProcess()
    monkeypatch.setattr(grammar, "_process", process)
    monkeypatch.setattr(grammar, "_checker", process)
    monkeypatch.setattr(grammar, "_refusals", grammar.Remembered(8))
    try:
        grammar.warm_up()
        started = process._process
        assert started is not None
        grammar.Grammar({"type": "object", "properties": {"a": {"type": "integer"}}})
        assert process._process is started
    finally:
        process.close()


def test_without_llguidance_nothing_is_warmed(monkeypatch):
    process = GrammarProcess()
    monkeypatch.setattr(grammar, "_process", process)
    monkeypatch.setattr(grammar, "_checker", process)
    monkeypatch.setattr(grammar, "_refusals", grammar.Remembered(8))
    monkeypatch.setattr("localoss.chat.grammar_process.find_spec", lambda name: None)
    grammar.warm_up()
    assert process._process is None
