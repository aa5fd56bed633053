"""One endpoint before several replicas: who is asked, what is tried again, and what is counted."""

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import pytest
import uvicorn
from support.live_server import MODEL, one_model
from support.scripted import HELLO, ScriptedEngine

from localoss.server.balancing.front import build_front
from localoss.server.balancing.members import Gone, Member, Members
from localoss.server.balancing.prefixes import PrefixTable, beginnings
from localoss.server.balancing.replica import Replica, ReplicaOptions
from localoss.server.core.keys import Keys
from localoss.server.core.metrics import Metrics, summed
from localoss.server.core.response_store import ResponseStore

CHAT = "/v1/chat/completions"


def user(text):
    return {"role": "user", "content": text}


def chat(*messages, **more):
    return {"model": MODEL, "messages": list(messages), **more}


def test_a_second_turn_begins_as_the_first():
    table = PrefixTable()
    first = beginnings("", chat({"role": "system", "content": "S"}, user("a")))
    table.note(first, "one")
    turn = chat(
        {"role": "system", "content": "S"}, user("a"), {"role": "assistant", "content": "b"}, user("c")
    )
    assert table.find(beginnings("", turn)) == "one"
    for other in (
        chat({"role": "system", "content": "S"}, user("b")),  # the system message alone is everybody's
        chat({"role": "system", "content": "T"}, user("a")),
        chat({"role": "system", "content": "S"}, user("a"), model="other"),
        chat({"role": "system", "content": "S"}, user("a"), tools=[{"type": "function"}]),
        {"model": MODEL, "prompt": "a"},
        [],
        None,
        {"messages": 3, "input": {"x": 1}},
    ):
        assert table.find(beginnings("", other)) is None
    assert table.find(beginnings("another key", turn)) is None
    table.forget("one")
    assert table.find(beginnings("", turn)) is None


@pytest.mark.parametrize("name", ["input", "prompt", "messages"])
def test_all_apis_have_beginnings(name):
    table = PrefixTable()
    texts = {"prompt": "x" * 5000}
    first = texts.get(name, [user("a")])
    longer = first + ("y" * 3000 if name == "prompt" else [user("b")])
    table.note(beginnings("", {name: first}), "one")
    assert table.find(beginnings("", {name: longer})) == "one"


def test_the_table_is_bounded():
    table = PrefixTable(most_keys=10)
    for number in range(20):
        table.note(beginnings("", {"input": [user(str(number))]}), str(number))
    found = [table.find(beginnings("", {"input": [user(str(number))]})) for number in range(20)]
    assert found == [None] * 10 + [str(number) for number in range(10, 20)]


def members_of(*slots):
    members = Members(patience_s=0.2)
    members.all += [Member(f"m{number}", count, None) for number, count in enumerate(slots)]
    return members


def test_conversations_stay_and_long_queues_spill_over():
    async def run():
        members = members_of(2, 2)
        asked = beginnings("", chat(user("a")))
        first = await members.take(asked, set())
        others = [await members.take(beginnings("", chat(user(str(n)))), set()) for n in range(3)]
        assert [first, *others].count(first) == 2, "who begins anew goes where least runs"
        assert await members.take(asked, set()) is first, "it waits there, for the queue is short"
        for one in others:
            if one is not first:
                members.give_back(one)
        assert await members.take(asked, set()) is first
        assert await members.take(asked, set()) is not first and members.spilled == 1

    asyncio.run(run())


def test_it_waits_for_a_replica_but_not_for_ever():
    async def run():
        members = members_of(1)
        members.all[0].is_open = False
        assert await members.take(beginnings("", None), set()) is None
        waiting = asyncio.create_task(members.take(beginnings("", None), set()))
        await asyncio.sleep(0.01)
        members.all[0].is_open = True
        await members.changed()
        assert await waiting is members.all[0]

    asyncio.run(run())


class Replicas:
    """Replicas on scripted engines behind a front, served. fails: by name, how many requests break off."""

    def __init__(self, count, keys=None, **options):
        self.engines = [ScriptedEngine([HELLO], slots=2) for _ in range(count)]
        self.store, self.fails, self.asked = ResponseStore(None), {}, []
        self.members, self.replicas = Members(patience_s=5), []
        self.keys, self.options = keys, options

    def __enter__(self):
        ready = threading.Event()

        async def main():
            for number, engine in enumerate(self.engines):
                replica = Replica(engine, one_model(engine, MODEL, ()).catalogue.first.folder,
                                  ReplicaOptions(MODEL), self.store)  # fmt: skip
                self.replicas.append(replica)
                name = f"m{number}"
                await self.members.add(Member(name, replica.slots, self._asking(name, replica)))

            async def metrics():
                return summed([replica.metrics() for replica in self.replicas])

            app = build_front(self.members, metrics, hosts={"127.0.0.1"}, keys=self.keys, **self.options)
            config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off")
            self.server = uvicorn.Server(config)
            task = asyncio.create_task(self.server.serve())
            while not self.server.started:
                await asyncio.sleep(0.01)
            self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
            self.loop = asyncio.get_running_loop()
            ready.set()
            await task

        self.thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        self.thread.start()
        assert ready.wait(60)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(30)
        for replica in self.replicas:
            replica.close()

    def _asking(self, name, replica):
        async def ask(asked):
            self.asked.append((name, asked.path))
            after = self.fails.get(name)
            async for number, message in _numbered(replica.answer(asked)):
                if after is not None and number >= after:
                    raise Gone
                yield message

        return ask

    def post(self, path, body, **options):
        import httpx2

        return httpx2.post(self.url + path, json=body, timeout=60, **options)

    def get(self, path, **options):
        import httpx2

        return httpx2.get(self.url + path, timeout=60, **options)


async def _numbered(messages):
    number = 0
    async for message in messages:
        yield number, message
        number += 1


def test_every_api_is_answered_and_counted_together():
    with Replicas(2) as there:
        for number in range(4):
            answer = there.post(CHAT, chat(user(f"q{number}"))).json()
            assert answer["choices"][0]["message"]["content"] == "Hello!"
        assert {name for name, _ in there.asked} == {"m0", "m1"}
        message = {"model": MODEL, "max_tokens": 50, "messages": [user("Hi")]}
        assert there.post("/v1/messages", message).json()["content"][-1]["text"] == "Hello!"
        assert there.post("/api/chat", {"model": MODEL, "messages": [user("Hi")], "stream": False}).json()[
            "done"
        ]
        streamed = there.post(CHAT, chat(user("s"), stream=True)).text
        assert streamed.startswith("data: {") and streamed.rstrip().endswith("[DONE]")
        assert there.get("/v1/models").status_code == 200
        assert there.post(CHAT, {"model": "gpt-x", "messages": [user("a")]}).status_code == 404
        assert there.post(CHAT, chat(user("x" * (17 << 20)))).status_code == 413
        text = there.get("/metrics").text
        name = f'localoss_requests_total{{path="{CHAT}",status="200"}} '
        line = next(one for one in text.splitlines() if one.startswith(name))
        assert line.endswith(" 5.0")
        assert there.get("/health").json() == {"status": "ok"}
        assert there.get("/health", headers={"Host": "evil.example"}).status_code == 403


def test_responses_go_on_wherever_they_are_asked():
    with Replicas(2) as there:
        first = there.post("/v1/responses", {"model": MODEL, "input": "Hi"}).json()
        home = there.asked[-1][0]
        follows = {"model": MODEL, "input": "More", "previous_response_id": first["id"]}
        assert there.post("/v1/responses", follows).status_code == 200 and there.asked[-1][0] == home
        next(one for one in there.members.all if one.name == home).is_open = False
        assert there.post("/v1/responses", follows).status_code == 200 and there.asked[-1][0] != home
        assert there.get(f"/v1/responses/{first['id']}").json()["id"] == first["id"]


def test_what_fails_before_its_answer_is_asked_of_another():
    with Replicas(2) as there:
        there.fails = {"m0": 0}
        for number in range(6):
            assert there.post(CHAT, chat(user(str(number)))).status_code == 200
        assert there.asked.count(("m0", CHAT)) > 0
        there.asked.clear()
        there.fails = {"m0": 1}  # between an answer's start and its body, the client has nothing yet
        for number in range(6):
            assert there.post(CHAT, chat(user(f"{number} again"))).status_code == 200
        assert there.asked.count(("m0", CHAT)) > 0


GONE = "the machine that wrote this answer, is gone; ask again, and another one answers"
STREAMS = {
    CHAT: (chat(user("s"), stream=True), lambda text: _events(text)[-1]["error"]["message"]),
    "/v1/completions": (
        {"model": MODEL, "prompt": "s", "stream": True},
        lambda text: _events(text)[-1]["error"]["message"],
    ),
    "/v1/responses": (
        {"model": MODEL, "input": "s", "stream": True},
        lambda text: _events(text)[-1]["message"],
    ),
    "/v1/messages": (
        {"model": MODEL, "max_tokens": 50, "stream": True, "messages": [user("s")]},
        lambda text: _events(text)[-1]["error"]["message"],
    ),
    "/api/chat": (
        {"model": MODEL, "messages": [user("s")]},
        lambda text: json.loads(text.splitlines()[-1])["error"],
    ),
}


def _events(text):
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(one) for one in data if one != "[DONE]"]


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_whose_machine_is_lost_says_so_in_a_line(path, caplog):
    body, told = STREAMS[path]
    with Replicas(2) as there:
        there.fails = {"m0": 2, "m1": 2}
        answer = there.post(path, body)
        assert answer.status_code == 200 and GONE in told(answer.text)
        assert len(there.asked) == 1
    assert [record.message for record in caplog.records if "broke off" in record.message] == [
        f"an answer broke off: {there.asked[0][0]} is gone"
    ]


def test_a_replica_that_goes_down_refuses_and_another_answers():
    with Replicas(2) as there:
        there.replicas[0]._service.scheduler.refuse_waiting()
        for number in range(6):
            assert there.post(CHAT, chat(user(str(number)))).status_code == 200
        there.replicas[1]._service.scheduler.refuse_waiting()
        assert there.post(CHAT, chat(user("x"))).status_code == 503


def test_a_client_that_leaves_ends_its_answer():
    with Replicas(1) as there:
        there.engines[0].token_s = 0.05
        there.engines[0].replies = None
        import httpx2

        with httpx2.stream(
            "POST", there.url + CHAT, json=chat(user("long"), stream=True), timeout=60
        ) as answer:
            next(answer.iter_lines())
        end = time.monotonic() + 30
        while there.members.all[0].running:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_keys_are_asked_for_at_the_endpoint():
    with Replicas(1, keys=Keys("secret-key")) as there:
        assert there.post(CHAT, chat(user("a"))).status_code == 401
        assert (
            there.post(CHAT, chat(user("a")), headers={"Authorization": "Bearer secret-key"}).status_code
            == 200
        )
        assert not any("secret" in str(one) for one in there.asked)


def test_sums_of_metrics():
    one, other = Metrics(), Metrics()
    one.requests.labels("/a", "200").inc(3)
    other.requests.labels("/a", "200").inc(4)
    other.requests.labels('/"b\\', "500").inc()
    usage = SimpleNamespace(prompt=5, cached=2, completion=3, reasoning=1)
    one.note(usage, 0.2, 0.1, "")
    other.note(usage, 7.0, 0.1, "")
    text = summed([one.text()], [other.text()]).decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['localoss_requests_total{path="/a",status="200"}'] == "7.0"
    assert lines['localoss_requests_total{path="/\\"b\\\\",status="500"}'] == "1.0"
    assert lines['localoss_tokens_total{kind="prompt"}'] == "10.0"
    assert lines['localoss_prefill_seconds_bucket{le="0.25"}'] == "1.0"
    assert lines["localoss_prefill_seconds_count"] == "2.0"
    assert summed([text.encode()]).decode() == text, "a sum is what can be summed"


def test_json_that_is_none_has_no_beginning():
    assert not beginnings("", json.loads("3")).keys
