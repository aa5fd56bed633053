"""What is stored has bounds, outlives a clock that jumps, and a full disk costs only the storing."""

import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.live_server import MODEL, live
from support.scripted import ScriptedEngine

from localoss.chat.harmony import Message
from localoss.chat.tools import Thoughts
from localoss.server.core import response_store
from localoss.server.core.response_store import KEPT_DAYS, Record, ResponseStore, StoreError

DAY_S = 86_400


def record(name, created_at=0.0, previous=None, text="", **more):
    return Record(
        {"id": name, "created_at": created_at, **more}, previous, [Message("user", text or name)], {}, []
    )


def test_the_oldest_go_once_there_are_too_many_bytes(tmp_path):
    path = tmp_path / "server" / "responses.sqlite3"
    store = ResponseStore(path, most_bytes=400_000)
    now = time.time()
    for number in range(100):
        store.put(record(f"r{number}", now + number, text="x" * 20_000))
        assert store._stored_bytes() <= 400_000
    kept = [number for number in range(100) if store.response(f"r{number}")]
    assert kept == list(range(kept[0], 100)) and 5 < len(kept) < 30
    store.close()
    assert path.stat().st_size < 1_000_000, "the space was given back"


def test_a_clock_that_jumps_removes_nothing_at_once(tmp_path, monkeypatch):
    path, began = tmp_path / "responses.sqlite3", time.time()
    now = began

    monkeypatch.setattr(response_store.time, "time", lambda: now)
    store = ResponseStore(path)
    store.put(record("a", began))
    now = began + 40 * DAY_S  # wrong, or the machine was off
    store.put(record("b", now))
    store.close()
    store = ResponseStore(path)
    assert store.response("a") and store.response("b")
    now = began + 3600  # it was wrong
    store.put(record("c", now))
    now = began + 2 * DAY_S
    store.put(record("d", now))
    assert store.response("a")
    now = began + 40 * DAY_S  # it was right
    store.put(record("e", now))
    now += 1.5 * DAY_S
    store.put(record("f", now))
    assert store.response("a") is None and store.response("e")
    store.close()
    assert KEPT_DAYS < 40


def test_a_conversation_has_a_bound(monkeypatch):
    monkeypatch.setattr(response_store, "_MOST_CHAIN", 10)
    store = ResponseStore(None)
    for number in range(12):
        store.put(record(f"r{number}", number, f"r{number - 1}" if number else None))
    assert len(store.conversation("r9")[0]) == 10
    for name in ("r10", "r11"):
        with pytest.raises(StoreError, match="begin a new one"):
            store.conversation(name)
    monkeypatch.setattr(response_store, "_MOST_CHAIN_BYTES", 500)
    store.put(record("long", 20, "r2", text="x" * 1000))
    with pytest.raises(StoreError, match="begin a new one"):
        store.conversation("long")
    store.delete("r1")
    assert store.conversation("r2") is None


def test_what_cannot_be_stored_is_answered_all_the_same(caplog):
    with live(ScriptedEngine()) as server:
        body = {"model": MODEL, "input": "Hi"}
        first = server.post("/v1/responses", body).json()
        assert first["store"] and server.get(f"/v1/responses/{first['id']}").status_code == 200
        database = server.service.store._database
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count={pages}").fetchall()
        told = server.post("/v1/responses", body | {"metadata": {"a": "x" * 500}, "input": "Hi " * 2000})
        answer = told.json()
        assert told.status_code == 200 and answer["status"] == "completed" and answer["store"] is False
        assert server.get(f"/v1/responses/{answer['id']}").status_code == 404
        assert "full" in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "metadata",
    [{"a": "x" * 513}, {"k" * 65: "a"}, {f"k{n}": "a" for n in range(17)}, {"a": 1}],
    ids=["value", "key", "count", "type"],
)
def test_metadata_has_openais_bounds(metadata):
    with live(ScriptedEngine()) as server:
        answer = server.post("/v1/responses", {"model": MODEL, "input": "Hi", "metadata": metadata})
        assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("metadata")


FULL = """
import os, sys, time
from pathlib import Path
from localoss.chat.harmony import Message
from localoss.server.core.response_store import Record, ResponseStore, StoreError

def record(name):
    return Record({"id": name, "created_at": time.time()}, None, [Message("user", "x" * 50_000)], {}, [])

folder = Path(sys.argv[1])
store = ResponseStore(folder / "store" / "responses.sqlite3")
for number in range(5):
    store.put(record(f"r{number}"))
filler = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(filler, bytes(4096))
except OSError:
    pass
try:
    for number in range(5, 100):
        store.put(record(f"r{number}"))
except StoreError as error:
    assert "full" in str(error), error
else:
    raise SystemExit("the disk wasn't full")
for number in range(number):
    assert store.response(f"r{number}"), number
    assert store.delete(f"r{number}"), number
store.put(record("again"))
assert store.response("again")
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_deleting_works_on_a_full_disk(tmp_path):
    mount = f'mount -t tmpfs -o size=2m none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, FULL]
    root = Path(__file__).parent.parent
    if subprocess.run(
        ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", str(tmp_path)],
        capture_output=True,
    ).returncode:
        pytest.skip("this system lets nobody mount")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert done.returncode == 0, done.stderr


def test_kept_thoughts_have_a_bound_in_characters():
    thoughts = Thoughts(capacity=100, most_chars=1000)
    for number in range(50):
        thoughts.keep(f"call{number}", [Message("assistant", "x" * 100, "analysis")])
    assert thoughts.before("call39") is None and thoughts.before("call40")
    thoughts.keep("call49", [Message("assistant", "short", "analysis")])
    thoughts.keep("huge", [Message("assistant", "x" * 5000, "analysis")])
    assert thoughts.before("huge") is None and thoughts._chars == 0


@pytest.mark.parametrize("value", [None, "x", b"\xff", "[[", "5", '[{"a": 1}]'])
def test_what_is_damaged_inside_is_told(tmp_path, value):
    """Values of other kinds than were written, which SQLite itself takes for nothing wrong."""
    path = tmp_path / "server" / "responses.sqlite3"
    path.parent.mkdir()
    with sqlite3.connect(path) as database:  # as damaged pages have it, which keep to no constraint
        for table in (response_store._TABLE, response_store._CLOCK):
            database.execute(table.replace(" NOT NULL", ""))
    store = ResponseStore(path)
    store.put(Record({"id": "a", "created_at": time.time()}, None, [], {}, []))
    store.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE responses SET messages = ?, response = ?", [value, value])
        database.execute("UPDATE clock SET looked = ?, trusted_from = ?", [value, value])
    store = ResponseStore(path)
    with pytest.raises(StoreError, match="can't be read"):
        store.conversation("a")
    if value not in ("5", '[{"a": 1}]'):
        with pytest.raises(StoreError, match="can't be read"):
            store.response("a")
    store.put(Record({"id": "b", "created_at": time.time()}, None, [], {}, []))
    assert store.conversation("b") == ([], {})
    store.close()
