"""Several tabs, a terminal and a key at one conversation, in headless Chromium: `make page`."""

import pytest
from support.browser import Tab
from support.live_server import live
from support.page_fixtures import LONG, PAGE, final
from support.scripted import ScriptedEngine

from localoss.chat.session import Session
from localoss.chat.session_store import read_session

pytest_plugins = ("support.page_fixtures",)
pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("page_home")]


def test_two_tabs_and_a_terminal(serve, open_tab):
    server = serve(final("One."), final("Two."), final("Three."))
    first = open_tab(server)
    first.ask("First")
    second = open_tab(server, at=f"/#{first.name()}")  # another browser: it isn't told
    second.wait_for_answer()
    first.ask("From the first")
    second.send("From the second")
    second.page.wait_for_selector("[role=alert] >> text=went on elsewhere")
    second.wait_for_answer(2)
    assert second.questions() == ["First", "From the first"]
    assert second.page.input_value("#message") == "From the second", "nothing is lost"
    terminal = Session(first.name())
    second.send("From the second")
    second.page.wait_for_selector("[role=alert] >> text=another window or terminal")
    assert second.page.input_value("#message") == "From the second"
    terminal.conversation.ask("From the terminal")
    terminal.save_messages(terminal.conversation, "tiny")
    terminal.close()
    second.send("From the second")
    second.page.wait_for_selector("[role=alert] >> text=went on elsewhere")
    second.page.keyboard.press("Enter")
    second.wait_for_answer(3)  # nobody answered the terminal's
    asked = ["First", "From the first", "From the terminal", "From the second"]
    assert second.questions() == asked
    assert [m.text for m in read_session(first.name())[0].messages if m.role == "user"] == asked


def test_a_second_tab_of_the_same_browser_is_told(serve, open_tab):
    server = serve(LONG, token_s=0.01)
    first = open_tab(server)
    second = open_tab(server, beside=first)
    first.send("First")
    second.page.wait_for_selector(".list a")
    second.page.click(".list a")
    second.page.wait_for_selector(".answer .markdown .block")
    second.click("Stop")
    first.wait_for_answer()
    second.wait_for_answer()
    assert first.answers() == second.answers()


def test_a_copy_while_a_terminal_has_it(serve, open_tab):
    tab = open_tab(serve())
    tab.ask("First")
    terminal = Session(tab.name())
    tab.send("Second")
    tab.click("Go on in a copy")
    tab.page.wait_for_function(f"() => location.hash !== '#{terminal.name}'")
    tab.wait_for_answer()
    tab.ask("Second")
    assert tab.questions() == ["First", "Second"] and len(terminal.conversation.messages) == 2
    terminal.close()


def test_the_key_is_asked_for_or_comes_with_the_address(serve, open_tab):
    server = serve(api_key="s & k")
    tab = open_tab(server)
    field = tab.page.get_by_label("Key", exact=True)
    field.fill("wrong")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("text=That isn't it.")
    field.fill("s & k")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("dialog", state="detached")
    tab.ask("Hi")
    other = open_tab(server, at="/#key=s%20%26%20k")
    other.page.wait_for_selector(".list a")
    assert "key" not in other.page.url


def test_a_server_that_went_away_is_told_and_nothing_is_lost(browser):
    with live(ScriptedEngine(), page=PAGE) as server:
        tab = Tab(browser, server)
        tab.page.wait_for_selector(".welcome")
    tab.send("Hello?")
    tab.page.wait_for_selector("[role=alert] >> text=can't be reached")
    assert tab.page.input_value("#message") == "Hello?"
    tab.context.close()
