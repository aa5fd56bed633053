"""Debian's Chromium, driven by Playwright; what a page does wrong on the way is kept as `faults`."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
PATIENCE_MS = 60_000  # a busy machine is no fault of the page
SEVERE = ("serious", "critical")


@contextlib.contextmanager
def chromium():
    """A browser; skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="make page installs Playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    sandbox = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


class Tab:
    """A tab on the page of `server`, in a window of its own unless it shares another tab's."""

    def __init__(self, browser, server, beside=None, at="/", **options):
        self.server, self.faults = server, []
        options = {"viewport": {"width": 1100, "height": 800}} | options
        self.context = beside.context if beside else browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("console", self._note)
        self.page.on("request", self._check)
        self.page.on("dialog", lambda dialog: (self.faults.append("a dialog"), dialog.dismiss()))
        self.page.goto(server.url + at)

    def _note(self, message):
        is_refusal = message.text.startswith("Failed to load resource: the server responded with a status of")
        if message.type in ("error", "warning") and not is_refusal:
            self.faults.append(f"{message.type}: {message.text}")

    def _check(self, request):
        ours = (self.server.url + "/", "blob:", "data:")
        if not request.url.startswith(ours):
            self.faults.append(f"asked {request.url}")

    def write(self, text):
        self.page.fill("#message", text)

    def send(self, text):
        self.write(text)
        self.page.keyboard.press("Enter")

    def wait_for_answer(self, number=1):
        """Until `number` answers stand, and none is being written."""
        self.page.wait_for_function(
            "count => document.querySelectorAll('.answer[aria-busy=false]').length >= count"
            " && !document.querySelector('[aria-busy=true]') && !document.querySelector('.dot')",
            arg=number,
        )
        self.page.wait_for_timeout(150)  # a frame to draw what came last

    def ask(self, text):
        before = self.page.locator(".answer").count()
        self.send(text)
        self.wait_for_answer(before + 1)

    def questions(self):
        return [text.strip() for text in self.page.locator(".bubble").all_inner_texts()]

    def answers(self):
        return [text.strip() for text in self.page.locator(".answer .markdown").all_inner_texts()]

    def button(self, name, nth=0):
        return self.page.get_by_role("button", name=name, exact=True).nth(nth)

    def click(self, name, nth=0):
        self.button(name, nth).click()

    def name(self):
        """Of the session that is open."""
        return self.page.evaluate("decodeURIComponent(location.hash.slice(1))")

    def severe(self):
        """What axe-core finds that keeps people from using the page."""
        package = pytest.importorskip("axe_playwright_python", reason="make page installs axe-core")
        script = Path(package.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
        self.page.evaluate(script)
        found = self.page.evaluate("axe.run()")["violations"]
        return [
            (one["id"], one["impact"], [node["html"][:200] for node in one["nodes"]][:3])
            for one in found
            if one["impact"] in SEVERE
        ]

    def overflow(self):
        """Pixels by which the page is wider than its window."""
        return self.page.evaluate(
            "Math.max(document.documentElement.scrollWidth - innerWidth,"
            " ...[...document.querySelectorAll('main, .thread, .column, .composer, .dialog')]"
            ".map(one => one.scrollWidth - one.clientWidth))"
        )
