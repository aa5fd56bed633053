"""Whatever lies in the user's folders may be damaged: models, sessions, saved caches, stores, kernels.

Each case is a process that is forked from this one: it ends with a line and code 1 or 2, or as if nothing
were wrong, within five seconds of processor time and 500 MB. Listings of a hub: test_hostile_hub.py.
"""

import hashlib
import os
import random
import shutil
import sqlite3
import sys
import textwrap

import pytest
from support.forks import outcome, preload
from support.mutations import mutate_bytes, mutate_json, mutate_safetensors

import localoss
from localoss import cli
from localoss.chat.harmony import encoding
from localoss.server.core.response_store import Record, ResponseStore

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows can't fork"),
    pytest.mark.forks,
]


def rounds(short, long):
    """So many cases in make test, and in the soak."""
    return pytest.mark.parametrize("count", [short, pytest.param(long, marks=pytest.mark.soak)])


@pytest.fixture(scope="module", autouse=True)
def ready():
    preload()
    encoding()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LOCALOSS_DEBUG", raising=False)
    return tmp_path / "home"


def command(*arguments):
    return lambda: cli.main([str(one) for one in arguments])


def damage(numbers, path):
    """Change a file as its kind is changed; or cut it, empty it, or put something else in its place."""
    content = path.read_bytes()
    act = numbers.randrange(12)
    if act == 0:
        path.unlink()
    elif act == 1:
        path.unlink()
        path.mkdir()
    elif act == 2:
        path.unlink()
        path.symlink_to(numbers.choice(["nowhere", "/dev/null", "/", path.name]))
    elif act == 3:
        path.write_bytes(content[: numbers.randrange(len(content) + 1)])
    elif act == 4:
        path.write_bytes(numbers.choice([b"", b"\0" * 4096, b"null", b"[]", b"\xff\xfe"]))
    elif path.suffix == ".json":
        path.write_bytes(mutate_json(numbers, content))
    elif path.suffix == ".safetensors":
        path.write_bytes(mutate_safetensors(numbers, content))
    else:
        path.write_bytes(mutate_bytes(numbers, content))
    return act


def damaged_tree(numbers, base, place):
    """A copy of `base` at `place` in which one to three files are damaged; what was done."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    chosen = numbers.sample(files, min(numbers.choice([1, 1, 1, 2, 3]), len(files)))
    return [(path.name, damage(numbers, path)) for path in chosen]


def generate(folder):
    def work():
        engine = localoss.load(folder, context_tokens=64, threads=1)
        list(engine.generate([1, 2, 3], max_tokens=2))
        return 0

    return work


@rounds(16, 4000)
def test_models(count, model, home, tmp_path):
    base, place, failed = model("short"), tmp_path / "model", 0
    for seed in range(count):
        numbers = random.Random(seed)
        done = damaged_tree(numbers, base, place)
        kinds = [command("show", place), command("verify", place), command("plan", place), generate(place)]
        ended = outcome(numbers.choice([*kinds, command("show", place, "--json")]))
        ended.check((seed, done))
        failed += ended.code > 0
    assert failed > count / 4


@pytest.fixture(scope="module")
def chatted(tmp_path_factory):
    """The data folder after a chat with the demo model that is kept: a session, and its cache."""
    home = tmp_path_factory.mktemp("chatted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALOSS_HOME", str(home))
        ended = outcome(command("chat", "demo", "--session", "x", "--context", "1024"), b"What is 1 + 2?\n")
    assert ended.code == 0 and (home / "sessions" / "x" / "cache" / "index.json").exists(), ended
    return home


@rounds(16, 2500)
def test_sessions(count, chatted, home, tmp_path):
    place = home / "sessions"
    for seed in range(count):
        numbers = random.Random(seed)
        done = damaged_tree(numbers, chatted / "sessions", place)
        kinds = [
            command("sessions", "list"),
            command("sessions", "show", "x"),
            command("sessions", "list", "--json"),
        ]
        kinds += [
            command("sessions", "export", "x", tmp_path / f"{seed}.{numbers.choice(['md', 'txt', 'json'])}")
        ]
        outcome(numbers.choice(kinds)).check((seed, done))


@rounds(2, 400)
def test_saved_caches(count, chatted, home):
    """A chat goes on with them, or reads its conversation anew."""
    place = home / "sessions"
    shutil.copytree(chatted / "models", home / "models")
    for seed in range(count):
        numbers = random.Random(seed)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(chatted / "sessions", place)
        files = sorted(path for path in (place / "x" / "cache").iterdir() if path.is_file())
        done = [
            (path.name, damage(numbers, path)) for path in numbers.sample(files, numbers.choice([1, 1, 2]))
        ]
        ended = outcome(command("chat", "demo", "--session", "x", "--context", "1024"), b"Hi\n")
        ended.check((seed, done))
        assert ended.code == 0, (seed, done, ended)


@pytest.fixture
def store(home, tmp_path):
    """A data folder of everything else that is kept."""
    base = tmp_path / "base"
    for folder in ("models/a", "models/b--c", "sources/a", "server/running", "server/files"):
        (base / folder).mkdir(parents=True)
    (base / "config.toml").write_text('model = "a"\ntemperature = 0.5\n[presets.x]\nsystem = "s"\n')
    (base / "models.toml").write_text('["mine"]\nrepository = "owner/name"\nparameters = 20e9\n')
    (base / "sources/a/pull.json").write_text('{"repository": "owner/name", "commit": "' + "0" * 40 + '"}')
    (base / "server/running" / f"{os.getpid()}.json").write_text(
        '{"url": "http://127.0.0.1:9", "started": 1.5}'
    )
    kept = ResponseStore(base / "server" / "responses.sqlite3")
    for number in range(20):
        kept.put(Record({"id": f"resp_{number}", "created_at": 2e9}, None, [], {}, [{"id": f"i{number}"}]))
    kept.close()
    with sqlite3.connect(base / "documents.sqlite3") as database:
        database.execute("CREATE TABLE documents (a, b)")
    return base


def look(path):
    def work():
        kept = ResponseStore(path)
        kept.response("resp_3")
        kept.conversation("resp_4")
        kept.put(Record({"id": "resp_new", "created_at": 2e9}, None, [], {}, []))
        kept.close()
        return 0

    return work


@rounds(16, 2500)
def test_stores(count, store, home):
    for seed in range(count):
        numbers = random.Random(seed)
        done = damaged_tree(numbers, store, home)
        kinds = [
            command("list"),
            command("list", "--json"),
            command("config"),
            command("ps"),
            command("docs", "list"),
        ]
        kinds += [
            command("show", "a"),
            command("plan", "mine"),
            look(home / "server" / "responses.sqlite3"),
        ] * 2
        outcome(numbers.choice(kinds)).check((seed, done))


KERNEL = """
import numba
from pathlib import Path
from quant.format.kernel_cache import KernelFolder
folder = KernelFolder([Path(__file__)], "tests")
def three(x):
    return x + 3
three = folder.cached(numba.njit(three))
"""


@rounds(2, 200)
def test_kernels(count, tmp_path, monkeypatch):
    """Files that don't fit their checksum, and such as do but hold something else, are compiled anew."""
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cached_kernel.py").write_text(textwrap.dedent(KERNEL))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))

    def run():
        from quant.format import kernel_cache

        kernel_cache.kernel_root.cache_clear()
        sys.modules.pop("cached_kernel", None)
        from cached_kernel import three

        assert three(4) == 7
        return 0

    assert outcome(run).code == 0
    (file,) = (tmp_path / "cache").rglob("*.kernel")
    whole = file.read_bytes()
    for seed in range(count):
        numbers = random.Random(seed)
        content = mutate_bytes(numbers, whole[32:])
        is_sealed = numbers.random() < 0.3 and not content.startswith(whole[32:40])
        file.write_bytes((hashlib.sha256(content).digest() if is_sealed else whole[:32]) + content)
        if numbers.random() < 0.2:
            file.write_bytes(whole[: numbers.randrange(len(whole))])
        ended = outcome(run)
        ended.check(seed)
        assert ended.code == 0, (seed, ended)
