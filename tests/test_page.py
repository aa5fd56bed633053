"""The chat page over HTTP: its files, its policy, and conversations that are the terminal's sessions."""

import re
import threading

import httpx2
import pytest
from support.live_server import live
from support.page_client import PageClient, events_of, said
from support.scripted import HELLO, ScriptedEngine, check

from localoss.chat import harmony
from localoss.chat.session import Session
from localoss.chat.session_store import read_session, sessions
from localoss.server.page import Page
from localoss.server.page.files import STATIC

PAGE = Page("tiny", "A word.")
LONG = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>" + "on " * 3000


def final(text):
    return f"<|channel|>final<|message|>{text}<|return|>"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def shared():
    """One server for all tests: an application takes a second to be put together."""
    with live(ScriptedEngine(), page=PAGE) as server:
        yield server


@pytest.fixture
def server(shared):
    says(shared, HELLO, final("Two."), final("Three."))
    return shared


@pytest.fixture
def slow(shared):
    says(shared, LONG, token_s=0.01)
    return shared


def says(server, *answers, **figures):
    """Have the engine answer so, from now on."""
    engine = server.service.engine
    engine.prompts.clear()
    engine.answers[:] = answers
    for name, value in ({"token_s": 0.0, "prefill_s": 0.0, "context_tokens": 8192} | figures).items():
        setattr(engine, name, value)


def test_the_page_and_every_file_that_it_names_are_served(server):
    http = PageClient(server).http
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html") and page.status_code == 200
    for name in re.findall(r'(?:href|src)="([^"#]+)"', page.text):
        answer = http.get(f"/{name}")
        assert answer.status_code == 200 and answer.content
    for path in STATIC.rglob("*"):
        if path.is_file():
            answer = http.get(f"/localoss/page/{path.relative_to(STATIC).as_posix()}")
            assert answer.content == path.read_bytes()
            assert answer.headers["x-content-type-options"] == "nosniff"
    again = http.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for name in ("../__init__.py", "%2e%2e/files.py", "vendor/../../files.py", "nothing.js", ""):
        assert http.get(f"/localoss/page/{name}").status_code == 404


def test_the_policy_lets_no_inline_script_run_and_nothing_leave(server):
    headers = server.get("/").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
    assert policy.pop("img-src") == "'self' blob:", "pictures that tools drew, made by the page's own scripts"
    assert all(
        "unsafe" not in sources and "*" not in sources and ":" not in sources for sources in policy.values()
    )
    assert policy["require-trusted-types-for"] == "'script'" and policy["frame-ancestors"] == "'none'"
    html = server.get("/").text
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bon\w+=|<style|\bstyle=", html)


def test_no_file_of_the_page_names_another_host():
    """Ours name none; vendored ones name namespaces and their own projects in comments and messages alone."""
    for path in STATIC.rglob("*"):
        if path.suffix in (".html", ".js", ".mjs", ".css", ".svg"):
            text = path.read_text(encoding="utf-8")
            hosts = set(re.findall(r"https?://([\w.-]+\w)", text))
            allowed = {"www.w3.org"} | ({"github.com"} if path.parent.name == "vendor" else set())
            assert hosts <= allowed, path
            assert not re.search(
                r"""(?:import|from)\s*\(?["'](?:https?:)?//|url\(["']?(?:https?:)?//""", text
            )
            assert "innerHTML" not in text or path.parent.name == "vendor" or path.name == "markdown.js"


def test_no_page(tmp_path):
    with live(ScriptedEngine()) as server:
        for path in ("/localoss/sessions", "/localoss/about", "/localoss/page/app.js"):
            assert server.get(path).status_code == 404
        assert server.get("/").headers["content-type"].startswith("text/plain"), "what clients look for"


def test_a_conversation_is_a_session_of_the_terminal(server):
    tab = PageClient(server)
    events = tab.say(text="Hi", setup={"effort": "low", "instructions": "Be kind."})
    name = events[0]["session"]
    assert events[0]["type"] == "started" and events[-1]["type"] == "done"
    assert [one.name for one in sessions()] == [name]
    conversation, model = read_session(name)
    assert model == "tiny" and conversation.setup.effort == "low"
    assert conversation.setup.instructions == "Be kind."
    assert [message.text for message in conversation.messages] == ["Hi", "Hello!"]
    view = tab.view(name)
    assert said(view) == [("Hi", "Hello!")]
    kinds = [(part["kind"], part["text"]) for part in view["exchanges"][0]["answer"]["parts"]]
    assert kinds == [("thinking", "A greeting."), ("answer", "Hello!")], "thinking stays for people"
    (prompt,) = server.service.engine.prompts
    assert view["tokens"] > len(prompt)


def test_a_session_of_the_terminal_goes_on_on_the_page(server):
    from localoss.chat.conversation import Conversation
    from localoss.chat.harmony import ChatSetup, Message

    session = Session("trip")
    conversation = Conversation(ChatSetup("high"))
    conversation.ask("One")
    conversation.answer([Message("assistant", "First.", "final")])
    session.save_messages(conversation, "tiny")
    tab = PageClient(server)
    assert [(one["name"], one["title"]) for one in tab.sessions()] == [("trip", "One")]
    view = tab.view("trip")
    busy = tab.say(session="trip", revision=view["revision"], text="Two")
    assert (busy[0]["status"], busy[0]["code"]) == (409, "conversation_busy"), "the terminal has it open"
    copied = tab.post("sessions/trip/copy", {}).json()
    assert said(copied) == [("One", "First.")] and copied["name"] != "trip"
    session.close()
    events = tab.say(session="trip", revision=view["revision"], text="Two")
    assert events[-1]["reason"] == "stop"
    assert said(tab.view("trip")) == [("One", "First."), ("Two", "Hello!")]


def test_two_tabs_the_second_writer_is_told_and_nothing_is_lost(server):
    first, second = PageClient(server), PageClient(server)
    name = first.say(text="Hi")[0]["session"]
    seen = second.view(name)["revision"]
    first.say(session=name, revision=seen, text="From the first tab")
    refused = second.say(session=name, revision=seen, text="From the second")
    assert (refused[0]["status"], refused[0]["code"]) == (409, "conversation_changed")
    assert said(second.view(name)) == [("Hi", "Hello!"), ("From the first tab", "Two.")]
    second.say(session=name, revision=second.view(name)["revision"], text="From the second")
    assert said(first.view(name))[2] == ("From the second", "Three.")


def test_an_answer_goes_on_without_its_tab_and_others_look_on(slow):
    tab, other = PageClient(slow), PageClient(slow)
    with tab.http.stream("POST", "/localoss/turns", json={"text": "Long"}) as answer:
        next(answer.iter_lines())  # and the tab is closed
    (listed,) = other.sessions()
    name = listed["name"]
    assert listed["is_writing"] and other.view(name)["is_writing"]
    assert read_session(name)[0].messages[0].text == "Long", "kept before the answer"
    refused = other.say(session=name, revision=other.view(name)["revision"], text="More")
    assert refused[0]["code"] == "conversation_busy"
    assert other.http.delete(f"/localoss/sessions/{name}").status_code == 409
    seen = []
    looking = threading.Thread(target=lambda: seen.extend(events_of(other.get(f"sessions/{name}/answer"))))
    looking.start()
    slow.wait_until(lambda: slow.service.engine.prompts)
    assert other.post(f"sessions/{name}/stop", {}).json() == {"stopped": True}
    looking.join(60)
    assert seen[0]["type"] == "started" and seen[-1]["reason"] == "stopped"
    slow.wait_until(lambda: not other.view(name)["is_writing"])


def test_what_was_said_before_a_stop_is_kept(slow):
    tab = PageClient(slow)
    with tab.http.stream("POST", "/localoss/turns", json={"text": "Long"}) as answer:
        for line in answer.iter_lines():
            if '"part":"answer","text"' in line.replace(" ", ""):
                break
        name = sessions()[0].name
        tab.post(f"sessions/{name}/stop", {})
    slow.wait_until(lambda: not tab.view(name)["is_writing"])
    kinds = {p["kind"]: p["text"] for p in tab.view(name)["exchanges"][0]["answer"]["parts"]}
    assert kinds["answer"].startswith("on on") or kinds["answer"].startswith("on")
    assert kinds["thinking"] == "Hm."


def test_edits_and_other_answers_keep_what_was_there(server):
    tab = PageClient(server)
    name = tab.say(text="One", files=[{"name": "a.txt", "text": "Notes."}])[0]["session"]
    tab.say(session=name, exchange=0, text=None)
    view = tab.view(name)
    assert said(view) == [("One", "Two.")]
    assert (view["exchanges"][0]["answer"]["rank"], view["exchanges"][0]["answer"]["ways"]) == (1, 2)
    tab.say(session=name, exchange=0, text="Uno", kept_files=[0])
    view = tab.view(name)
    assert said(view) == [("Uno", "Three.")]
    assert view["exchanges"][0]["question"]["files"] == [{"name": "a.txt", "characters": 6}]
    assert view["exchanges"][0]["question"]["ways"] == 2
    way = {"revision": view["revision"], "exchange": 0, "is_answer": False, "rank": 0}
    assert said(tab.post(f"sessions/{name}/way", way).json()) == [("One", "Two.")]
    view = tab.view(name)
    way = {"revision": view["revision"], "exchange": 0, "is_answer": True, "rank": 0}
    assert said(tab.post(f"sessions/{name}/way", way).json()) == [("One", "Hello!")]
    assert tab.post(f"sessions/{name}/way", way).json()["error"]["code"] == "conversation_changed"


def test_an_answer_is_edited_and_the_one_before_stays(server):
    tab = PageClient(server)
    name = tab.say(text="Hi")[0]["session"]
    tab.say(session=name, revision=tab.view(name)["revision"], text="More")
    view = tab.view(name)
    edit = {"revision": view["revision"], "exchange": 0, "text": "Hello, said otherwise."}
    edited = tab.post(f"sessions/{name}/edit", edit).json()
    assert said(edited) == [("Hi", "Hello, said otherwise.")]
    answer = edited["exchanges"][0]["answer"]
    assert (answer["rank"], answer["ways"]) == (1, 2)
    assert tab.post(f"sessions/{name}/edit", edit).json()["error"]["code"] == "conversation_changed"
    tab.say(session=name, revision=edited["revision"], text="And now?")
    prompt = harmony.encoding().decode(server.service.engine.prompts[-1])
    assert "Hello, said otherwise." in prompt and "More" not in prompt
    way = {"revision": tab.view(name)["revision"], "exchange": 0, "is_answer": True, "rank": 0}
    assert said(tab.post(f"sessions/{name}/way", way).json())[1][0] == "More"
    wrong = {"revision": tab.view(name)["revision"], "exchange": 9, "text": "x"}
    assert tab.post(f"sessions/{name}/edit", wrong).status_code == 400


def test_another_answer_that_is_stopped_before_a_word_leaves_the_first(server):
    tab = PageClient(server)
    name = tab.say(text="Hi")[0]["session"]
    server.service.engine.prefill_s = 3
    threading.Thread(target=lambda: tab.say(session=name, exchange=0, text=None), daemon=True).start()
    server.wait_until(lambda: len(server.service.engine.prompts) == 2)
    PageClient(server).post(f"sessions/{name}/stop", {})
    server.wait_until(lambda: not PageClient(server).view(name)["is_writing"])
    assert said(PageClient(server).view(name)) == [("Hi", "Hello!")]


def test_a_saved_cache_saves_reading_after_a_restart(tmp_path):
    """The page, another server, the terminal: none reads what another has read."""
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "localoss.json").write_text("{}")
    page, long = Page("tiny", folder=folder), "word " * 300
    with live(ScriptedEngine([HELLO]), page=page) as server:
        events = PageClient(server).say(text=long)
        name, read = events[0]["session"], events[-1]["prompt_tokens"]
        assert events[-1]["cached_tokens"] == 0 and read > 300
    with live(ScriptedEngine([final("Two.")]), page=page) as server:
        done = PageClient(server).say(session=name, text="More")[-1]
        assert read - 5 <= done["cached_tokens"] < done["prompt_tokens"]
        assert (
            PageClient(server).say(session=name, text="And more")[-1]["cached_tokens"] > done["cached_tokens"]
        )
    session, engine = Session(name), ScriptedEngine()
    sequence = engine.sequence()
    assert session.attach(folder, engine, sequence) is None and len(sequence.tokens) > read
    sequence.reuse([*sequence.tokens, 0])
    check(sequence)
    session.close()


def test_names_export_and_removal(server):
    tab = PageClient(server)
    name = tab.say(text="Hi")[0]["session"]
    view = tab.post(f"sessions/{name}/change", {"title": "  Trip to\nRome, März "}).json()
    assert (view["name"], view["title"]) == ("Trip-to-Rome-M-rz", "Trip to Rome, März")
    assert [(one.name, one.title) for one in sessions()] == [(view["name"], "Trip to Rome, März")]
    view = tab.post(f"sessions/{view['name']}/change", {"title": "旅行"}).json()
    assert (view["name"], view["title"]) == ("Trip-to-Rome-M-rz", "旅行"), "a name has ASCII letters"
    other = tab.say(text="Hi")[0]["session"]
    assert (
        tab.post(f"sessions/{other}/change", {"title": "Trip to Rome März"}).json()["name"]
        == "Trip-to-Rome-M-rz-2"
    )
    exported = tab.get(f"sessions/{view['name']}/export/md")
    assert "## You\n\nHi" in exported.text and "attachment" in exported.headers["content-disposition"]
    assert tab.get(f"sessions/{view['name']}/export/exe").status_code == 404
    assert tab.http.delete(f"/localoss/sessions/{view['name']}").json() == {"deleted": True}
    assert len(sessions()) == 1 and tab.get(f"sessions/{view['name']}").status_code == 404


def test_names_that_are_none(server):
    tab = PageClient(server)
    for name in ("nothing", "..", "%2e%2e%2fmodels", "a b", "x" * 65):
        assert tab.get(f"sessions/{name}").status_code in (400, 404)
        assert tab.http.delete(f"/localoss/sessions/{name}").status_code in (400, 404, 405)
        assert tab.say(session=name, text="Hi")[0]["status"] in (400, 404)
    assert not sessions()


def test_conversations_are_told_to_the_page_alone():
    with live(ScriptedEngine(), page=PAGE, api_key="k", cors_origins=["https://page.example"]) as server:
        http, own = httpx2.Client(base_url=server.url), {"Authorization": "Bearer k"}
        assert http.get("/").status_code == 200, "a browser sends no key with it"
        assert http.get("/localoss/page/app.js").status_code == 200
        assert http.get("/localoss/sessions").json()["error"]["code"] == "invalid_api_key"
        assert http.get("/localoss/sessions", headers=own).status_code == 200
        strangers = (
            {"Origin": "https://page.example"},
            {"Origin": "null"},
            {"Origin": server.url.replace("http:", "https:") + "1"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        )
        for headers in strangers:
            for path in ("sessions", "about", "sessions/x/answer"):
                refused = http.get(f"/localoss/{path}", headers=own | headers)
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden_origin")
            assert http.post("/localoss/turns", json={"text": "Hi"}, headers=own | headers).status_code == 403
        simple = http.post("/localoss/turns", content=b'{"text": "Hi"}', headers=own | {"Origin": server.url})
        assert simple.status_code == 400, "what a foreign form could send"
        assert not sessions()


def test_files_are_read_by_what_the_terminal_reads_them_with(server, monkeypatch):
    import base64

    tab = PageClient(server)

    def read(name, data):
        return tab.post("documents", {"name": name, "data": base64.b64encode(data).decode()})

    assert read("a.txt", "caf\u00e9".encode("utf-16")).json()["text"] == "café"
    answer = read("C:\\x\\notes.md", b"# One").json()
    assert (answer["name"], answer["text"]) == ("notes.md", "# One") and answer["tokens"] > 0
    refused = read("a.bin", b"\xff\xfe\x00").json()["error"]
    assert refused["message"].startswith("a.bin: not UTF-8 text") and "/" not in refused["message"]
    assert read("a.pdf", b"%PDF-1.4 nonsense").json()["error"]["message"].startswith("a.pdf: not a PDF file")
    assert read("long.txt", b"word " * 9000).json()["error"]["message"].startswith("long.txt has more than")
    assert tab.post("documents", {"name": "a", "data": "!"}).status_code == 400


def test_a_full_context_is_told_and_trimming_helps(server):
    says(server, final("Yes."), context_tokens=400)
    tab = PageClient(server)
    name = tab.say(text="one " * 180)[0]["session"]
    view = tab.view(name)
    full = tab.say(session=name, revision=view["revision"], text="two " * 180)
    assert full[0]["code"] == "context_length_exceeded" and "400" in full[0]["message"]
    assert said(tab.view(name)) == said(view), "nothing was changed"
    tab.say(session=name, revision=view["revision"], text="two " * 180, trim=True)
    view = tab.view(name)
    assert len(said(view)) == 2 and view["exchanges"][0]["question"]["is_left_out"]
