"""Tools on the page, in headless Chromium: `make page`."""

import json
import sys
from pathlib import Path

import pytest
from support.calling import browser as browse
from support.calling import final, function, python

from localoss.server.core.hosted import HostedTools
from localoss.tools import pictures
from localoss.tools.approval import Approvals
from localoss.tools.choice import ToolOptions

pytest.importorskip("pydantic_monty")
pytest_plugins = ("support.page_fixtures",)
pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("page_home")]
HOSTILE_SERVER = str(Path(__file__).parent / "support" / "hostile_mcp.py")
DOT = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8cfc0f01f00050001ff5d8c6a3b0000000049454e44ae426082"
)


@pytest.fixture
def serve_tools(serve, tmp_path):
    """Serve an engine that answers so, with python and a document to search."""
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "moon.md").write_text("# Moon\n\nIt is made of basalt.\n")
    tools = HostedTools(ToolOptions(("python", "browser"), (tmp_path / "papers",)))

    def start(*answers, **options):
        server = serve(*answers, context_tokens=32_768, **options)
        server.service.hosted = server.models.hosted = tools
        return server

    yield start
    tools.close()


@pytest.mark.parametrize("width", [1100, 360])
def test_calls_are_folded_lines(serve_tools, open_tab, width):
    hostile = "print('<img src=x onerror=window.hacked=1>' + 'x' * 500)"
    search = browse("search", '{"query":"basalt"}')
    server = serve_tools(python(hostile), search, browse("open", '{"id":0}'), final("Basalt【1†L3】."))
    tab = open_tab(server, viewport={"width": width, "height": 800})
    assert "python" in tab.page.inner_text(".tool-list") and not tab.severe() and tab.overflow() <= 0
    tab.ask("The moon?")
    for again in range(2):
        calls = tab.page.locator("details.call")
        names = calls.locator("summary code").all_inner_texts()
        assert names == ["python", "browser.search", "browser.open"]
        assert not calls.first.locator("pre").first.is_visible(), "folded"
        assert calls.nth(1).locator(".excerpt").inner_text() == "basalt"
        calls.first.locator("summary").focus()
        tab.page.keyboard.press("Enter")
        assert "<img src=x" in calls.first.locator("pre").nth(1).inner_text()
        assert "Basalt[1]." in tab.answers()[0] and "Moon" in tab.answers()[0]
        assert tab.page.evaluate("window.hacked") is None
        assert not tab.severe() and tab.overflow() <= 0
        if not again:
            tab.page.reload()
            tab.wait_for_answer()


def test_a_call_is_shown_while_it_is_made_and_stops(serve_tools, open_tab):
    tab = open_tab(serve_tools(python("while True: pass"), final("Never.")))
    tab.send("Loop")
    tab.page.wait_for_selector(".call.is-live >> text=while True")
    tab.page.keyboard.press("Escape")
    tab.wait_for_answer()
    tab.page.locator(".call summary").click()
    assert "stopped" in tab.page.locator(".call pre").nth(1).inner_text()


@pytest.mark.parametrize("width", [1100, 360])
def test_the_page_asks_before_an_mcp_call(serve, open_tab, tmp_path, width):
    pytest.importorskip("mcp")
    config = tmp_path / "mcp.json"
    program = {"command": sys.executable, "args": [HOSTILE_SERVER, "tools=echo,evil"]}
    gone = {"command": "/no/such/program"}
    config.write_text(json.dumps({"mcpServers": {"notes": program, "gone": gone}}))
    tools = HostedTools(ToolOptions(mcp=config), Approvals(None, tmp_path / "approvals.json"))
    calls = [
        function("notes__echo", json.dumps({"text": "<b>x</b>" + "y" * 400})),
        function("notes__evil", "{}"),
    ]
    server = serve(*calls, final("Done."), calls[0], final("No."), context_tokens=32_768)
    server.service.hosted = server.models.hosted = tools
    tab = open_tab(server, viewport={"width": width, "height": 800})
    assert "you are asked before each call" in tab.page.inner_text(".tool-list")
    tab.send("Echo")
    asked = tab.page.locator(".asked")
    asked.get_by_text("notes echo").wait_for()
    assert "<b>x</b>" in asked.locator("pre").inner_text() and not tab.severe() and tab.overflow() <= 0
    assert "gone" in tab.page.inner_text(".problem")
    tab.page.reload()  # the question stays
    asked.get_by_role("button", name="Always allow").click()
    asked.get_by_text("notes evil").wait_for()
    asked.get_by_role("button", name="Allow once").focus()
    tab.page.keyboard.press("Enter")
    tab.wait_for_answer()
    results = tab.page.locator(".call pre")
    tab.page.locator(".call summary").first.click()
    assert "echo got" in results.nth(1).inner_text() and asked.count() == 0
    assert tools.approvals.kept == {"mcp:notes/echo": "always"}
    tab.ask("Again")  # without a question
    assert tab.answers()[-1] == "No."
    tools.close()


def test_pictures_are_shown_with_a_key_too(serve_tools, open_tab, monkeypatch):
    from localoss.chat.agent import Result
    from localoss.tools.python_tool import PythonTool

    monkeypatch.setattr(PythonTool, "run", lambda *_: Result("[1 picture]", pictures.keep([DOT])))
    tab = open_tab(serve_tools(python("plot()"), final("Here."), api_key="k"), at="/#key=k")
    tab.page.wait_for_selector(".tool-list")
    tab.ask("Draw")
    is_drawn = "() => document.querySelector('.picture')?.naturalWidth === 1"
    tab.page.wait_for_function(is_drawn)
    tab.page.reload()
    tab.page.wait_for_function(is_drawn)
