"""Nothing malformed at temperature 1.5, and a server that stays orderly among unruly clients."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx2
import psutil
import pytest
from support.demo import put
from support.malformed import check_generations
from support.unruly import ACTS, Unruly

import localoss

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def engines(model, tmp_path_factory):
    """Random weights, and the demo model's."""
    demo = put(tmp_path_factory.mktemp("models") / "demo")
    folders = {"noise": model("harmony"), "demo": demo}
    return {name: localoss.load(folder, context_tokens=1024, threads=1) for name, folder in folders.items()}


@pytest.mark.parametrize("count", [18, pytest.param(2000, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("weights", "bonus"),
    [("noise", 0.0), ("noise", 16.0), ("demo", 0.0)],
    ids=["noise", "noise that ends", "demo"],
)
def test_no_generation_is_malformed(engines, weights, bonus, count):
    seen = check_generations(engines[weights], count, max_tokens=60, bonus=bonus)
    print(f"\n{count} generations: {seen}")
    assert sum(seen.values()) == count
    assert {"tool_calls", "structured"} <= set(seen)


@pytest.fixture
def served(model, tmp_path):
    """`localoss serve` on noise, as a process of its own: its URL and its process."""
    command = [sys.executable, "-m", "localoss", "serve", str(model("harmony")), "--port", "0"]
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(
            [*command, "--context", "1024", "--threads", "1", "--queue", "32"],
            env=os.environ | {"LOCALOSS_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
            stderr=log,
        )
        while "http://" not in (said := (tmp_path / "log").read_text()):
            assert process.poll() is None, said
            time.sleep(0.1)
        yield said.split(" · ")[1].removesuffix("/v1"), process
        process.terminate()
        assert process.wait(timeout=60) == 0
        log = (tmp_path / "log").read_text()
        assert "Traceback" not in log and "socket.send() raised" not in log


@contextmanager
def fuzzed(url, seconds, folder):
    """Meanwhile schemathesis makes bodies from the served OpenAPI document; it meets no error 500."""
    pytest.importorskip("schemathesis", reason="pip install 'localoss[soak]'")
    command = [str(Path(sys.executable).with_name("st")), "run", f"{url}/openapi.json", "--no-color"]
    command += ["--max-time", str(seconds), "--checks", "not_a_server_error", "--request-timeout", "300"]
    with open(folder / "fuzz", "w+") as said:
        fuzzer = subprocess.Popen(command, stdout=said, stderr=said, cwd=folder)
        try:
            yield
            code = fuzzer.wait(timeout=300)
        finally:
            fuzzer.kill()
        said.seek(0)
        told = said.read()
        print(told[-1500:])
        assert code == 0, told[-8000:]


@pytest.mark.parametrize(
    ("seconds", "clients", "each"), [(300, 6, 1), pytest.param(600, 16, None, marks=pytest.mark.soak)]
)
def test_unruly_clients(served, seconds, clients, each, tmp_path):
    """Clients of ten kinds: no error 500, nothing mixed up, nobody starved, memory flat once it is warm."""
    url, process = served
    started, sizes = time.monotonic(), []

    def measure():
        sizes.append((time.monotonic() - started, psutil.Process(process.pid).memory_info().rss))

    unruly = Unruly(url, "harmony", seconds, clients, each)
    with fuzzed(url, seconds, tmp_path) if each is None else nullcontext():
        unruly.run(between=measure)
    assert not unruly.faults, unruly.faults[:5]
    warm = [size for at, size in sizes if at > 0.3 * sizes[-1][0]]
    growth = warm[-1] / warm[0] - 1
    print(f"\n{[f'{at:.0f} s: {size / 1e6:.1f} MB' for at, size in sizes[:: len(sizes) // 20 or 1]]}")
    print(f"{dict(unruly.outcomes)}\nRSS {warm[-1] / 1e6:.0f} MB, {growth:+.2%} since warm-up")
    assert {act for act, _ in unruly.outcomes} == ACTS
    if each is None:
        assert growth < 0.02
        for waits in unruly.waits.values():
            assert max(waits) <= 3 * (sum(waits) / len(waits)), "somebody starved"
    assert httpx2.get(url + "/health").json() == {"status": "ok"}
    while "localoss_requests_running 0.0" not in httpx2.get(url + "/metrics").text:
        time.sleep(0.05)
