"""/api/pull of Ollama's API: another model comes from the hub, and the server has it."""

import json
import sys
import threading
from contextlib import contextmanager

import httpx2
import pytest
from support.hub_fixtures import NAME, home, hub, published
from support.hub_server import STALL
from support.live_server import live
from support.scripted import ScriptedEngine

from localoss.hub.registry import installed_models
from localoss.server.core.pulls import Pulls

__all__ = ["home", "hub", "published"]
HEADER_BYTES = 128 << 10
# What plays localoss.hub.told: three lines, then whatever a file of the model's name says.
PLAYED = """
import json, pathlib, sys, time
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
(folder / "starts").open("a").write(name + " ")
for done in (0, 5, 7):
    print(json.dumps({"file": "one", "digest": "a" * 64, "done": done, "total": 10}), flush=True)
while not (folder / "end").exists():
    time.sleep(0.02)
print((folder / "end").read_text(), flush=True)
"""


@pytest.fixture
def server(home, hub):
    with live(ScriptedEngine()) as server:
        yield server


@pytest.fixture
def played(home, tmp_path):
    """A server whose pulls are played: they wait for the file `end`, whose content is their last line."""
    with live(ScriptedEngine()) as server:
        server.models.pulls = Pulls((sys.executable, "-S", "-c", PLAYED, str(tmp_path)))
        server.folder = tmp_path
        yield server


@contextmanager
def pulling(server, name=NAME):
    """The lines of a pull as they come; whoever leaves hangs up."""
    with httpx2.stream("POST", f"{server.url}/api/pull", json={"model": name}, timeout=300) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        yield (json.loads(line) for line in answer.iter_lines())


def is_over(server):
    """Whether the process of the last pull is gone."""
    return server.models.pulls._running._task.done()


def came(lines, least_bytes=1):
    """The first line about a file of which something is here."""
    return next(line for line in lines if line.get("completed", 0) >= least_bytes)


def own_threads():
    """Those of this process, without the hub's, which may be stalling, and the server's pool, which stays."""
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if not name.startswith("beside_") and "process_request" not in name}


def check_bars(lines, files):
    """Each of `files` has a bar of its own, drawn to its end before the next one's begins."""
    bars = {}
    for line in lines:
        assert bars.get(line["digest"]) is None or line["digest"] == list(bars)[-1]
        bars.setdefault(line["digest"], []).append(line)
    assert [told[-1]["completed"] for told in bars.values()] == [path.stat().st_size for path in files]
    for digest, told in bars.items():
        assert digest.startswith("sha256:") and len(digest) == 71
        assert {line["status"] for line in told} == {f"pulling {digest[7:19]}"}
        assert {line["total"] for line in told} == {told[-1]["completed"]}
        done = [line["completed"] for line in told]
        assert done == sorted(done)


def test_who_leaves_ends_it_and_the_next_one_goes_on(server, hub):
    """What came stays, no process and no thread does; then a model comes with a bar for each file."""
    first, second, third = sorted(hub.folder.glob("*.safetensors"))
    hub.faults[second.name] = [None, STALL]  # after its header
    threads = own_threads()
    with pulling(server) as lines:
        size = second.stat().st_size
        assert next(line for line in lines if line.get("total") == size and line["completed"] == size // 2)
    server.wait_until(lambda: is_over(server) and own_threads() <= threads)
    assert server.get("/api/tags").json()["models"][0]["name"] == "tiny"
    hub.served.clear()
    with pulling(server) as lines:
        begun, *more, ended = lines
    assert (begun, ended) == ({"status": "pulling manifest"}, {"status": "success"})
    assert hub.served[first.name] <= HEADER_BYTES < hub.served[second.name]
    check_bars([line for line in more if "digest" in line], [second, third])
    assert installed_models() == ["gpt-oss-20b"]
    assert server.post("/api/pull", {"model": NAME, "stream": False}).json() == {"status": "success"}


def test_what_fails_is_the_last_line(server, hub):
    (hub.folder / "config.json").write_text("{}")
    with pulling(server) as lines:
        *_, last = lines
    assert list(last) == ["error"] and "\n" not in last["error"]
    assert installed_models() == []


@pytest.mark.parametrize("name", ["nothing-of-that-name", "--help", "../../etc", "a/b/c"])
def test_names_that_stand_for_nothing(server, name):
    answer = server.post("/api/pull", {"model": name})
    assert answer.status_code == 404 and list(answer.json()) == ["error"]


def test_a_pull_goes_on_while_somebody_waits_for_it(played):
    with pulling(played) as late:
        with pulling(played, "gpt-oss:20b") as lines:  # the same model
            came(lines, 7), came(late, 7)
        other = played.post("/api/pull", {"model": "openai/gpt-oss-120b"})
        assert other.status_code == 429 and "gpt-oss-20b" in other.json()["error"]
        assert not is_over(played)
        with pulling(played) as latest:  # who comes later sees how far it is
            assert came(latest)["completed"] == 7
            (played.folder / "end").write_text('{"pulled": "it"}')
            assert [list(lines)[-1] for lines in (late, latest)] == [{"status": "success"}] * 2
    assert (played.folder / "starts").read_text() == "gpt-oss-20b "


@pytest.mark.parametrize("stream", [True, False])
def test_the_last_one_who_leaves_ends_it(played, stream):
    def ask():
        with httpx2.Client(base_url=played.url, timeout=0.5) as client:
            client.post("/api/pull", json={"model": NAME, "stream": stream}).read()

    for starts in (1, 2):
        with pytest.raises(httpx2.ReadTimeout):
            ask()
        played.wait_until(lambda: is_over(played))
        assert (played.folder / "starts").read_text() == "gpt-oss-20b " * starts


@pytest.mark.parametrize("last", ['{"error": "the disk is full"}', "", "no JSON"])
def test_without_a_stream_a_failure_is_a_status(played, last):
    (played.folder / "end").write_text(last)
    answer = played.post("/api/pull", {"model": NAME, "stream": False})
    assert answer.status_code == 500 and list(answer.json()) == ["error"]
    assert answer.json()["error"] == "the disk is full" or "log" in answer.json()["error"]


def test_a_server_that_goes_down_ends_a_pull(played):
    with pulling(played) as lines:
        came(lines)
        played.models.pulls._running._task.get_loop().call_soon_threadsafe(played.models.refuse_waiting)
        assert "shutting down" in list(lines)[-1]["error"]
    assert is_over(played)
    assert played.post("/api/pull", {"model": NAME}).status_code == 503
