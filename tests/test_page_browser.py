"""The chat page in headless Chromium: `make page`. Skips where there is no Chromium."""

import re

import pytest
from support.live_server import live
from support.page_fixtures import LONG, RICH, final
from support.pdf import pdf

import localoss
from localoss.chat.conversation import Conversation
from localoss.chat.harmony import ChatSetup, Message
from localoss.chat.session import Session
from localoss.chat.session_store import read_session, sessions
from localoss.hub.bundled import install
from localoss.server.page import Page

pytest_plugins = ("support.page_fixtures",)
pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("page_home")]


def test_a_conversation_with_the_demo_model(open_tab, tmp_path):
    folder = tmp_path / "models" / "demo"
    install(folder, print)
    engine = localoss.load(folder, context_tokens=4096, threads=1)
    with live(engine, name="demo", page=Page("demo", "A tiny model.")) as server:
        tab = open_tab(server)
        assert "A tiny model." in tab.page.inner_text(".welcome")
        tab.page.get_by_label("low").check(force=True)
        tab.ask("What is 3 + 4?")
        assert "tokens/s" in tab.page.inner_text(".figures") and tab.answers()[0]
        assert re.search(r"[1-9]\d* of 4,096 tokens", tab.page.inner_text(".context"))
        (session,) = sessions()
        conversation, model = read_session(session.name)
        assert (tab.name(), model, conversation.setup.effort) == (session.name, "demo", "low")
        assert conversation.last_answer.split() == tab.answers()[0].split()
        tab.ask("What is 5 + 6?")
        tab.click("Another answer", nth=1)
        tab.page.wait_for_selector(".answer .ways")
        tab.wait_for_answer(2)
        assert tab.page.locator(".answer .ways").inner_text().split() == ["2", "/", "2"]


def test_it_streams_and_thinking_folds(serve, open_tab):
    server = serve(final("word " * 300, thinking="First this. " * 20), token_s=0.01)
    tab = open_tab(server)
    tab.send("Go")
    tab.page.wait_for_selector(".thinking.is-live .thoughts")
    tab.page.wait_for_selector(".answer .markdown")
    early = len(tab.answers()[0])
    tab.wait_for_answer()
    assert early < len(tab.answers()[0]) and tab.page.locator(".thoughts").count() == 0
    fold = tab.page.locator(".fold")
    assert fold.get_attribute("aria-expanded") == "false" and fold.inner_text().startswith("Thought for")
    fold.click()
    assert "First this." in tab.page.inner_text(".thoughts")
    tab.page.reload()
    tab.wait_for_answer()
    tab.page.locator(".fold").click()
    assert "First this." in tab.page.inner_text(".thoughts")


def test_stop_keeps_what_was_said_and_a_reload_looks_on(serve, open_tab):
    tab = open_tab(serve(LONG, token_s=0.01))
    tab.send("Go")
    tab.page.wait_for_selector(".answer .markdown .block")
    tab.page.reload()
    tab.page.wait_for_selector(".answer .markdown .block")
    assert tab.button("Stop").is_visible(), "the answer went on"
    tab.click("Stop")
    tab.wait_for_answer()
    assert tab.answers()[0].startswith("on and on") and "stopped" in tab.page.inner_text(".figures")
    assert read_session(tab.name())[0].last_answer.startswith("on and on")


def test_edits_and_other_answers_stay(serve, open_tab):
    tab = open_tab(serve(final("One."), final("Two."), final("Three."), final("Four.")))
    tab.ask("First")
    tab.ask("Second")
    tab.click("Edit the question", nth=0)
    tab.page.fill("[aria-label='The question']", "First, edited")
    tab.page.keyboard.press("Control+Enter")
    tab.page.wait_for_selector(".question .ways")
    tab.wait_for_answer()
    assert (tab.questions(), tab.answers()) == (["First, edited"], ["Three."])
    tab.click("Another answer")
    tab.page.wait_for_selector(".answer .ways")
    tab.wait_for_answer()
    assert tab.answers() == ["Four."]
    tab.click("Version before, of the answer")
    tab.page.wait_for_selector("text=Three.")
    tab.click("Version before, of the question")
    tab.page.wait_for_selector("text=Second")
    assert (tab.questions(), tab.answers()) == (["First", "Second"], ["One.", "Two."])
    tab.click("Edit the question", nth=1)
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector(".editor", state="detached")
    assert tab.questions() == ["First", "Second"]
    tab.click("Edit the answer", nth=1)
    tab.page.fill("[aria-label='The answer']", "Two, *corrected*.")
    tab.click("Save")
    tab.page.wait_for_selector(".answer em")
    assert tab.answers() == ["One.", "Two, corrected."]
    tab.click("Version before, of the answer")
    tab.page.wait_for_selector("text=Two.")
    assert tab.answers() == ["One.", "Two."]


def test_markdown_code_and_mathematics(serve, open_tab):
    tab = open_tab(serve(final(RICH)))
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.ask("Go")
    answer = tab.page.locator(".answer .markdown")
    assert answer.locator("strong").inner_text() == "bold" and answer.locator(".h1").inner_text() == "Title"
    link = answer.locator("a")
    assert link.get_attribute("href") == "https://example.org/x"
    assert "noopener" in link.get_attribute("rel") and link.get_attribute("target") == "_blank"
    assert answer.locator("pre .hljs-keyword").first.inner_text() == "def"
    tab.click("Copy")
    assert tab.page.evaluate("navigator.clipboard.readText()") == "def double(x):\n\treturn 2 * x  # a tab"
    assert answer.locator(".katex").count() == 4 and answer.locator(".katex-display").count() == 1
    assert "for $5 and $10, and" in answer.inner_text()
    assert answer.locator("td").nth(1).get_attribute("align") == "right"
    tab.click("Copy the answer")
    assert tab.page.evaluate("navigator.clipboard.readText()").strip() == RICH.strip()
    is_drawn = "[...document.fonts].some(font => font.family.startsWith('KaTeX') && font.status === 'loaded')"
    assert tab.page.evaluate(is_drawn), "the fonts came, from here"


def test_files_of_text_and_pdf(serve, open_tab, tmp_path):
    server = serve()
    tab = open_tab(server)
    (tmp_path / "notes.txt").write_text("Größe, noted", encoding="utf-16")
    (tmp_path / "paper.pdf").write_bytes(pdf("A page of paper"))
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    tab.page.set_input_files("input[type=file]", [tmp_path / "notes.txt", tmp_path / "paper.pdf"])
    tab.page.wait_for_function("() => document.querySelectorAll('.composer .files li').length === 2")
    tab.page.wait_for_function("() => !document.querySelector('.composer').innerText.includes('reading')")
    assert "tokens" in tab.page.inner_text(".composer .files")
    tab.page.set_input_files("input[type=file]", tmp_path / "photo.jpg")
    tab.page.wait_for_selector("[role=alert]")
    assert "photo.jpg: not UTF-8 text" in tab.page.inner_text("[role=alert]")
    tab.ask("Compare")
    asked = read_session(tab.name())[0].messages[0]
    assert [(file.name, file.text.strip()) for file in asked.files] == [
        ("notes.txt", "Größe, noted"),
        ("paper.pdf", "A page of paper"),
    ]
    assert tab.page.locator(".question .files li").all_inner_texts() == ["notes.txt", "paper.pdf"]
    tab.click("Edit the question")
    tab.click("Leave notes.txt out")
    tab.click("Send")
    tab.page.wait_for_selector(".question .ways")
    tab.wait_for_answer()
    assert [file.name for file in read_session(tab.name())[0].last_asked.files] == ["paper.pdf"]


def test_conversations_are_listed_found_renamed_and_deleted(serve, open_tab):
    tab = open_tab(serve(), viewport={"width": 1100, "height": 700})
    tab.ask("About rivers")
    tab.page.click(".new")
    tab.ask("About hills")
    entries = tab.page.locator(".list a")
    assert entries.all_inner_texts() == ["About hills", "About rivers"]
    tab.page.fill("#filter", "river")
    assert entries.all_inner_texts() == ["About rivers"]
    entries.first.click()
    tab.page.wait_for_selector(".bubble >> text=About rivers")
    tab.click("Options of About rivers")
    tab.page.get_by_role("menuitem", name="Rename…").click()
    tab.page.get_by_role("textbox", name="Name").fill("The Danube & others")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("h1 >> text=The Danube & others")
    assert tab.name() == "The-Danube-others"
    assert {one.title for one in sessions()} == {"The Danube & others", "About hills"}
    tab.page.fill("#filter", "")
    tab.click("Options of The Danube & others")
    with tab.page.expect_download() as download:
        tab.page.get_by_role("menuitem", name="Save as Markdown").click()
    assert "## You\n\nAbout rivers" in download.value.path().read_text()
    tab.click("Options of The Danube & others")
    tab.page.get_by_role("menuitem", name="Delete…").click()
    tab.click("Delete")
    tab.page.wait_for_selector(".welcome")
    assert [one.title for one in sessions()] == ["About hills"]
    tab.page.go_back()
    tab.page.wait_for_timeout(500)


def test_a_full_context_offers_what_helps(serve, open_tab):
    tab = open_tab(serve(final("Yes."), context_tokens=400))
    tab.ask("one " * 180)
    tab.send("two " * 180)
    tab.page.wait_for_selector("[role=alert]")
    assert "context of 400" in tab.page.inner_text("[role=alert]")
    tab.click("Leave the oldest messages out")
    tab.page.wait_for_selector(".left-out")
    tab.wait_for_answer(2)
    assert tab.page.input_value("#message") == ""
    tab.send("three " * 400)
    tab.page.wait_for_selector("[role=alert]")
    tab.click("Leave the oldest messages out")
    tab.page.wait_for_selector("[role=alert] >> text=your message alone")


def test_instructions_and_sampling_reach_the_model(serve, open_tab):
    server = serve()
    tab = open_tab(server)
    tab.click("Settings")
    tab.page.get_by_label("Instructions for this conversation").fill("Speak Latin.")
    tab.page.get_by_label("Temperature").fill("0")
    tab.click("Save")
    tab.ask("Hi")
    assert read_session(tab.name())[0].setup.instructions == "Speak Latin."
    assert server.service.engine.params.temperature == 0
    tab.click("Settings")
    tab.page.get_by_label("Instructions for this conversation").fill("Speak Greek.")
    tab.click("Save")
    tab.page.wait_for_selector("dialog", state="detached")
    assert read_session(tab.name())[0].setup.instructions == "Speak Greek."


def test_a_long_conversation_is_opened_at_its_end(serve, open_tab):
    conversation = Conversation(ChatSetup())
    for number in range(120):
        conversation.ask(f"Question {number}")
        conversation.answer([Message("assistant", RICH, "final")])
    session = Session("long")
    session.save_messages(conversation, "tiny")
    session.close()
    tab = open_tab(serve(), at="/#long")
    drawn = tab.page.wait_for_function(
        "() => { const all = [...document.querySelectorAll('.answer .markdown')];"
        " return all.at(-1)?.children.length && all.filter(one => one.children.length).length }"
    ).json_value()
    assert drawn < 120, "the last is there before the others"
    tab.page.wait_for_function(
        "() => [...document.querySelectorAll('.answer .markdown')].every(one => one.children.length)"
    )
    tab.page.wait_for_timeout(500)
    left = "(t => t.scrollHeight - t.scrollTop - t.clientHeight)(document.querySelector('.thread'))"
    assert abs(tab.page.evaluate(left)) < 2 and tab.overflow() <= 0
