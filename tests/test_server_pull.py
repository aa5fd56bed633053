"""/api/pull of Ollama's API: another model comes from the hub, and the server has it."""

import json

import httpx2
import pytest
from support.hub_fixtures import NAME, home, hub, published
from support.live_server import live
from support.scripted import ScriptedEngine

from localoss.hub.registry import installed_models

__all__ = ["home", "hub", "published"]


@pytest.fixture
def server(home, hub):
    with live(ScriptedEngine()) as server:
        yield server


def lines_of(server, name):
    """All that is said, line by line."""
    with httpx2.stream("POST", f"{server.url}/api/pull", json={"model": name}, timeout=300) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.iter_lines()]


def test_a_model_is_pulled_with_its_progress(server):
    first, *more, last = lines_of(server, NAME)
    assert (first, last) == ({"status": "pulling manifest"}, {"status": "success"})
    assert any("to download" in line["status"] for line in more), more
    assert installed_models() == ["gpt-oss-20b"]
    assert server.post("/api/pull", {"model": NAME, "stream": False}).json() == {"status": "success"}


def test_what_fails_is_the_last_line(server, hub, monkeypatch):
    (hub.folder / "config.json").write_text("{}")
    *_, last = lines_of(server, NAME)
    assert list(last) == ["error"] and "\n" not in last["error"]
    assert installed_models() == []


@pytest.mark.parametrize("name", ["nothing-of-that-name", "--help", "../../etc", "a/b/c"])
def test_names_that_stand_for_nothing(server, name):
    answer = server.post("/api/pull", {"model": name})
    assert answer.status_code == 404 and list(answer.json()) == ["error"]
