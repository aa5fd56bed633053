"""The page's use of tools, over HTTP: calls are made on the server, told, kept, and can be stopped."""

import threading
import time

import pytest
from support.calling import browser, final, python
from support.live_server import live
from support.page_client import PageClient
from support.scripted import ScriptedEngine

from localoss.chat import harmony
from localoss.chat.harmony import Message
from localoss.chat.session_store import read_session
from localoss.server.core.hosted import HostedTools
from localoss.server.page import Page
from localoss.tools.choice import ToolOptions

pytest.importorskip("pydantic_monty")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server whose model may run python and search a document."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "moon.md").write_text("# Moon\n\nIt is made of basalt.\n")
    tools = HostedTools(ToolOptions(("python", "browser"), (papers,)))
    with live(ScriptedEngine(context_tokens=32_768), page=Page("tiny")) as server:
        server.service.hosted = server.models.hosted = tools
        yield server
    tools.close()


def says(server, *answers):
    server.service.engine.answers[:] = answers


def kinds(view, number=0):
    return [(part["kind"], part["text"]) for part in view["exchanges"][number]["answer"]["parts"]]


def test_calls_are_told_and_kept(server):
    says(server, python("x = 37"), python("x + 48"), final("85."), python("x"), final("37."))
    tab = PageClient(server)
    assert tab.get("about").json()["tools"]["python"] == "nothing: no files, no network, no environment"
    events = tab.say(text="37 + 48?")
    opened = [event["name"] for event in events if event.get("part") == "call" and event["type"] == "opened"]
    results = [event["text"] for event in events if event["type"] == "result"]
    assert opened == ["python"] * 2 and results[1] == "85\n" and events[-1]["reason"] == "stop"
    assert "".join(e["text"] for e in events if e["type"] == "text" and e["part"] == "call") == "x = 37x + 48"
    written = [event["tokens"] for event in events if event["type"] == "text"]
    assert written == sorted(written) and events[-1]["completion_tokens"] >= written[-1] > 20
    name = events[0]["session"]
    view = tab.view(name)
    assert kinds(view)[:2] == [("call", "x = 37"), ("result", results[0])]
    assert kinds(view)[2:4] == [("call", "x + 48"), ("result", "85\n")]
    assert kinds(view)[4:] == [("thinking", "Compute.\n\nCompute."), ("answer", "85.")]
    prompt = harmony.encoding().decode(server.service.engine.prompts[-1])
    assert "<|start|>python to=assistant<|channel|>analysis<|message|>85\n<|end|>" in prompt
    again = tab.say(session=name, revision=view["revision"], text="x?")
    assert [e["text"] for e in again if e["type"] == "result"] == ["37\n"], "variables stay"
    assert tab.view(name)["tokens"] > 500, "what the model is told of tools counts"


def test_citations_become_footnotes(server):
    find = [browser("search", '{"query":"basalt"}'), browser("open", '{"id":0}')]
    says(server, *find, final("Basalt【1†L3】."))
    tab = PageClient(server)
    name = tab.say(text="The moon?")[0]["session"]
    answer = kinds(tab.view(name))[-1][1]
    assert answer.startswith("Basalt[1].\n\n- [1] Moon") and "line 3" in answer


def test_a_call_is_stopped_and_kept(server):
    says(server, python("while True: pass"), final("Never."), final("Well."))
    tab = PageClient(server)
    asking = threading.Thread(target=lambda: tab.say(text="Loop"), daemon=True)
    asking.start()
    other = PageClient(server)
    server.wait_until(other.sessions)
    (name,) = [one["name"] for one in other.sessions()]
    server.wait_until(lambda: server.service.engine.prompts)
    time.sleep(0.5)  # the call is being made
    other.post(f"sessions/{name}/stop", {})
    asking.join(60)
    view = other.view(name)
    assert not view["is_writing"]
    thought, call, result = kinds(view)
    assert thought == ("thinking", "Compute.") and call == ("call", "while True: pass")
    assert result[0] == "result" and "stopped" in result[1]
    assert other.say(session=name, revision=view["revision"], text="So?")[-1]["reason"] == "stop"


def test_pictures_are_given_to_the_page_alone(server, tmp_path):
    from localoss.tools import pictures

    (path,) = pictures.keep([b"\x89PNG\r\n\x1a\nrest"])
    tab = PageClient(server)
    says(server, final("Hi."))
    name = tab.say(text="Draw")[0]["session"]
    conversation, _ = read_session(name)
    called = Message("assistant", "plot()", "analysis", "python")
    drawn = Message("tool", "[1 picture]", "analysis", "assistant", name="python", pictures=(path,))
    conversation.messages[1:1] = [called, drawn]
    from localoss.chat.session import Session

    session = Session(name)
    session.save_messages(conversation, "tiny")
    session.close()
    (result,) = [p for p in tab.view(name)["exchanges"][0]["answer"]["parts"] if p["kind"] == "result"]
    (shown,) = result["pictures"]
    answer = tab.get(f"pictures/{shown}")
    assert answer.content.startswith(b"\x89PNG") and answer.headers["content-type"] == "image/png"
    for other in ("nothing.png", "..%2fhistory", "a.svg"):
        assert tab.get(f"pictures/{other}").status_code == 404
    assert PageClient(server, Origin="https://page.example").get(f"pictures/{shown}").status_code == 403
