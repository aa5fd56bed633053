"""Several keys on one server: what one key's requests leave behind is seen with no other."""

import json
import os
import stat
import time
from types import SimpleNamespace

import pytest
from support.live_server import MODEL, live
from support.scripted import ScriptedEngine

import localoss
from localoss import cli
from localoss.chat.harmony import Message
from localoss.chat.tools import Thoughts
from localoss.engine.sequence import Sequence
from localoss.engine.slot import Slot
from localoss.errors import UsageError
from localoss.options import SamplingParams
from localoss.server.batches.batches import Batches
from localoss.server.batches.store import FileStore
from localoss.server.core import keys as keys_module
from localoss.server.core import rates
from localoss.server.core.keys import Client, Keys
from localoss.server.core.pool import SequencePool
from localoss.server.core.response_store import Record, ResponseStore
from localoss.server.core.scheduler import Scheduler

ANNA, BERT = "anna-0123456789", "bert-0123456789"
SECRET = "The combination of the safe in the cellar is seven, nineteen, four. " * 4
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text(f"# who, and the key\n\nanna {ANNA}\n  bert\t{BERT}  \n")
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def engine(model):
    return localoss.load(model("harmony"), context_tokens=2048, threads=1, slots=4)


def sent(key):
    return {"headers": {"Authorization": f"Bearer {key}"}}


def question(text=SECRET):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 2}


def cached(server, key, text=SECRET):
    answer = server.post(CHAT, question(text), **sent(key))
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("conversations", [1, 4], ids=["one sequence", "several"])
def test_no_key_learns_what_another_asked(engine, key_file, conversations):
    """Not even how its prompts begin: what all have in common is a cache of each key's own, too."""
    with live(engine, keys=Keys("host-key", key_file), conversations=conversations) as server:
        assert cached(server, ANNA) == 0
        assert cached(server, ANNA) > 50
        assert cached(server, BERT) == 0
        assert cached(server, "host-key") == 0
        assert cached(server, BERT, SECRET[:200] + "?") == 0 or conversations > 1
        if conversations > 1:
            assert cached(server, ANNA) > 50 and cached(server, BERT) > 50


def test_nobody_waits_behind_anothers_prompt():
    """Who waits to copy a prompt that is being read could tell by the time that it is the same."""
    prompt = list(range(200))
    scheduler = Scheduler(ScriptedEngine(chunk_tokens=512), 8, 3)
    scheduler.stop()

    def job(key, slot, adapter=None):
        work = SimpleNamespace(prompt=prompt)
        return SimpleNamespace(client=Client(key), slot=slot, behind=None, work=work, adapter=adapter)

    reading = Slot(Sequence(None, None), prompt, SamplingParams())
    scheduler._running = [job("anna", reading)]
    assert scheduler._is_behind(job("anna", None))
    reading.sequence.tokens = [7] * 300
    assert scheduler._is_behind(job("anna", None)), (
        "what it has of another conversation is dropped once it begins"
    )
    reading.sequence.tokens = prompt[:150]
    assert scheduler._is_behind(job("anna", None))
    reading.sequence.tokens = prompt
    assert not scheduler._is_behind(job("anna", None))
    reading.sequence.tokens, reading.prompt = [], prompt + [1] * 20_000
    assert not scheduler._is_behind(job("anna", None)), "it reads hundreds more in the same pass"
    reading.prompt = prompt
    assert not scheduler._is_behind(job("bert", None))
    assert not scheduler._is_behind(job("anna", None, "another"))


def test_the_pool_alone():
    pool = SequencePool(ScriptedEngine(), 2)
    first = pool.reserve([1, 2, 3], "a")
    first.tokens = list(range(1, 40))
    other = pool.take([*range(1, 40), 50], "b")  # the held one isn't copied
    assert other is not first and other.tokens == []
    other.tokens = [7, 8]
    pool.give_back(first)
    taken = pool.take([1, 2, 3], "c")  # no room: the least recently used, emptied
    assert taken is first and taken.tokens == [] and taken.snapshots == []


def test_thoughts_are_told_to_their_key_alone():
    thoughts = Thoughts()
    thoughts.of("a").keep("call_1", [Message("assistant", "so", "analysis")])
    assert thoughts.of("a").before("call_1") and thoughts.of("b").before("call_1") is None


def test_stored_responses_are_their_keys(key_file):
    with live(ScriptedEngine(), keys=Keys(None, key_file)) as server:
        made = server.post(RESPONSES, {"model": MODEL, "input": SECRET}, **sent(ANNA)).json()
        path = f"{RESPONSES}/{made['id']}"
        for other in ("", "/input_items"):
            assert server.get(path + other, **sent(ANNA)).status_code == 200
            assert server.get(path + other, **sent(BERT)).status_code == 404
        follow = {"model": MODEL, "input": "Repeat it.", "previous_response_id": made["id"]}
        answer = server.post(RESPONSES, follow, **sent(BERT))
        assert answer.json()["error"]["code"] == "previous_response_not_found"
        reference = {"model": MODEL, "input": [{"type": "item_reference", "id": made["output"][0]["id"]}]}
        refused = [server.post(RESPONSES, reference, **sent(key)).status_code for key in (ANNA, BERT)]
        assert refused == [200, 400] or refused == [200, 404]
        assert server.post(RESPONSES, follow, **sent(ANNA)).status_code == 200


def test_an_item_of_another_key_is_not_replaced():
    store = ResponseStore(None)

    def put(name, text, key):
        item = {"id": "msg_1", "content": text}
        store.put(Record({"id": name, "created_at": time.time()}, None, [], {}, [item], key))

    put("resp_a", "mine", "a")
    put("resp_b", "forged", "b")
    assert store.item("msg_1", "a")["content"] == "mine" and store.item("msg_1", "b") is None
    put("resp_a2", "newer", "a")
    assert store.item("msg_1", "a")["content"] == "newer"
    assert not store.delete("resp_a", "b") and store.delete("resp_a", "a")


def test_responses_of_before_there_were_keys_are_the_servers_own(tmp_path):
    import sqlite3

    path = tmp_path / "server" / "responses.sqlite3"
    store = ResponseStore(path)
    store.put(Record({"id": "resp_1", "created_at": time.time()}, None, [], {}, []))
    store.close()
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE responses DROP COLUMN key")
    store = ResponseStore(path)
    assert store.response("resp_1") and store.response("resp_1", "anna") is None
    store.close()


def test_files_and_batches_are_their_keys(key_file, tmp_path):
    line = {"custom_id": "1", "method": "POST", "url": CHAT, "body": question("Hi")}
    engine = ScriptedEngine()
    with live(engine, keys=Keys(None, key_file)) as server:
        server.models.batches = Batches(FileStore(tmp_path / "files"), 2)
        client = server.client(default_headers=sent(ANNA)["headers"])
        file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        server.wait_until(lambda: client.batches.retrieve(batch.id).status == "completed")
        done = client.batches.retrieve(batch.id)
        assert '"status_code":200' in client.files.content(done.output_file_id).text
        for path in (
            f"/v1/files/{file.id}", f"/v1/files/{file.id}/content", f"/v1/files/{done.output_file_id}",
            f"/v1/files/{done.output_file_id}/content", f"/v1/batches/{batch.id}",
        ):  # fmt: skip
            answer = server.get(path, **sent(ANNA))
            assert answer.status_code == 200 and "localoss_key" not in answer.text
            assert server.get(path, **sent(BERT)).status_code == 404, path
        assert server.post(f"/v1/batches/{batch.id}/cancel", {}, **sent(BERT)).status_code == 404
        wanted = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
        assert server.post("/v1/batches", wanted, **sent(BERT)).status_code == 404
        for path in ("/v1/files", "/v1/batches"):
            listed = [server.get(path, **sent(key)).json()["data"] for key in (ANNA, BERT)]
            assert listed[0] and not listed[1] and "localoss_key" not in listed[0][0]
        asked = server.get("/metrics", **sent(ANNA)).text
    assert 'localoss_key_tokens_total{key="anna",kind="completion"}' in asked


def test_metrics_count_by_key(key_file):
    with live(ScriptedEngine(), keys=Keys("host-key", key_file)) as server:
        for key in (ANNA, ANNA, BERT, "host-key"):
            assert server.post(CHAT, question("Hi"), **sent(key)).status_code == 200
        assert server.post(CHAT, {"model": "none"}, **sent(BERT)).status_code == 400
        text = server.get("/metrics", **sent(BERT)).text
    assert 'localoss_key_requests_total{key="anna",status="200"} 2.0' in text
    assert 'localoss_key_requests_total{key="bert",status="400"} 1.0' in text
    assert 'localoss_key_tokens_total{key="anna",kind="prompt"}' in text
    assert ANNA not in text and 'key=""' not in text


def test_what_a_key_may_have_in_a_minute(tmp_path, monkeypatch):
    now, file = [1000.0], tmp_path / "keys.txt"
    monkeypatch.setattr(rates, "time", SimpleNamespace(monotonic=lambda: now[0]))
    file.write_text(f"anna {ANNA} requests=2\nbert {BERT} tokens=5 requests=1000 # no comment\n")
    with pytest.raises(UsageError, match="line 2 is no name"):
        Keys(None, file)
    file.write_text(f"anna {ANNA} requests=2\nbert {BERT} tokens=5 requests=1000\n")
    with live(ScriptedEngine(), keys=Keys("host-key", file)) as server:

        def ask(key):
            now[0] += 10
            return server.post(CHAT, question("Hi"), **sent(key))

        assert [ask(ANNA).status_code for _ in range(2)] == [200, 200]
        refused = ask(ANNA)
        assert refused.status_code == 429 and refused.headers["Retry-After"] == "40"
        assert "the key 'anna' may have 2 requests a minute; try again in 40 s" in refused.text
        assert server.get("/v1/models", **sent(ANNA)).status_code == 200, "to look costs little"
        assert ask(BERT).status_code == 200
        assert "may have 5 tokens a minute" in ask(BERT).text
        assert ask("host-key").status_code == 200
        text = server.get("/metrics", **sent(BERT)).text
        assert 'localoss_key_requests_per_minute{key="anna"} 2.0' in text
        assert float(text.partition('localoss_key_tokens_per_minute{key="bert"} ')[2].split()[0]) > 5
        now[0] += 60
        assert ask(ANNA).status_code == 200


def test_models_and_the_pages_sessions_are_the_hosts(key_file):
    from test_page import PAGE

    with live(ScriptedEngine(), keys=Keys("host-key", key_file), page=PAGE) as server:
        answer = server.get("/localoss/sessions", **sent(ANNA))
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden_key")
        assert server.get("/localoss/sessions", **sent("host-key")).status_code == 200


def test_a_file_that_changes_is_read_again(key_file, monkeypatch, caplog):
    monkeypatch.setattr(keys_module, "_LOOK_EVERY_S", -1.0)
    keys = Keys(None, key_file)
    assert keys.name(ANNA.encode()) == "anna" and keys.name(b"other") is None
    new = key_file.with_suffix(".new")
    new.write_text("anna another-key\n")
    os.replace(new, key_file)
    assert keys.name(ANNA.encode()) is None and keys.name(b"another-key") == "anna"
    key_file.write_text("nonsense\n")
    assert keys.name(b"another-key") == "anna" and keys.name(b"another-key") == "anna"
    assert sum("stay" in record.message for record in caplog.records) == 1
    key_file.unlink()
    assert keys.name(b"another-key") == "anna"
    key_file.write_text(f"carl {BERT}\n")
    assert keys.name(BERT.encode()) == "carl" and keys.name(b"another-key") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no key in it"),
        ("# nothing\n", "there is no key in it"),
        (f"anna {ANNA} more\n", "line 1 is no name"),
        (f"anna {ANNA} requests=0\n", "line 1 is no name"),
        (f"anna {ANNA} tokens=1.5\n", "line 1 is no name"),
        ("anna short\n", "line 1 is no name"),
        (f'anna {ANNA}\n"}} 1 {ANNA}\n', "line 2 is no name"),
        (f"anna {ANNA}\nanna {BERT}\n", "line 2: the name anna"),
        (f"anna {ANNA}\nbert {ANNA}\n", "line 2: its key"),
        ("x" * (1 << 21), "larger than 1 MiB"),
        ("\x00\xff" * 99, "line 1 is no name"),
    ],
)
def test_files_that_are_none(tmp_path, text, says):
    file = tmp_path / "keys.txt"
    file.write_text(text)
    with pytest.raises(UsageError, match=says) as raised:
        Keys(None, file)
    assert ANNA not in str(raised.value) and "\n" not in str(raised.value)


def test_what_the_command_says_of_a_file(tmp_path, key_file, capsys, monkeypatch):
    from localoss.hub import registry
    from localoss.server import run

    started = []
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    monkeypatch.setattr(registry, "find_model", lambda name, tell: tmp_path / name)
    monkeypatch.setattr(run, "serve", lambda *given: started.append(given[2]))
    assert cli.main(["serve", "m", "--api-key-file", str(tmp_path / "none.txt"), "--port", "0"]) == 2
    assert "No such file" in capsys.readouterr().err
    assert cli.main(["serve", "m", "--api-key-file", str(key_file), "--port", "0"]) == 0
    assert "other users" not in capsys.readouterr().err and started[0].page is None
    if os.name == "posix":
        key_file.chmod(stat.S_IRUSR | stat.S_IRGRP)
        assert cli.main(["serve", "m", "--api-key-file", str(key_file), "--port", "0"]) == 0
        assert "can be read by other users; chmod 600" in capsys.readouterr().err
    for origin in ("*", "null"):
        assert cli.main(["serve", "m", "--cors-origin", origin, "--port", "0"]) == 2
        assert "lets every web page" in capsys.readouterr().err
    assert cli.main(["serve", "m", "--cors-origin", "*", "--api-key", "k", "--port", "0"]) == 0
