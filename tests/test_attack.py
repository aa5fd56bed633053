"""A server under attack: eight hostile clients, and two that ask what is asked every day.

`make attack` runs the long form, of ten minutes. Times are told as ratios of those that the two had alone,
in the same sitting, since how fast a machine is says nothing.
"""

import gc
import json
import os
import socket
import time
import weakref
from types import SimpleNamespace

import pytest
from support import attacked
from support.attacked import at, attackers, memory, told, wait_until_idle, watched
from support.live_server import live
from support.scripted import ScriptedEngine

from localoss.server.core import connections
from localoss.server.core.errors import ApiError
from localoss.server.core.keys import Client
from localoss.server.core.models import collect
from localoss.server.core.scheduler import Scheduler

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs addresses and limits of POSIX")


@pytest.fixture
def served(tmp_path):
    """A server of the demo model with a key for each client: its process, its address, its log."""
    with attacked.served(tmp_path) as server:
        yield server


# Turns, and seconds alone and under attack of each: what else the machine does is the same for both.
@pytest.mark.parametrize(
    ("turns", "alone_s", "attack_s"),
    [(1, 0.2, 0.5), pytest.param(10, 15, 60, marks=pytest.mark.soak)],
    ids=["short", "long"],
)
def test_eight_hostile_clients(served, turns, alone_s, attack_s):
    """No error 500 and no traceback at any length; how long others wait, in the long form alone."""
    process, url, log = served
    is_long = turns > 1
    if is_long:
        watched(url, lambda: time.sleep(5))  # warm
        with attackers(url, 20) as (attack, _):
            attack()
    before = memory(process) if is_long else 0
    figures = [[], [], [], []]  # seconds of answers and of /health: alone, and under attack
    for _ in range(turns):
        wait_until_idle(url)
        *alone, faults = watched(url, lambda: time.sleep(alone_s))
        assert not faults
        with attackers(url, attack_s) as (attack, seen):
            *beside, faults = watched(url, attack)
        for values, more in zip(figures, (*alone, *beside), strict=True):
            values += more
        told("attacked", beside[0])
        assert all(sum(statuses.values()) for statuses in seen.values()), "each of them did something"
        assert not [status for statuses in seen.values() for status in statuses if status.startswith("5")]
        assert not faults, faults[:3]
    after = memory(process) if is_long else 0
    alone, health_alone, beside, health = map(sorted, figures)
    for name, values in (("alone", alone), ("attacked", beside), ("/health alone", health_alone)):
        told(name, values)
    told("/health", health)
    ratio, size = at(0.99, beside) / at(0.99, alone), log.stat().st_size
    memories = f"{before / 1e6:.0f} -> {after / 1e6:.0f} MB"
    print(f"p99 {ratio:.2f} x alone; memory {memories}; log {size:,} bytes; {json.dumps(seen)}")
    assert "Traceback" not in log.read_text() and size < 1e6
    if is_long:
        assert ratio <= 3 and health[-1] <= 1 and after <= 1.1 * before


def test_one_client_fills_neither_the_queue_nor_all_places():
    engine = ScriptedEngine()
    scheduler = Scheduler(engine, 4, 3)
    scheduler.stop()
    scheduler._closed = scheduler._stopped = False
    told = {}

    def job(name, number):
        work = SimpleNamespace(prompt=[1], close=lambda: None)
        made = SimpleNamespace(work=work, client=Client(name), follows=False, is_cancelled=False)
        made.is_paused, made.slot = False, None
        made.give = lambda error: told.setdefault((name, number), error.status)
        made.cancel = lambda: setattr(made, "is_cancelled", True)
        return made

    for number in range(7):  # three places and four that wait
        scheduler.submit(job("greedy", number))
    with pytest.raises(ApiError) as refused:
        scheduler.submit(job("greedy", 7))
    assert refused.value.status == 429
    modest = scheduler.submit(job("modest", 0))
    assert told == {("greedy", 6): 429} and scheduler.waiting == 7
    scheduler._is_behind = lambda job: False
    begun = [scheduler._next().client.key for _ in range(3)]
    assert sorted(begun) == ["greedy", "greedy", "modest"] and not modest.is_cancelled


def test_connections_that_come_too_fast_are_not_read_at_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    rate = connections._Rate()
    waits = [rate.wait_s("a") for _ in range(1000)]
    assert not any(waits[:100]) and waits[150] > 0 and max(waits) < connections.HEADERS_S
    assert rate.wait_s("b") == 0
    now[0] += 60
    assert rate.wait_s("a") == 0
    for number in range(3 * connections._MOST_ADDRESSES):
        now[0] += 1
        rate.wait_s(str(number))
    assert len(rate._next_s) <= connections._MOST_ADDRESSES + 1


def test_what_takes_the_loop_long_to_read_is_not_read_at_once(monkeypatch):
    """20,000 trailers of a body take h11 a tenth of a second: an address may take a twentieth of the time."""
    now, waited = [0.0], 0.0
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    rate = connections._Rate()
    for _ in range(100):
        wait_s = rate.reading_wait_s("a", 20_000, 1)
        assert wait_s < connections.HEADERS_S
        now[0] += 0.1 + wait_s
        waited += wait_s
    assert waited > 150 and rate.reading_wait_s("b", 20_000, 1) == 0
    assert sum(rate.reading_wait_s("c", 600, 200) for _ in range(3)) > 0, "two hundred requests in one go"
    assert not any(rate.reading_wait_s("d", 30, 1) for _ in range(10_000)), "what all send is read at once"


def test_lines_of_a_chunked_body_keep_its_address_waiting():
    """A body that says how long it is costs nothing, and trailers little: they end at 16 KiB."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    body, chunked = b"\n" * 100_000, b"Transfer-Encoding: chunked\r\n\r\n"
    with live(ScriptedEngine(), connections=(bounds := connections.Connections())) as server:
        for sent, waits in (
            (head + b"Content-Length: %d\r\n\r\n" % len(body) + body, False),
            (head + chunked + b"0\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", False),
            (head + chunked + b"1\r\n \r\n" * 20_000 + b"0\r\n\r\n", True),
        ):
            with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
                connection.sendall(sent)
                assert connection.recv(65536).startswith(b"HTTP/1.1 400")
            due_s = bounds.rate._next_s["127.0.0.1"] - time.monotonic()
            assert (due_s > 1) == waits, due_s


def test_what_is_loaded_is_left_out_of_later_collections():
    """And is found all the same once a model is let go."""

    class Model:
        def __init__(self):
            self.cycle = self

    model = Model()
    gone = weakref.ref(model)
    try:
        collect()
        before = gc.get_freeze_count()
        assert before > 1000
        del model
        gc.collect()
        assert gone() is not None, "it was left out"
        collect()
        assert gone() is None
    finally:
        gc.unfreeze()
