"""Connections that send nothing, or never end, keep nobody out and don't stay."""

import asyncio
import contextlib
import errno
import logging
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from support.live_server import MODEL, live
from support.scripted import ScriptedEngine

from localoss.server.core import connections
from localoss.server.core.connections import Connections

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BEGINNINGS = [b"", b"G", b"GET /health HTTP/1.1\r\nHost: loc", POST, b"\x16\x03\x01", b"\r\n" * 4]


@pytest.fixture(scope="module")
def server():
    with live(ScriptedEngine(), connections=Connections(most=20)) as running:
        yield running


def connect(server, sent=b""):
    host, _, port = server.url.removeprefix("http://").partition(":")
    one = socket.create_connection((host, int(port)), timeout=30)
    one.sendall(sent)
    return one


def is_closed(one):
    """Whether the server has closed the connection, or does within the socket's timeout."""
    try:
        while one.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.parametrize("beginning", BEGINNINGS, ids=repr)
def test_headers_that_do_not_end_are_given_up(server, beginning, monkeypatch):
    monkeypatch.setattr(connections, "HEADERS_S", 0.3)
    with connect(server, beginning) as one:
        assert is_closed(one)


def test_dripping_headers_gain_no_time(server, monkeypatch):
    monkeypatch.setattr(connections, "HEADERS_S", 0.5)
    with connect(server, b"GET /health HTTP/1.1\r\n") as one, contextlib.suppress(OSError):
        began = time.monotonic()
        while time.monotonic() - began < 20:
            one.sendall(b"A: b\r\n")
            time.sleep(0.05)
        pytest.fail("it was still open")


def test_a_second_request_on_a_connection_has_its_deadline_too(server, monkeypatch):
    monkeypatch.setattr(connections, "HEADERS_S", 0.5)
    with connect(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as one:
        assert b"200 OK" in one.recv(65536)
        one.sendall(b"GET /health HT")
        assert is_closed(one)


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/nowhere", b"/health"])
def test_a_body_that_does_not_end_is_given_up(server, path, monkeypatch):
    """Wherever it is sent, and whether or not it was answered before."""
    monkeypatch.setattr(connections, "MAX_BODY_S", -4.5)
    head = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(server, head + b"Content-Length: 1000000\r\n\r\n{") as one, contextlib.suppress(OSError):
        for _ in range(200):
            one.sendall(b" ")
            time.sleep(0.1)
        pytest.fail("it was still open")


def test_half_requests_keep_nobody_out(server):
    """The oldest that sent nothing whole make room; others are answered at once."""
    held = [connect(server, BEGINNINGS[number % 3]) for number in range(100)]
    try:
        for _ in range(5):
            assert httpx2.get(server.url + "/health", timeout=30).status_code == 200
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
        assert server.post("/v1/chat/completions", body).status_code == 200
        for one in held[:60]:
            assert is_closed(one)
    finally:
        for one in held:
            one.close()


def test_answers_under_way_are_not_cut_for_newcomers():
    engine = ScriptedEngine(["<|channel|>final<|message|>" + "on " * 20], token_s=0.02)
    with live(engine, connections=Connections(most=4)) as server:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
        answers = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(server.post("/v1/chat/completions", body).status_code)
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        server.wait_until(lambda: server.service.scheduler.running + server.service.scheduler.waiting == 4)
        with connect(server) as late:
            assert is_closed(late)
        for thread in threads:
            thread.join()
        assert answers == [200] * 4


def test_a_client_that_reads_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(connections, "_READING_S", 0.3)
    engine = ScriptedEngine(["<|channel|>final<|message|>" + "on " * 8000])
    with live(engine) as server:
        body = b'{"model":"tiny","stream":true,"messages":[{"role":"user","content":"Hi"}]}'
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, _, port = server.url.removeprefix("http://").partition(":")
        with one:
            one.connect((host, int(port)))
            one.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            server.wait_until(lambda: server.service.scheduler.running)
            server.wait_until(lambda: not server.service.scheduler.running)


def test_few_files_make_few_connections(monkeypatch):
    monkeypatch.setattr(connections, "raise_file_limit", lambda: 64)
    bounds = Connections()
    assert bounds.most >= 4 and bounds.most + bounds.backlog <= 24 and bounds.backlog
    monkeypatch.setattr(connections, "raise_file_limit", lambda: None)
    assert Connections().most == connections.MOST


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_the_file_limit_is_raised():
    import resource

    program = (
        "import resource\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "from localoss.server.core.connections import raise_file_limit\n"
        "assert raise_file_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64\n"
    )
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 64:
        root = Path(__file__).parent.parent
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=root)


def test_the_same_error_of_the_system_is_told_once(caplog):
    loop = asyncio.new_event_loop()
    try:
        connections.report_errors_once(loop)
        with caplog.at_level(logging.WARNING):
            for _ in range(50):
                error = OSError(errno.EMFILE, "Too many open files")
                loop.call_exception_handler({"message": "accept", "exception": error})
        assert len(caplog.records) == 1 and caplog.records[0].exc_info is None
        loop.call_exception_handler({"message": "another", "exception": ValueError("x")})
        assert len(caplog.records) == 2
    finally:
        loop.close()


def test_what_is_no_http_is_logged_seldom(server, caplog):
    with caplog.at_level(logging.WARNING, "uvicorn.error"):
        for _ in range(20):
            with connect(server, b"nonsense\r\n\r\n") as one:
                assert is_closed(one)
    assert len(caplog.records) <= 1


def test_memory_is_given_back_between_requests_and_now_and_then_among_them(monkeypatch):
    """After the first idle moment since a request; among requests every so often; never without any."""
    trimmed, ticks = [], []
    state = SimpleNamespace(total_requests=0, tasks={})
    # By tick: how many requests were answered by then, and whether one runs.
    plan = [(0, False), (5, True), (6, True), (7, True), (7, False), (7, False), (8, False)]

    async def tick(seconds):
        if len(ticks) == len(plan):
            raise asyncio.CancelledError
        state.total_requests, state.tasks = plan[len(ticks)][0], {1: 1} if plan[len(ticks)][1] else {}
        ticks.append(seconds)

    async def at_once(trim, keep):
        trim(keep)

    monkeypatch.setattr(connections, "_malloc_trim", lambda: lambda keep: trimmed.append(len(ticks)))
    monkeypatch.setattr(connections, "_BUSY_TIDY_AFTER", 4)
    monkeypatch.setattr(connections.asyncio, "sleep", tick)
    monkeypatch.setattr(connections.asyncio, "to_thread", at_once)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(connections.give_memory_back(state))
    assert trimmed == [4, 7]  # among requests at the fourth; the fifth and the sixth have nothing new
