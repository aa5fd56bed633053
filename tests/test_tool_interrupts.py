"""Ctrl-C at any moment of an answer with tools, at a pseudo-terminal: the conversation goes on, each time."""

import http.server
import json
import random
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("pexpect")  # not on Windows
pytest.importorskip("pydantic_monty")
pytest.importorskip("mcp")

from support.calling import browser, final, function, python
from support.pseudo_terminal import FINAL, thinking

from localoss.chat.agent import Stop
from localoss.chat.harmony import Message
from localoss.tools.browser import Browser
from localoss.tools.web import WebSource
from localoss.tools.web_search import Provider

SERVER = str(Path(__file__).parent / "support" / "hostile_mcp.py")
LONG = "on and " * 600
STAGES = {
    "thinking": [thinking(LONG, "never")],
    "answering": [FINAL + LONG],
    "writing": [python(f"# {LONG}"), final("never")],
    "python": [python("while True:\n    pass"), final("never")],
    "searching": [browser("search", '{"query":"basalt"}'), final("never")],
    "opening": [browser("open", '{"id":"URL/page"}'), final("never")],
    "serving": [function("bad__hang", "{}"), final("never")],
    "asking": [function("bad__echo", "{}"), final("never")],
}
GO_ON = {
    "go": [FINAL + "gone on with REST<|return|>"],
    "keep": [python("kept = 41"), final("kept")],
    "look": [python("kept + 1"), final("looked")],
    "slow": [function("bad__echo", "{}", thought=LONG[:2000]), final("done")],
}
IN_A_CALL = "→ stopped"
HITS = {  # what the screen shows if it came while the stage lasted
    "thinking": "(stopped", "answering": "on and on", "writing": "(stopped", "python": IN_A_CALL,
    "searching": IN_A_CALL, "opening": IN_A_CALL, "serving": IN_A_CALL, "asking": "May it?",
}  # fmt: skip
BEGINS = dict.fromkeys(STAGES, "thought for") | {
    "thinking": "on and on", "answering": "on and on", "asking": "May it?",
}  # fmt: skip
_MOST_S = 0.8  # within which it comes, after the question or, every other time, after the stage has begun


class _Silent(http.server.BaseHTTPRequestHandler):
    """A page, and a search, that don't come."""

    def do_GET(self):
        self.server.over.wait(60)

    def log_message(self, format, *words):
        """Nothing."""


@pytest.fixture
def silent_site():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Silent) as site:
        site.daemon_threads, site.over = True, threading.Event()
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.over.set()
        site.shutdown()


@pytest.fixture
def talk(chat, tmp_path, silent_site):
    """Start a chat with all tools, whose model does by the question's first word what STAGES says."""

    def start(interpreter="python"):
        config = tmp_path / "mcp.json"
        program = {"command": sys.executable, "args": [SERVER, "tools=echo,hang"]}
        config.write_text(json.dumps({"mcpServers": {"bad": program}}))
        kept = {"format": "localoss approvals 1", "policies": {"mcp:bad/hang": "always"}}
        (tmp_path / "approvals.json").write_text(json.dumps(kept))
        words = ["--tools", f"{interpreter},browser", "--mcp", str(config), "--web"]
        words += ["--web-search", silent_site, "--web-allow", silent_site.removeprefix("http://")]
        answers = {
            word: [one.replace("URL", silent_site) for one in said] for word, said in (STAGES | GO_ON).items()
        }
        return chat(*words, answers=answers, token_s=0.002, prefill_s=0.02, context_tokens=131_072)

    return start


def interrupt(terminal, stage, number, chance):
    """Ask for a stage, press Ctrl-C at a random moment, and go on; whether it came while the stage lasted."""

    def at_prompt():  # the terminal itself writes ^C where nothing of ours waits for it yet
        return "empty" if terminal.line() in (">", "^C>") else ""

    before = len(terminal.seen)
    terminal.type(f"{stage} {number}\r")
    if number % 2:
        terminal.wait_for(
            "begun", where=lambda: "begun" if BEGINS[stage].encode() in terminal.seen[before:] else ""
        )
    moment = time.monotonic() + chance.uniform(0, _MOST_S)
    while (left := moment - time.monotonic()) > 0:
        terminal.take(left)
    terminal.type("\x03" * chance.choice((1, 1, 1, 2)))
    pressed = time.monotonic()
    terminal.wait_for("empty", where=at_prompt, timeout_s=60)
    took_s = time.monotonic() - pressed
    shown = terminal.seen[before:].decode("utf-8", "replace")
    terminal.type(f"go {stage} {number}\r")
    terminal.wait_for(f"gone on with {stage} {number}", timeout_s=60)
    terminal.wait_for("empty", where=at_prompt, timeout_s=60)
    return HITS[stage] in shown, took_s


def keep(terminal):
    """Have a variable that only Ctrl-C in python itself may cost."""
    terminal.type("keep it\r")
    terminal.wait_for("41 → ")
    terminal.wait_for_prompt()


def leave(terminal, is_kept=False):
    terminal.type("look at it\r")
    terminal.wait_for("kept + 1 → " + ("42" if is_kept else "NameError"))
    terminal.wait_for_prompt()
    terminal.type("/exit\r")
    assert terminal.wait_for_end(timeout_s=60) == 0
    assert "Traceback" not in terminal.everything() and "error" not in terminal.everything()


def answers_no_question(terminal):
    """What was typed before a question isn't its answer."""
    called = terminal.everything().count("bad__echo ·")
    terminal.type("slow\r")
    terminal.wait_for("on and on", where=lambda: "\n".join(terminal.screen()))
    terminal.type("yes\r")
    terminal.wait_for("May it? [y]es, [N]o, [a]lways, n[e]ver:", where=lambda: "\n".join(terminal.screen()))
    terminal.settle()
    assert terminal.everything().count("bad__echo ·") == called
    terminal.type("no\r")
    terminal.wait_for("The user did not allow this call.")
    terminal.wait_for_prompt()


def waits(terminal):
    """What is typed while a tool works is there at the next prompt, and isn't seen before."""
    terminal.type("\x0cserving\r")  # on a clear screen
    terminal.wait_for("▸ thought", where=lambda: "\n".join(terminal.screen()))
    terminal.settle()
    terminal.type("my next question")
    terminal.settle()
    assert "my next" not in terminal.everything()
    terminal.type("\x03")
    terminal.wait_for("> my next question", where=terminal.line)
    terminal.type("\x03")
    terminal.wait_for_prompt()


def test_a_moment_of_each_stage(talk):
    terminal, chance = talk(), random.Random(5)
    interrupt(terminal, "python", 1, chance)
    keep(terminal)
    for stage in [name for name in STAGES if name != "python"]:
        interrupt(terminal, stage, 1, chance)
    answers_no_question(terminal)
    waits(terminal)
    leave(terminal, is_kept=True)


def test_what_waits_for_a_page_or_a_search_ends_when_it_is_stopped(silent_site):
    host = silent_site.removeprefix("http://")
    tool, stop = Browser([WebSource(Provider("searxng", silent_site), [host])]), Stop()
    stop.request("user")
    for name, said in (("open", {"id": f"{silent_site}/page"}), ("search", {"query": "basalt"})):
        call = Message("assistant", json.dumps(said), "analysis", f"browser.{name}")
        assert tool.run(call, stop).text == "Error: stopped"  # while the site says nothing
    tool.close()


@pytest.mark.soak
@pytest.mark.parametrize("stage", STAGES)
def test_a_hundred_moments_of_a_stage(talk, stage):
    terminal, chance = talk(), random.Random(stage)
    keep(terminal)
    rounds = [interrupt(terminal, stage, number, chance) for number in range(100)]
    leave(terminal, is_kept=stage != "python")
    hits, slowest_s = sum(hit for hit, _ in rounds), max(took_s for _, took_s in rounds)
    print(f"{stage}: {hits} of 100 while it lasted, the prompt at most {slowest_s:.1f} s later")
    assert hits >= 40


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_a_hundred_moments_of_cpython(talk):
    terminal, chance = talk("cpython"), random.Random(7)
    assert sum(interrupt(terminal, "python", number, chance)[0] for number in range(100)) >= 40
    keep(terminal)
    for number in range(10):
        interrupt(terminal, "thinking", number, chance)
    leave(terminal, is_kept=True)
