"""Beyond one machine without Ray: lines that move to other workers, and models that come from elsewhere."""

import asyncio
import contextlib
import json
import shutil
import socket
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from localoss import cli
from localoss.cluster import joining, models
from localoss.cluster.models import HeadFiles, Source, located, source_of
from localoss.errors import ModelError, UsageError
from localoss.server.batches.journal import Journal, read_requests
from localoss.server.batches.running import Lines, Lost

TESTS = Path(__file__).parent


@pytest.fixture
def lines(tmp_path):
    """A batch of so many lines, to be worked on: its Lines, and its journal."""

    def made(count, told=lambda progress: None):
        path = tmp_path / "in.jsonl"
        body = {"url": "/v1/completions", "body": {"prompt": "Hi"}}
        path.write_text("\n".join(json.dumps({"custom_id": f"r{n}", **body}) for n in range(count)))
        journal = Journal(tmp_path / "out.jsonl", tmp_path / "errors.jsonl")
        return Lines(read_requests(path), journal, told, count), journal

    return made


def written(tmp_path, name="out.jsonl.partial"):
    return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]


ANSWER = (200, {"usage": {"completion_tokens": 2}})


def test_lines_of_a_lost_worker_are_others(lines, tmp_path):
    """Workers come, go in the middle of lines, and are slow or fast; each line is written once."""
    left, asked = Counter(), Counter()

    async def run():
        batch, journal = lines(60)

        async def lossy(request):
            left["lossy"] += 1
            await asyncio.sleep(0.001)
            if left["lossy"] > 5:
                raise Lost("power")
            return ANSWER

        async def steady(request):
            asked[request.custom_id] += 1
            await asyncio.sleep(0.002)
            return ANSWER

        async def worker(ask, name):
            try:
                await batch.work(ask, name)
            except Lost:
                left["lost"] += 1

        first = [worker(lossy, "a") for _ in range(3)] + [worker(steady, "b") for _ in range(2)]
        running = [asyncio.create_task(one) for one in first]
        await asyncio.sleep(0.02)
        running.append(asyncio.create_task(worker(steady, "late")))
        await asyncio.gather(*running)
        assert batch.is_done and batch.progress.answered == 60 and batch.progress.tokens == 120
        assert batch.progress.machines["late"] > 0 and sum(batch.progress.machines.values()) == 60
        journal.__exit__()

    asyncio.run(run())
    assert left["lost"] == 3
    assert Counter(one["custom_id"] for one in written(tmp_path)) == Counter(f"r{n}" for n in range(60))


def test_who_is_idle_waits_for_lines_that_may_come_back(lines):
    async def run():
        batch, journal = lines(1)
        may_fail = asyncio.Event()

        async def fails(request):
            await may_fail.wait()
            raise Lost("power")

        async def answers(request):
            return ANSWER

        failing = asyncio.create_task(batch.work(fails))
        await asyncio.sleep(0)
        idle = asyncio.create_task(batch.work(answers, "idle"))
        await asyncio.sleep(0.01)
        assert not idle.done()
        may_fail.set()
        await idle
        with pytest.raises(Lost):
            await failing
        assert batch.progress.machines == {"idle": 1}
        journal.__exit__()

    asyncio.run(run())


def test_cancelled_workers_give_their_lines_back(lines):
    async def run():
        batch, journal = lines(3)

        async def forever(request):
            await asyncio.Event().wait()

        async def answers(request):
            return ANSWER

        stuck = asyncio.create_task(batch.work(forever))
        await asyncio.sleep(0.01)
        stuck.cancel()
        await batch.work(answers)
        assert batch.is_done
        journal.__exit__()

    asyncio.run(run())


def test_a_line_that_ends_machine_after_machine_is_given_up(lines, tmp_path):
    async def run():
        batch, journal = lines(3)

        async def dies(request):
            if request.custom_id == "r1":
                raise Lost("out of memory")
            return ANSWER

        for _ in range(10):
            if not batch.is_done:
                with contextlib.suppress(Lost):
                    await batch.work(dies)
        assert (batch.progress.answered, batch.progress.failed) == (2, 1)
        journal.__exit__()

    asyncio.run(run())
    (error,) = written(tmp_path, "errors.jsonl.partial")
    assert error["custom_id"] == "r1" and error["error"]["code"] == "machines_lost"


# Models


@pytest.fixture
def machines(tmp_path, model, monkeypatch):
    """What makes a machine's home the current one, and the head's model."""

    def at(name):
        monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / name))

    at("head")
    folder = tmp_path / "head" / "models" / "owner--tiny"
    shutil.copytree(model("short"), folder)
    return at, folder


def test_a_model_comes_file_by_file(machines, tmp_path):
    at, folder = machines
    source = source_of("owner/tiny")
    files, asked = HeadFiles(source.folder), []

    def fetch(name, offset, size):
        asked.append(name)
        return files.read(name, offset, size)

    shutil.move(folder, tmp_path / "hidden")  # the other machine doesn't see the head's disk
    files._folder = tmp_path / "hidden"
    at("other")
    copied = located(source, fetch)
    assert copied == tmp_path / "other" / "models" / "owner--tiny"
    theirs = {path.name: path.read_bytes() for path in (tmp_path / "hidden").iterdir()}
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == theirs
    before = len(asked)
    assert located(source, fetch) == copied and len(asked) == before, "it is there now"
    # A copy that was cut goes on; what it has stays.
    (copied / "localoss.json").unlink()
    cut = sorted(copied.glob("layer-*"))[0]
    cut.unlink()
    other = sorted(copied.glob("layer-*"))[-1]
    other.write_bytes(bytes(other.stat().st_size))  # of an earlier model: as large, and another
    del asked[:]
    assert located(source, fetch) == copied and set(asked) == {cut.name, other.name}


def test_what_came_damaged_is_not_kept(machines, tmp_path):
    at, folder = machines
    source, files = source_of("owner/tiny"), HeadFiles(str(folder))
    shutil.copytree(folder, tmp_path / "hidden")
    shutil.rmtree(folder)
    files._folder = tmp_path / "hidden"
    at("other")

    def flips(name, offset, size):
        block = bytearray(files.read(name, offset, size))
        block[-1] ^= 1
        return bytes(block)

    def ends(name, offset, size):
        return files.read(name, offset, size)[:-1] if offset == 0 else b""

    for fetch in (flips, ends):
        with pytest.raises(ModelError, match="came damaged"):
            located(source, fetch)
    left = {path.name for path in (tmp_path / "other" / "models" / "owner--tiny").iterdir()}
    assert left == {"localoss.json.part"}


def test_the_machines_own_and_shared_folders_come_first(machines, tmp_path, model):
    at, folder = machines
    source = source_of("owner/tiny")
    at("other")
    assert located(source, None) == folder, "a folder that both see"
    assert source.served == "owner/tiny" and source_of(str(folder)).served == "owner/tiny"
    own = tmp_path / "other" / "models" / "owner--tiny"
    shutil.copytree(folder, own)
    assert located(source, None) == own
    # One of that name that is another model stays, and the head's comes beside it.
    shutil.rmtree(own)
    shutil.copytree(model("short", attention="int4"), own)
    files = HeadFiles(str(folder))
    hidden = Source(source.name, str(tmp_path / "nowhere"), source.manifest)
    beside = located(hidden, files.read)
    assert beside.name == f"owner--tiny-{source.digest}" and beside.parent == own.parent
    assert located(hidden, files.read) == beside


@pytest.mark.usefixtures("machines")
def test_nobody_has_the_model():
    source = source_of("owner/other")
    assert source == Source("owner/other")
    with pytest.raises(ModelError, match="isn't on this machine, nor on the one that asks"):
        located(source, None)


def test_the_head_gives_no_other_files(machines):
    _, folder = machines
    (folder / "secret").write_text("key")
    files = HeadFiles(str(folder))
    for name in ("secret", "../../secret", "/etc/passwd"):
        with pytest.raises(ModelError, match="no file of"):
            files.read(name, 0, 10)


# What is said in one line


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    request = {"custom_id": "a", "url": "/v1/completions", "body": {"model": "demo", "prompt": "Hi"}}
    Path("in.jsonl").write_text(json.dumps(request))
    assert cli.main(["batch", "in.jsonl", "-o", "out.jsonl", "--ray", "auto"]) == 2
    error = capsys.readouterr().err
    assert error == "error: ray isn't installed: pip install 'localoss[cluster]'\n"
    assert not Path("out.jsonl").exists() and not list(Path().glob("*.partial"))


@pytest.mark.parametrize(
    "address",
    [
        "here",
        "local",
        "ray://127.0.0.1:10001",
        "host:",
        ":6379",
        "host:port",
        "127.0.0.1:1",
        "127.0.0.1:99999",
    ],
)
def test_an_address_where_nobody_is(address):
    with pytest.raises(UsageError) as caught:
        joining._check_reachable(address, address)
    assert str(caught.value).startswith("--ray ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "greeting, says",
    [
        (b"\0\0\x12\x04\0\0\0\0\0", None),  # a frame of settings: gRPC
        (b"HTTP/1.1 400", "no Ray cluster"),
        (b"", "one that uses TLS"),
    ],
)
def test_what_answers_at_an_address(greeting, says):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                connection.sendall(greeting)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        try:
            joining._check_reachable("auto", address)
            assert says is None
        except UsageError as error:
            assert says and says in str(error) and str(error).startswith("--ray auto: ")
        thread.join()


def test_certificates_that_are_none(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.delenv("RAY_TLS_SERVER_CERT", raising=False)
    (tmp_path / "some.crt").write_text("no certificate")
    monkeypatch.setenv("RAY_TLS_CA_CERT", str(tmp_path / "some.crt"))
    with pytest.raises(UsageError, match="RAY_TLS_SERVER_CERT names no file"):
        joining._own_tls("auto")
    for name in ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY"):
        monkeypatch.setenv(name, str(tmp_path / "some.crt"))
    with pytest.raises(UsageError, match="are no certificates"):
        joining._own_tls("auto")


def test_a_lost_head_is_told_once(monkeypatch):
    monkeypatch.setattr(joining, "_WATCH_S", 0)
    looks = iter(range(10))
    ray = SimpleNamespace(is_initialized=lambda: next(looks, None) is not None)
    told = []
    joining._watch_head(ray, "127.0.0.1:1", told.append)
    assert len(told) == 1 and "127.0.0.1:1, is lost" in told[0]


def test_what_ray_says_becomes_a_line():
    mismatch = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.12.1\n"
        "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.2\n"
    )
    told = joining._told("10.0.0.1:6379", RuntimeError(mismatch))
    assert told == (
        "--ray 10.0.0.1:6379: the cluster has Ray 2.50.0 with Python 3.12.1, this machine Ray 2.60.0 with "
        "Python 3.11.2; install the same on both"
    )
    assert "ray start" in joining._told("auto", ConnectionError("Could not find any running Ray instance."))
    assert "\n" not in joining._told("auto", RuntimeError("first\nsecond"))
    refused = joining._told("auto", ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379"))
    assert "RAY_AUTH_TOKEN" in refused and "RAY_TLS_" in refused


def test_public_addresses_are_told():
    told = []
    joining.warn_if_public(["10.0.0.1", "192.168.1.2", "127.0.0.1", "host"], told.append)
    assert not told
    joining.warn_if_public(["10.0.0.1", "8.8.8.8"], told.append)
    assert len(told) == 1 and "8.8.8.8" in told[0] and "docs/cluster.md" in told[0]


def test_other_versions_are_told():
    assert joining.check_version("10.0.0.2", "0.0.1").startswith("10.0.0.2 has localoss 0.0.1")


def test_a_copy_has_blocks_that_rays_store_takes():
    assert models.BLOCK_BYTES <= 16 << 20


def test_a_batch_may_have_a_spread_model(tmp_path, monkeypatch):
    """It is loaded as for any command then, and answers here."""
    from localoss.cli import loading

    asked = []
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text(
        json.dumps({"custom_id": "a", "url": "/v1/completions", "body": {"model": "demo", "prompt": "Hi"}})
    )

    def load(name, options, *_, **__):
        asked.append((name, options.ray, options.spread))
        raise UsageError("far enough")

    monkeypatch.setattr(loading, "load_model", load)
    assert cli.main(["batch", "in.jsonl", "-o", "out.jsonl", "--ray", "auto", "--spread"]) == 2
    assert asked == [("demo", "auto", True)]
