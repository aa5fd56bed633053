"""Several models behind one server: which there are, which is in memory, and who waits for which."""

import gc
import json
import threading
import time
import weakref

import httpx2
import pytest
from support.live_server import live
from support.scripted import ScriptedEngine

from localoss.errors import ModelError
from localoss.options import LoadOptions
from localoss.server.core.catalogue import Catalogue, Entry
from localoss.server.core.models import Models
from localoss.server.core.pool import SequencePool
from localoss.server.core.scheduler import Scheduler
from localoss.server.core.service import Service

NAMES = ("ann", "ben", "owner/cat")
PLENTY, SCARCE = 100_000_000_000, 350_000_000  # bytes: the plan has 240 MB for a program, so twice that


class Machine:
    """Engines that were loaded, how many lived at once, and how loading them goes."""

    def __init__(self):
        self.engines, self.most_alive = [], 0
        self.loaded, self.token_s, self.load_s, self.error = [], 0.0, 0.0, None

    def alive(self):
        return sum(engine() is not None for engine in self.engines)

    def load(self, folder, options):
        time.sleep(self.load_s)
        if self.error:
            raise ModelError(self.error)
        gc.collect()
        name = folder.name.replace("--", "/") if folder.name in ("ben", "owner--cat") else "ann"
        answer = f"<|channel|>final<|message|>I am {name}. I said so.<|return|>"
        engine = ScriptedEngine([answer], context_tokens=options.context_tokens, token_s=self.token_s)
        self.engines.append(weakref.ref(engine))
        self.loaded.append(name)
        self.most_alive = max(self.most_alive, self.alive())
        return engine


@pytest.fixture(scope="module", autouse=True)
def _what_other_tests_left_is_kept():
    """Each model that is loaded here has all garbage collected: so what is none isn't looked at each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def served(model, tmp_path, monkeypatch, machine):
    """Start a server with three models installed, of which the first is in memory."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    for name in NAMES:
        (tmp_path / "models" / name.replace("/", "--")).symlink_to(model("harmony"), target_is_directory=True)
    contexts = []

    def start(engine, name):
        return Service(engine, name, Scheduler(engine, 8), SequencePool(engine, 2))

    def serve(memory_limit=SCARCE, idle_s=None, capacity=16, folder=tmp_path / "models" / "ann"):
        loading = LoadOptions(context_tokens=2048, memory_limit=memory_limit)
        first = Entry("ann", folder)
        catalogue = Catalogue(first, loading, machine.load, aliases=["boss"])
        models = Models(
            start(catalogue.load(first), "ann"), catalogue, start, idle_s=idle_s, capacity=capacity
        )
        contexts.append(live(None, models=models))
        return contexts[-1].__enter__()

    yield serve
    for context in contexts:
        context.__exit__(None, None, None)


def ask(server, name, **body):
    asked = {"model": name, "messages": [{"role": "user", "content": "Who are you?"}], **body}
    return server.post("/v1/chat/completions", asked)


def said(server, name):
    answer = ask(server, name)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def states(server):
    return {one["id"]: one["status"]["value"] for one in server.get("/v1/models").json()["data"]}


def test_every_installed_model_is_there_and_loaded_when_it_is_named(served, machine):
    server = served()
    assert states(server) == dict.fromkeys(NAMES, "unloaded") | {"ann": "loaded", "boss": "loaded"}
    for name in ("ben", "owner/cat", "boss", "ann", "ben"):
        assert said(server, name) == f"I am {'ann' if name == 'boss' else name}. I said so."
    assert machine.loaded == ["ann", "ben", "owner/cat", "ann", "ben"] and machine.most_alive == 1
    assert [name for name, state in states(server).items() if state == "loaded"] == ["ben"]
    assert server.get("/v1/models/owner/cat").json()["context_length"] == 2048
    tags = server.get("/api/tags").json()["models"]
    assert [one["name"] for one in tags] == list(NAMES) and all(one["size"] > 1000 for one in tags)


def test_two_are_in_memory_where_there_is_room_for_both(served, machine):
    server = served(PLENTY)
    for name in (*NAMES, *NAMES):
        assert name in said(server, name)
    assert machine.loaded == list(NAMES) and machine.most_alive == 3
    assert len(server.get("/api/ps").json()["models"]) == 3


def test_a_name_that_none_has_says_which_there_are(served):
    answer = ask(served(), "dan")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    assert all(f"`{name}`" in answer.json()["error"]["message"] for name in NAMES)


def test_a_model_is_kept_until_its_answers_are_out_and_turns_are_taken(served, machine):
    """Streams of one model, requests for others among them: all are answered whole, one model at a time."""
    machine.token_s = 0.005
    server, answers, threads = served(), {}, []

    def stream(index, name):
        asked = {"model": name, "stream": True, "input": "Who?"}
        text = server.post("/v1/responses", asked).text
        answers[index] = json.loads(text.splitlines()[-2].removeprefix("data: "))["response"]

    for index in range(6):
        threads.append(threading.Thread(target=stream, args=(index, NAMES[index % 3])))
        threads[-1].start()
    for thread in threads:
        thread.join(timeout=120)
    for index in range(6):
        assert answers[index]["status"] == "completed" and answers[index]["model"] == NAMES[index % 3]
        assert answers[index]["output"][-1]["content"][0]["text"] == f"I am {NAMES[index % 3]}. I said so."
    assert machine.most_alive == 1


def test_a_model_that_nobody_asks_for_leaves_memory_and_comes_back(served, machine):
    server = served(idle_s=0.2)
    assert "ann" in said(server, "ann")
    server.wait_until(lambda: not server.models.held())
    assert "loaded" not in states(server).values()
    gc.collect()
    assert not machine.alive() and "localoss_requests_waiting 0.0" in server.get("/metrics").text
    assert "ann" in said(server, "ann") and machine.loaded == ["ann", "ann"]


def test_ollamas_keep_alive(served, machine):
    server = served(idle_s=60)
    for keep, left_s in ((-1, None), ("2h", 7200), (300, 300)):
        asked = {"model": "ben", "prompt": "Hi", "stream": False, "keep_alive": keep}
        assert server.post("/api/generate", asked).status_code == 200
        (there,) = server.get("/api/ps").json()["models"]
        assert there["name"] == "ben" and there["expires_at"].startswith("9999") == (left_s is None)
    done = server.post("/api/generate", {"model": "ben", "keep_alive": 0}).json()
    assert done["done_reason"] == "unload" and server.get("/api/ps").json() == {"models": []}
    assert server.post("/api/generate", {"model": "ben", "keep_alive": 0}).status_code == 200
    assert machine.loaded == ["ann", "ben"]  # to unload none is loaded
    assert server.post("/api/chat", {"model": "ann", "keep_alive": "soon"}).status_code == 400
    assert server.post("/api/generate", {"model": "ann"}).json()["done_reason"] == "load"
    assert machine.loaded == ["ann", "ben", "ann"]


def test_a_model_that_cannot_be_loaded_takes_no_other_with_it(served, machine):
    server = served()
    machine.error = "ben: the folder is damaged"
    answer = ask(server, "ben")
    assert answer.status_code == 500 and "damaged" in answer.json()["error"]["message"]
    machine.error = None
    assert "ann" in said(server, "ann") and "ben" in said(server, "ben")


def test_who_goes_away_while_a_model_loads_holds_nothing(served, machine):
    server = served()
    machine.load_s = 0.5
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(
            server.url + "/v1/responses",
            json={"model": "ben", "input": "Hi"},
            timeout=httpx2.Timeout(9, read=0.2),
        )
    machine.load_s = 0.0
    assert "cat" in said(server, "owner/cat")  # would wait for ever for one that nobody gives back
    server.wait_until(lambda: not any(held.uses for held in server.models.held()))


def test_only_so_many_wait_for_a_model(served, machine):
    server = served(capacity=1)
    machine.load_s = 1.0
    thread = threading.Thread(target=ask, args=(server, "ben"))
    thread.start()
    server.wait_until(lambda: server.models._waiting)
    answer = ask(server, "owner/cat")
    assert answer.status_code == 429 and answer.headers["retry-after"]
    thread.join()


def test_deleting(served, tmp_path):
    server = served()

    def delete(name):
        return httpx2.request("DELETE", server.url + "/api/delete", json={"model": name}, timeout=60)

    assert "ben" in said(server, "ben")
    assert delete("ben").status_code == 200
    assert not (tmp_path / "models" / "ben").exists() and "ben" not in states(server)
    assert delete("ben").status_code == 404 and ask(server, "ben").status_code == 404
    assert "cat" in said(server, "owner/cat")


def test_a_model_outside_the_store_is_not_deleted(served, model):
    server = served(folder=model("harmony"))
    answer = httpx2.request("DELETE", server.url + "/api/delete", json={"model": "ann"}, timeout=60)
    assert answer.status_code == 400 and "outside the store" in answer.json()["error"]
    assert "ann" in said(server, "ann")
