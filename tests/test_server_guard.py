"""Who may ask a server, how much at once, and what happens when a client leaves or the server goes down."""

import contextlib
import json
import signal
import socket
import sys
import threading
import time

import httpx2
import openai
import pytest
from support.live_server import MODEL, live
from support.scripted import HELLO, ScriptedEngine
from support.scripted_process import start_scripted

from localoss import cli
from localoss.server.core.bodies import MAX_BODY_BYTES

LONG = "<|channel|>final<|message|>" + "on " * 4000
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture
def slow():
    """A server whose answers take minutes."""
    engine = ScriptedEngine([LONG], token_s=0.02)
    with live(engine, queue=2) as server:
        yield server, engine


def running(server):
    return server.service.scheduler.running


def waiting(server):
    return server.service.scheduler.waiting


def in_background(server, **options):
    """A request that nobody waits for."""

    def ask():
        with contextlib.suppress(httpx2.HTTPError):
            server.post(CHAT, BODY | options)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


REBOUND = ["rebound.example", "127.0.0.1.evil.example", "localhost.evil.example", "localhost:evil.example"]
REBOUND += [
    "localhost:80:evil.example",
    "[::1]evil.example",
    "[::1]:evil",
    "[::1",
    "localhost:80@evil.example",
]


def test_host_names_are_checked():
    with live(ScriptedEngine()) as server:
        port = server.url.rpartition(":")[2]
        for host in ("localhost", "127.0.0.1", "LOCALHOST", "[::1]"):
            assert server.get("/v1/models", headers={"Host": f"{host}:{port}"}).status_code == 200
        for host in (*REBOUND, ""):
            answer = server.get("/v1/models", headers={"Host": host})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden_host")


def test_the_key_is_asked_for():
    with live(ScriptedEngine(), hosts=None, api_key="sésame") as server:
        assert server.get("/health").json() == {"status": "ok"}
        for sent in (None, b"Bearer wrong", b"sesame", "Bearer s\u00e9sam".encode(), b"Bearer \xff"):
            headers = {} if sent is None else {b"Authorization": sent}
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
                answer = server.get(path, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        right = {b"Authorization": "Bearer sésame".encode()}
        assert server.get("/v1/models", headers=right).status_code == 200
        for others in ({b"x-api-key": b"sk-other"}, {b"Api-Key": b"other"}):  # of another server's
            assert server.get("/v1/models", headers=right | others).status_code == 200
        for name in ("x-api-key", "api-key"):
            sent = {name.encode(): "sésame".encode(), b"Authorization": b"Bearer sk-other"}
            assert server.get("/v1/models", headers=sent).status_code == 200
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="no", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            client.models.list()


def test_web_pages_may_ask_only_if_named():
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    with live(ScriptedEngine()) as server:
        assert "access-control-allow-origin" not in server.get("/v1/models", headers=asked).headers
    with live(ScriptedEngine(), cors_origins=["https://page.example"], api_key="k") as server:
        answer = httpx2.options(server.url + CHAT, headers=asked)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        other = httpx2.options(server.url + CHAT, headers=asked | {"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b"\xff\xfe", 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"model": NaN}', 400, "invalid_json"),
        (b'{"\\ud800": 1, "model": "tiny", "messages": []}', 400, None),
        (b" " * (MAX_BODY_BYTES + 1), 413, "request_too_large"),
    ],
)
def test_bodies_that_are_none(body, status, code):
    with live(ScriptedEngine()) as server:
        headers = {"Content-Type": "application/json"}
        answer = httpx2.post(server.url + CHAT, content=body, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")
        if code:
            assert answer.json()["error"]["code"] == code
        assert server.get("/health").status_code == 200


def test_a_body_that_never_says_how_long_it_is():
    with live(ScriptedEngine()) as server:
        parts = (b" " * 2**20 for _ in range(MAX_BODY_BYTES // 2**20 + 1))
        headers = {"Content-Type": "application/json"}
        answer = httpx2.post(server.url + CHAT, content=parts, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_page_cannot_send_a_body_unasked():
    """Without its content type no browser asks the server for leave first; programs may leave it out."""
    sent_by_pages = ({"Origin": "null"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"})
    with live(ScriptedEngine()) as server, httpx2.Client(timeout=60) as client:
        for kind in (
            {},
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/x-www-form-urlencoded"},
        ):
            for headers, status in (({}, 200), *((one, 400) for one in (*sent_by_pages, {"Referer": "x"}))):
                asked = {"content": json.dumps(BODY), "headers": kind | headers}
                assert client.post(server.url + CHAT, **asked).status_code == status


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_answer(slow, stream):
    server, engine = slow
    asked = httpx2.stream("POST", server.url + CHAT, json=BODY | {"stream": stream}, timeout=0.5)
    with pytest.raises(httpx2.TimeoutException), asked as answer:
        for line in answer.iter_lines():
            if stream and "on" in line:
                raise httpx2.ReadTimeout("enough")
    server.wait_until(lambda: not running(server), 5)
    engine.answers, engine.token_s = [HELLO], 0
    assert server.post(CHAT, BODY).json()["choices"][0]["message"]["content"] == "Hello!"


def test_who_waits_can_leave(slow):
    server, engine = slow
    in_background(server)
    server.wait_until(lambda: running(server))
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(server.url + CHAT, json=BODY, timeout=0.3)
    server.wait_until(lambda: not waiting(server), 5)
    assert len(engine.prompts) == 1


def test_who_left_is_forgotten(slow):
    """Behind a long answer, prompts that nobody waits for don't pile up."""
    server, _ = slow
    in_background(server)
    server.wait_until(lambda: running(server))
    for _ in range(5):
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(server.url + CHAT, json=BODY, timeout=0.3)
    server.wait_until(lambda: not waiting(server))
    in_background(server)
    server.wait_until(lambda: waiting(server))
    assert sum(map(len, server.service.scheduler._lines.values())) == 1


def test_the_queue_has_an_end_and_the_rest_answers(slow):
    server, _ = slow
    for _ in range(3):
        in_background(server)
    server.wait_until(lambda: waiting(server) == 2)
    answer = server.post(CHAT, BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(answer.headers["Retry-After"]) >= 1
    assert server.get("/health").status_code == 200 and server.get("/v1/models").status_code == 200
    metrics = server.get("/metrics").text
    assert "localoss_requests_waiting 2.0" in metrics and "localoss_requests_running 1.0" in metrics
    assert f'localoss_requests_total{{path="{CHAT}",status="429"}} 1.0' in metrics
    assert running(server) == 1  # all that came while a long answer was in the making


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second address of loopback")
def test_clients_take_turns():
    """Three requests from one address don't hold up another's one, whatever `user` they name."""
    engine = ScriptedEngine([LONG, HELLO], token_s=0.02)
    with live(engine) as server:
        in_background(server)
        server.wait_until(lambda: running(server))
        threads, order = [], []

        def ask(address, user):
            with httpx2.Client(transport=httpx2.HTTPTransport(local_address=address), timeout=300) as client:
                client.post(server.url + CHAT, json=BODY | {"user": user})
            order.append(address)

        for user, address in enumerate(["127.0.0.2", "127.0.0.2", "127.0.0.2", "127.0.0.3"]):
            threads.append(threading.Thread(target=ask, args=[address, str(user)]))
            count = waiting(server)
            threads[-1].start()
            server.wait_until(lambda count=count: waiting(server) > count)
        engine.answers[0] = HELLO
        server.service.scheduler._running[0].cancel()
        for thread in threads:
            thread.join()
        assert order.index("127.0.0.3") <= 1


def command_line(tmp_path, *arguments, **script):
    """`localoss serve` on a scripted engine, as a process."""
    (tmp_path / "models" / MODEL).mkdir(parents=True, exist_ok=True)
    (tmp_path / "script.json").write_text(json.dumps(script))
    process = start_scripted(tmp_path, "serve", MODEL, "--port", "0", *arguments)
    line = process.stderr.readline()
    assert "http://" in line, line + process.stderr.read()
    return process, line.split(" · ")[1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_sigterm_finishes_what_runs(tmp_path):
    answer = "<|channel|>final<|message|>" + "on " * 60 + "<|return|>"
    process, url = command_line(tmp_path, answers=[answer], token_s=0.02)
    results = []

    def ask():
        results.append(httpx2.post(url + "/chat/completions", json=BODY, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread, state in zip(threads, ("running", "waiting"), strict=True):
        thread.start()
        while f"localoss_requests_{state} 1.0" not in httpx2.get(url.replace("/v1", "/metrics")).text:
            assert thread.is_alive()
            time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert process.wait(timeout=30) == 0, process.stderr.read()
    assert sorted(result.status_code for result in results) == [200, 503]
    finished = next(result.json() for result in results if result.status_code == 200)
    assert finished["choices"][0]["finish_reason"] == "stop"
    assert "Traceback" not in process.stderr.read()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize("stream", [False, True])
def test_a_second_signal_ends_what_runs(tmp_path, stream):
    """In order: the client is told, and the log holds no traceback."""
    process, url = command_line(tmp_path, answers=[LONG], token_s=0.02)
    results = []

    def ask():
        results.append(httpx2.post(url + "/chat/completions", json=BODY | {"stream": stream}, timeout=300))

    thread = threading.Thread(target=ask)
    thread.start()
    while "localoss_requests_running 1.0" not in httpx2.get(url.replace("/v1", "/metrics")).text:
        assert thread.is_alive()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(httpx2.HTTPError):
        while httpx2.get(url + "/models").status_code == 200:  # until the first signal is heard
            time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    thread.join()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""
    assert "the server is shutting down" in results[0].text
    assert results[0].status_code == (200 if stream else 503)


def test_what_the_command_line_refuses(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    (tmp_path / "models" / MODEL).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, says in [
            ([MODEL, "--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines ask; that needs --api-key"),
            ([MODEL, "--api-key", " "], "--api-key is empty"),
            ([MODEL, "--port", port], f"port {port} on 127.0.0.1 can't be had"),
            ([MODEL, "--host", "no.such.host.invalid", "--api-key", "k"], "--host no.such.host.invalid"),
        ]:
            assert cli.main(["serve", *arguments]) == 2
            assert says in capsys.readouterr().err
