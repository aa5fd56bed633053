"""MCP servers on the page, over HTTP: its user is asked before each call, and the answer waits for that."""

import json
import sys
import threading
from pathlib import Path

import pytest
from support.calling import final, function
from support.live_server import live
from support.page_client import PageClient
from support.scripted import ScriptedEngine

pytest.importorskip("mcp")

from localoss.chat import harmony
from localoss.server.core.hosted import HostedTools
from localoss.server.page import Page
from localoss.tools.approval import Approvals
from localoss.tools.choice import ToolOptions

SERVER = str(Path(__file__).parent / "support" / "hostile_mcp.py")
CALL = function("notes__echo", '{"text":"$HOME; rm -rf ~"}')


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))
    programs = {
        "notes": {"command": sys.executable, "args": [SERVER, "tools=echo,hang"]},
        "gone": {"command": "/no/such/program"},
    }
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": programs}))
    tools = HostedTools(ToolOptions(mcp=path), Approvals(None, tmp_path / "approvals.json"))
    with live(ScriptedEngine(context_tokens=32_768), page=Page("tiny")) as server:
        server.service.hosted = server.models.hosted = tools
        yield server
    tools.close()


class Asking:
    """A question put on a thread; its events as they come."""

    def __init__(self, server, **turn):
        self.tab, self.events = PageClient(server), []
        self._wait = server.wait_until
        self._thread = threading.Thread(target=self._listen, args=(turn,), daemon=True)
        self._thread.start()

    def _listen(self, turn):
        with self.tab.http.stream("POST", "/localoss/turns", json=turn) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    self.events.append(json.loads(line[6:]))

    def of(self, kind):
        return [event for event in self.events if event["type"] == kind]

    @property
    def session(self):
        return self.of("started")[0]["session"]

    def wait_for(self, kind, count=1):
        self._wait(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]

    def say(self, said, question=None):
        question = question or self.of("question")[-1]["id"]
        body = {"id": question, "said": said}
        return self.tab.post(f"sessions/{self.session}/approval", body).json()

    def end(self):
        self._thread.join(60)
        return self.events[-1]


def says(server, *answers):
    server.service.engine.answers[:] = answers


def test_the_user_is_asked_exactly_what_would_run(server, tmp_path):
    says(server, CALL, final("Done."))
    asking = Asking(server, text="Echo")
    asked = asking.wait_for("question")
    assert asked["text"] == """notes echo '{"text":"$HOME; rm -rf ~"}'""" and not asking.of("result")
    assert asking.of("left_out")[0]["servers"] == ["gone"]
    assert asking.say("yes", "another") == {"taken": False} and not asking.of("answered")
    assert asking.say("yes") == {"taken": True} and asking.end()["reason"] == "stop"
    assert asking.say("yes", asked["id"]) == {"taken": False}, "once"
    (result,) = asking.of("result")
    assert result["name"] == "notes__echo"
    assert result["text"].startswith("[data from MCP server notes]\necho got ")
    view = asking.tab.view(asking.session)
    parts = [part["kind"] for part in view["exchanges"][0]["answer"]["parts"]]
    assert parts == ["call", "result", "thinking", "answer"]
    prompt = harmony.encoding().decode(server.service.engine.prompts[0])
    assert "type notes__echo = " in prompt and "data from somewhere else" in prompt
    assert not (tmp_path / "approvals.json").exists()


def test_what_is_said_for_good_is_kept(server, tmp_path):
    says(server, CALL, final("No."), CALL, CALL, final("Twice."), final("Off."))
    first = Asking(server, text="Echo")
    first.wait_for("question")
    first.say("no")
    first.end()
    assert "did not allow" in first.of("result")[0]["text"]
    second = Asking(server, text="Echo")
    second.wait_for("question")
    second.say("always")
    assert second.end()["reason"] == "stop"
    assert len(second.of("question")) == 1 and len(second.of("result")) == 2
    kept = tmp_path / "approvals.json"
    assert json.loads(kept.read_text())["policies"] == {"mcp:notes/echo": "always"}
    server.models.hosted.approvals.set("mcp:notes", "never")
    server.models.hosted.approvals.set("mcp:notes/echo", "never")
    third = Asking(server, text="What is there?")
    assert third.end()["reason"] == "stop"
    assert "notes__" not in harmony.encoding().decode(server.service.engine.prompts[-1])


def test_a_question_and_a_call_can_be_stopped(server):
    says(server, CALL, function("notes__hang", "{}"), final("Well."))
    for is_allowed in (False, True):
        asking = Asking(server, text="Echo")
        asking.wait_for("question")
        if is_allowed:
            asking.say("yes")
            asking.wait_for("answered")
        asking.tab.post(f"sessions/{asking.session}/stop", {})
        assert asking.end()["type"] == "done" and asking.of("answered")
        assert "stopped" in asking.of("result")[0]["text"]
    revision = asking.tab.view(asking.session)["revision"]
    again = Asking(server, session=asking.session, revision=revision, text="So?")
    assert again.end()["reason"] == "stop"


def test_another_tab_sees_the_question_and_may_answer(server):
    says(server, CALL, final("Done."))
    asking = Asking(server, text="Echo")
    asking.wait_for("question")
    other = PageClient(server)
    seen = []
    with other.http.stream("GET", f"/localoss/sessions/{asking.session}/answer") as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line[6:]))
                if seen[-1]["type"] == "question":
                    body = {"id": seen[-1]["id"], "said": "yes"}
                    assert other.post(f"sessions/{asking.session}/approval", body).json()["taken"]
    assert seen[-1]["reason"] == "stop" and asking.end()["reason"] == "stop"


def test_a_server_that_goes_down_waits_for_no_answer(server):
    says(server, CALL, final("Never."))
    asking = Asking(server, text="Echo")
    asking.wait_for("question")
    server.models.refuse_waiting()  # as the first Ctrl-C does
    assert asking.end()["type"] in ("done", "error")
    assert "did not allow" in asking.of("result")[0]["text"]


def test_no_other_page_may_answer(server):
    says(server, CALL, final("Done."))
    asking = Asking(server, text="Echo")
    question = asking.wait_for("question")
    evil = PageClient(server, Origin="https://page.example")
    body = {"id": question["id"], "said": "always"}
    assert evil.post(f"sessions/{asking.session}/approval", body).status_code == 403
    assert asking.tab.post(f"sessions/{asking.session}/approval", body | {"said": "sure"}).status_code == 400
    asking.say("no")
    assert asking.end()["reason"] == "stop"
