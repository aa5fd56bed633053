"""A server of the demo model, two clients that ask as people do daily, and those that attack it meanwhile."""

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil

from support.demo import put_into

_ATTACKERS = Path(__file__).with_name("attackers.py")
_NAMES = ["good-0", "good-1", *(f"hostile-{number}" for number in range(8))]
# Else httpx2 reads all of the system's certificates for each request, which keeps the other clients waiting.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_QUESTIONS = ["What is 1 + 2?", "What is 7 times 8?", "Who are you?", "Name a color."]


@contextmanager
def served(folder):
    """A server with a key for each client, its files in `folder`: its process, its address, its log."""
    keys = folder / "keys.txt"
    keys.write_text("".join(f"{name} {name}-0123456789\n" for name in _NAMES))
    keys.chmod(0o600)
    command = [sys.executable, "-m", "localoss", "serve", "demo", "--port", "0", "--api-key-file", str(keys)]
    log, home = folder / "log", put_into(folder / "home")
    with open(log, "w") as said:
        process = subprocess.Popen(
            command, stderr=said, stdout=said, env=os.environ | {"LOCALOSS_HOME": str(home)}
        )
    try:
        while "Ctrl-C ends" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        line = next(line for line in log.read_text().splitlines() if "Ctrl-C ends" in line)
        yield process, line.split(" · ")[1].removesuffix("/v1"), log
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()


class Good(threading.Thread):
    """A client that asks one question after the other. seconds: how long each took."""

    def __init__(self, url, number):
        super().__init__(daemon=True)
        self.url, self.number = url, number
        self.seconds, self.faults = [], []
        self.over = threading.Event()

    def run(self):
        headers = {"Authorization": f"Bearer good-{self.number}-0123456789"}
        transport = httpx2.HTTPTransport(
            local_address=f"127.0.0.{2 + self.number}" if sys.platform == "linux" else None
        )
        with httpx2.Client(base_url=self.url, headers=headers, timeout=120, transport=transport) as client:
            number = 0
            while not (self.seconds and self.over.is_set()):  # one at least
                number += 1
                asked = [{"role": "user", "content": _QUESTIONS[number % len(_QUESTIONS)]}]
                body = {"model": "demo", "messages": asked, "max_tokens": 12, "temperature": 0}
                began = time.monotonic()
                try:
                    answer = client.post("/v1/chat/completions", json=body)
                    if answer.status_code != 200:
                        self.faults.append(f"{answer.status_code} {answer.text[:200]}")
                except httpx2.HTTPError as error:
                    self.faults.append(repr(error))
                self.seconds.append(time.monotonic() - began)


class Pulse(threading.Thread):
    """Asks /health ten times a second, on a new connection each time."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.seconds, self.over = url, [], threading.Event()

    def run(self):
        while not (self.over.wait(0.1) and self.seconds):
            began = time.monotonic()
            try:
                answered = httpx2.get(self.url + "/health", timeout=60, verify=_NO_TLS).status_code == 200
            except httpx2.HTTPError:
                answered = False
            self.seconds.append(time.monotonic() - began if answered else float("inf"))


def watched(url, during):
    """What two good clients and a pulse saw meanwhile: seconds, seconds of /health, faults."""
    threads = [Good(url, 0), Good(url, 1), Pulse(url)]
    for thread in threads:
        thread.start()
    during()
    for thread in threads:
        thread.over.set()
    for thread in threads:
        thread.join(timeout=180)
    good, pulse = threads[:2], threads[2]
    return (
        sorted(s for one in good for s in one.seconds),
        sorted(pulse.seconds),
        good[0].faults + good[1].faults,
    )


@contextmanager
def attackers(url, seconds, kinds=()):
    """A process that attacks for so long: what this gives has it begin, and waits; later, what it saw.

    kinds: which of the eight there are, all if none is named.
    """
    command = [sys.executable, str(_ATTACKERS), url.rpartition(":")[2], str(seconds), *kinds]
    seen = {}

    def attack():
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(seconds)

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield attack, seen
        seen.update(json.loads(process.communicate()[0]))
    assert process.returncode == 0


def at(share, values):
    return values[min(int(share * len(values)), len(values) - 1)]


def memory(process):
    """Bytes of the server and the processes that it started, once it had time to give back what it can."""
    time.sleep(12)
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return sum(one.memory_info().rss for one in tree)


def told(name, values):
    spread = f"p50 {at(0.5, values):.3f}, p99 {at(0.99, values):.3f}, at most {values[-1]:.3f} s"
    print(f"{name}: {len(values)} answers, {spread}", flush=True)


def wait_until_idle(url):
    """What the attackers left behind is none of the time alone."""
    until = time.monotonic() + 90
    headers = {"Authorization": "Bearer good-0-0123456789"}
    while time.monotonic() < until:
        figures = httpx2.get(url + "/metrics", headers=headers, timeout=60).text
        if "requests_running 0.0" in figures and "requests_waiting 0.0" in figures:
            return
        time.sleep(0.2)
