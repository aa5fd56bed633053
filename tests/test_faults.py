"""kill -9 and full disks in a container of one processor and 2 GB: nothing that was told is lost.

Conversions and pulls have their own: test_interrupted.py, test_pull_kills.py; chats: test_sessions.py.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx2
import pytest
from support.demo import put
from support.faults import FULL, Faults
from support.forks import outcome, preload

from localoss import cli

ROOT = Path(__file__).parent.parent
LOCALOSS = [sys.executable, "-m", "localoss"]
FULL_DISK = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's control groups and namespaces")


@pytest.fixture(scope="module")
def container():
    """What comes before a command to run it with one processor and 2 GB; nothing where that can't be had."""
    groups = []
    limits = {"cpu": {"cpu.cfs_period_us": 100_000, "cpu.cfs_quota_us": 100_000},
              "memory": {"memory.limit_in_bytes": 2 << 30}}  # fmt: skip
    for kind, values in limits.items():
        folder = Path("/sys/fs/cgroup", kind, f"localoss-faults-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(OSError):
            folder.mkdir()
            for name, value in values.items():
                (folder / name).write_text(str(value))
            groups.append(folder)
    enter = "".join(f"echo $$ > {folder / 'cgroup.procs'}; " for folder in groups)
    yield ["sh", "-c", f'{enter}exec "$@"', "sh"]
    for folder in groups:
        for _ in range(100):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.05)


@pytest.fixture
def variables(tmp_path):
    """Kernels and models are those of the machine; all else is the test's."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return os.environ | {
        "LOCALOSS_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": cache,
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of the demo model."""
    return put(tmp_path_factory.mktemp("home") / "models" / "demo")


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(said):
    assert "Traceback" not in said and "a bug" not in said, said
    return said


@pytest.mark.parametrize(
    ("name", "form", "kills"),
    [
        ("short", [], 1),
        pytest.param("harmony", [], 50, marks=pytest.mark.soak),
        pytest.param("harmony", ["--gguf"], 50, marks=pytest.mark.soak),
    ],
)
def test_exports_that_are_killed(name, form, kills, model, container, variables, tmp_path):
    """The same command makes it whole; until then nothing has the finished name."""
    numbers, folder, whole = random.Random(kills), model(name), tmp_path / "whole"

    def export(out):
        command = [*container, *LOCALOSS, "export", str(folder), str(out), *form]
        return subprocess.Popen(
            command, env=variables, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    began = time.monotonic()
    first = export(whole)
    assert first.wait(timeout=300) == 0, first.stderr.read()
    took_s, out = time.monotonic() - began, tmp_path / "out"
    for _ in range(kills):
        process = export(out)
        time.sleep(numbers.uniform(0.3, 1) * took_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        told(process.stderr.read())
        if form and out.exists():
            assert out.read_bytes() == whole.read_bytes()
        elif (out / "model.safetensors.index.json").exists():
            assert all(files_of(whole).get(name) == content for name, content in files_of(out).items())
    last = export(out)
    code, said = last.wait(timeout=300), told(last.stderr.read())
    assert code == 0 or "already" in said or "exists" in said, said
    assert (files_of(out) == files_of(whole)) if not form else (out.read_bytes() == whole.read_bytes())


class Server:
    """`localoss serve demo` in the container, on a folder of responses that outlives it."""

    def __init__(self, before, demo, variables):
        self.process = subprocess.Popen(
            [*before, *LOCALOSS, "serve", str(demo), "--port", "0"],
            env=variables,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in self.process.stderr:
            told(line)
            if "Ctrl-C ends" in line:
                self.url = line.split(" · ")[1]
                return
        raise AssertionError("it didn't begin")

    def respond(self, text):
        body = {"model": "demo", "input": text, "max_output_tokens": 2}
        return httpx2.post(self.url + "/responses", json=body, timeout=120)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stderr.close()


@pytest.mark.parametrize("kills", [1, pytest.param(100, marks=pytest.mark.soak)])
def test_servers_that_are_killed(kills, container, demo, variables):
    """Every response whose id a client has is there afterwards, whole."""
    numbers, known = random.Random(kills), {}
    for _ in range(kills):
        server = Server(container, demo, variables)
        try:
            for name in numbers.sample(sorted(known), min(3, len(known))):
                found = httpx2.get(f"{server.url}/responses/{name}", timeout=60)
                assert found.status_code == 200 and found.json()["output"] == known[name]
            for _ in range(numbers.randrange(1, 4)):
                answer = server.respond("Hi").json()
                known[answer["id"]] = answer["output"]
        finally:
            time.sleep(numbers.uniform(0, 0.05))
            server.kill()
    server = Server(container, demo, variables)
    try:
        for name, output in known.items():
            assert httpx2.get(f"{server.url}/responses/{name}", timeout=60).json()["output"] == output
    finally:
        server.kill()


def on_a_disk_of(size, place, *before):
    """Run with a file system of so many bytes at `place`."""
    place.mkdir(parents=True, exist_ok=True)
    probe = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh", size, str(place)]
    if not shutil.which("unshare") or subprocess.run([*probe, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare, and the right to use it")
    return [*before, *probe]


@pytest.mark.parametrize(
    "size", ["4k", *(pytest.param(size, marks=pytest.mark.soak) for size in ("16k", "64k", "256k", "1m"))]
)
def test_a_chat_on_a_full_disk(size, container, demo, variables, tmp_path):
    """It is answered; a line says that it isn't kept, or its cache isn't."""
    small = tmp_path / "small"
    command = [*on_a_disk_of(size, small, *container), *LOCALOSS, "chat", str(demo), "--session", "x"]
    given = {"input": "Hi\nWho are you?\n", "capture_output": True, "text": True}
    chat = subprocess.run(command, env=variables | {"LOCALOSS_HOME": str(small)}, **given)
    assert chat.returncode in (0, 1, 2) and chat.stderr.count("error:") <= 1, told(chat.stderr)
    assert "demo model" in chat.stdout or chat.stderr.count("error:") == 1
    assert "space" in chat.stderr.lower() or "full" in chat.stderr or size in ("256k", "1m"), chat.stderr


def test_a_server_on_a_full_disk(container, demo, variables, tmp_path):
    """Answers go on; what can't be stored says so, and can't be asked for."""
    small = tmp_path / "home" / "server"
    server = Server(on_a_disk_of("96k", small, *container), demo, variables)
    try:
        stored = []
        for number in range(12):
            answer = server.respond(f"{number} " * 400)
            assert answer.status_code == 200, answer.text
            stored.append(answer.json()["store"])
        assert not all(stored)
        assert httpx2.get(server.url.removesuffix("/v1") + "/health", timeout=60).status_code == 200
    finally:
        server.kill()


@pytest.mark.forks
@pytest.mark.parametrize("every", [25, pytest.param(1, marks=pytest.mark.soak)])
def test_an_export_on_a_disk_that_is_full_from_any_step_on(every, model, tmp_path, monkeypatch):
    """One line; and with room again the same command makes it whole."""
    folder, whole = model("short"), tmp_path / "whole"
    preload()

    def export(out, patch=None, at=None):
        def work():
            if patch:
                Faults(patch, FULL, at)
            return cli.main(["export", str(folder), str(out)])

        return outcome(work)

    assert export(whole).code == 0
    with pytest.MonkeyPatch.context() as patch:
        steps = len(count_steps(patch, folder, tmp_path / "counted"))
    for at in range(0, steps, every):
        out = tmp_path / f"out{at}"
        ended = export(out, monkeypatch, at)
        ended.check(at)
        assert ended.code == 0 or "the disk is full" in ended.said, ended
        assert export(out).code in (0, 2)
        assert files_of(out) == files_of(whole), at


def count_steps(patch, folder, out):
    faults = Faults(patch)
    cli.main(["export", str(folder), str(out)])
    return faults.steps
