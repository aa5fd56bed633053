"""What is large is read in a process of its own, which ends when it takes too much or nobody waits for it."""

import asyncio
import functools
import json
import os
import signal
import sys
import time

import httpx2
import psutil
import pytest
from support.live_server import live
from support.scripted import ScriptedEngine

from localoss.chat import harmony
from localoss.errors import Cancelled, TooManyTokensError
from localoss.server.chat.schemas import ChatRequest
from localoss.server.core import apart
from localoss.server.core.apart import Apart, _Call
from localoss.server.core.bodies import parse
from localoss.server.core.errors import ApiError


@pytest.fixture(scope="module")
def process():
    made = Apart()
    yield made
    made.close()


def chat(text):
    return {"model": "tiny", "messages": [{"role": "user", "content": text}]}


def test_it_gives_and_raises_what_functions_do(process):
    sent = [json.dumps(chat("hi" * 50_000)).encode()]
    assert process.call(_Call(), parse, sent, ChatRequest) == parse(sent, ChatRequest)
    messages = [harmony.Message("user", "a few words")]
    setup = harmony.ChatSetup()
    assert process.call(_Call(), harmony.render, setup, messages, 1000) == harmony.render(setup, messages)
    with pytest.raises(TooManyTokensError) as many:
        process.call(_Call(), harmony.render, setup, messages, most_tokens=20)
    assert many.value.tokens > 20
    with pytest.raises(ApiError, match="required") as wrong:
        process.call(_Call(), parse, [b'{"model": "tiny", "messages": [{}]}'], ChatRequest)
    assert (wrong.value.status, wrong.value.param) == (400, "messages.0.role")


def test_it_has_bounds(process):
    if os.name == "posix":
        assert process.call(_Call(), os.nice, 0) == min(os.nice(0) + 10, 19)
        left_s, _ = process.call(_Call(), signal.getitimer, signal.ITIMER_PROF)
        assert 15 < left_s < 21
    if sys.platform == "linux":
        with pytest.raises(ApiError, match="too much time or memory"):
            process.call(_Call(), bytes, 3 << 30)
    before = process.call(_Call(), os.getpid)
    with pytest.raises(ApiError, match="too much time or memory"):
        process.call(_Call(), os._exit, 1)
    assert process.call(_Call(), os.getpid) != before, "the next one is read by another"


def test_what_nobody_waits_for_is_not_read(monkeypatch):
    """Not begun, and ended where it takes long."""
    process = Apart()
    monkeypatch.setattr(apart, "_apart", process)
    monkeypatch.setattr(apart, "_PATIENCE_S", 0.01)
    gone = _Call()
    gone.is_gone = True
    with pytest.raises(Cancelled):
        process.call(gone, os.getpid)
    assert process._child is None

    async def leave():
        before = await apart.apart(os.getpid)
        left = asyncio.create_task(apart.apart(time.sleep, 100))
        while process._running is None:
            await asyncio.sleep(0.01)
        left.cancel()
        return before, await apart.apart(os.getpid)

    before, after = asyncio.run(leave())
    assert before != after and not psutil.pid_exists(before)
    process.close()


def test_it_ends_when_nothing_is_large_any_more():
    process = Apart(idle_s=0.1)
    pid = process.call(_Call(), os.getpid)
    while psutil.pid_exists(pid):
        time.sleep(0.02)
    assert process.call(_Call(), os.getpid) != pid
    process.close()


def test_large_requests_are_read_there(monkeypatch):
    """Nothing of them is parsed or tokenized where the engine runs; small ones are."""
    read, render = [], harmony.render

    @functools.wraps(render)  # under this name the process knows its own
    def noted(*args):
        read.append(args)
        return render(*args)

    monkeypatch.setattr(harmony, "render", noted)
    process = Apart()
    monkeypatch.setattr(apart, "_apart", process)
    with live(ScriptedEngine(context_tokens=131_072)) as server:
        url = server.url + "/v1/chat/completions"
        small = httpx2.post(url, json=chat("hi"), timeout=60)
        assert small.status_code == 200 and process._child is None and len(read) == 1
        large = httpx2.post(url, json=chat("some words " * 10_000), timeout=60)
        assert large.status_code == 200 and process._child and len(read) == 1
        assert large.json()["usage"]["prompt_tokens"] > 20_000
        too_long = httpx2.post(
            server.url + "/v1/completions", json={"model": "tiny", "prompt": "no " * 200_000}
        )
        assert too_long.json()["error"]["code"] == "context_length_exceeded" and len(read) == 1
        bomb = httpx2.post(url, content=json.dumps(chat("@")).replace('"@"', "[" + "{}," * 40_000 + "{}]"))
        assert bomb.status_code == 400
