"""The chat page by keyboard, at phone width, in both themes and by axe-core, in Chromium: `make page`."""

import re

import pytest
from support.page_fixtures import LONG, RICH, final

pytest_plugins = ("support.page_fixtures",)
pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("page_home")]


def test_with_the_keyboard_alone(serve, open_tab):
    tab = open_tab(serve(final("One."), final("Two."), LONG, token_s=0.002))
    press = tab.page.keyboard.press
    tab.page.wait_for_function("() => document.activeElement.id === 'message'")
    tab.page.keyboard.type("First")
    press("Shift+Enter")
    tab.page.keyboard.type("line")
    press("Enter")
    tab.wait_for_answer()
    assert tab.questions() == ["First\nline"]
    press("ArrowUp")
    tab.page.wait_for_selector(".editor textarea:focus")
    tab.page.keyboard.type(", edited")
    press("Control+Enter")
    tab.page.wait_for_selector(".question .ways")
    tab.wait_for_answer()
    assert tab.questions() == ["First\nline, edited"]
    tab.page.focus("#message")
    tab.page.keyboard.type("Long")
    press("Enter")
    tab.page.wait_for_function("() => document.querySelectorAll('.answer .markdown .block').length > 1")
    press("Escape")
    tab.wait_for_answer(2)
    press("Control+Shift+O")
    tab.page.wait_for_selector(".welcome")
    press("Control+k")
    tab.page.wait_for_function("() => document.activeElement.id === 'filter'")
    reached = set()
    for _ in range(30):
        press("Tab")
        reached.add(
            tab.page.evaluate(
                "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText ?? ''"
            ).strip()
        )
    expected = {
        "First line, edited",
        "Options of First line, edited",
        "Theme: system",
        "Settings",
        "Keyboard",
    }
    expected |= {"Message", "Attach files", "New conversation"}
    assert expected <= {re.sub(r"\s+", " ", name) for name in reached}
    tab.page.focus(".list a")
    press("Tab")
    press("Enter")
    press("ArrowUp")
    assert tab.page.evaluate("document.activeElement.innerText") == "Delete…"
    press("Escape")
    assert tab.page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Options")
    press("?")
    tab.page.wait_for_selector("dialog[open]")
    press("Escape")
    tab.page.wait_for_selector("dialog", state="detached")
    assert tab.page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Options")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_axe_finds_nothing_serious_and_nothing_is_too_wide(serve, open_tab, scheme, width):
    tab = open_tab(
        serve(final(RICH * 2), LONG, token_s=0.001),
        viewport={"width": width, "height": 740},
        color_scheme=scheme,
    )
    background = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 25, 26)"}[scheme]

    def check(where):
        tab.page.wait_for_timeout(400)  # what fades in is half transparent before
        assert not tab.severe(), where
        assert tab.overflow() <= 0, where

    check("welcome")
    tab.ask("averyveryverylongword" * 20)
    tab.page.locator(".fold").click()
    check("an answer")
    tab.click("Edit the question")
    check("an edit")
    tab.click("Cancel")
    tab.send("Go on")
    tab.page.wait_for_function("() => document.querySelectorAll('.answer').length > 1")
    check("while an answer is written")
    tab.click("Stop")
    tab.wait_for_answer(2)
    tab.send("word " * 9000)
    tab.page.wait_for_selector("[role=alert]")
    check("an error")
    if width == 360:
        tab.click("Conversations")
    for button in ("Settings", "Keyboard"):
        tab.click(button)
        check(button)
        tab.page.keyboard.press("Escape")
        tab.page.wait_for_selector("dialog", state="detached")
    if width == 360:
        tab.page.wait_for_selector(".sidebar.is-open")
        check("the list")
    tab.page.locator(".list li .icon-button").first.click()
    check("a menu")
    tab.page.get_by_role("menuitem", name="Delete…").click()
    check("a question before deletion")
    tab.click("Delete")
    tab.page.wait_for_selector(".welcome")


def test_the_theme_can_be_chosen_and_stays(serve, open_tab):
    tab = open_tab(serve(), color_scheme="dark")
    tab.click("Theme: system")
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.page.reload()
    tab.page.wait_for_selector("[aria-label='Theme: light']")
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
