"""Many at once: each is answered as it would be alone, nobody waits for the others' whole answers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from support.live_server import MODEL, live
from support.scripted import HELLO, ScriptedEngine

import localoss
from localoss import cli
from localoss.engine.accounts import Accounts
from localoss.options import MOST_SLOTS
from localoss.plan.memory import FITS, Plan, choose_slots
from localoss.server.core import scheduler
from localoss.server.core.keys import Keys
from quant.format.config import read_config

CHAT, RAW = "/v1/chat/completions", "/v1/completions"
MARK = {
    "type": "object",
    "properties": {"mark": {"type": "integer", "minimum": 1, "maximum": 60}, "ok": {"type": "boolean"}},
    "required": ["mark", "ok"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": MARK}}
FINAL = {"type": "json_schema", "json_schema": {"name": "mark", "schema": MARK}}


@pytest.fixture(scope="module")
def engine(model):
    return localoss.load(model("harmony"), context_tokens=2048, threads=1, activations="f32", slots=4)


def ask(text, **more):
    return CHAT, {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 24} | more


def go_on(text, **more):
    return RAW, {"model": MODEL, "prompt": text, "max_tokens": 20} | more


MIXED = [
    ask("One", temperature=0),
    ask("Two, which is a longer question. " * 12, temperature=0, max_tokens=9),
    ask("Three", seed=3, temperature=1.5, top_k=50, min_p=0.01),
    ask("Four", seed=4, top_p=0.5, frequency_penalty=0.5, logit_bias={"17": 5}),
    ask("Five", temperature=0, response_format=FINAL, max_tokens=60),
    ask("Six", seed=6, tools=[TOOL], tool_choice="required", max_tokens=60),
    ask("Seven", temperature=0, think_budget=3),
    ask("Eight", temperature=0, logprobs=True, top_logprobs=3),
    go_on("nine " * 60, temperature=0, logprobs=2, echo=True, max_tokens=5),
    go_on("ten", seed=10, stop=["e"]),
    go_on("eleven", temperature=0, min_tokens=5, ignore_eos=True, max_tokens=30),
    go_on("twelve " * 150, temperature=0, max_tokens=0, echo=True, logprobs=0),
]


def said(answer):
    """All of an answer but its name and time."""
    body = answer.json()
    assert answer.status_code == 200, body
    for choice in body["choices"]:
        for call in choice.get("message", {}).get("tool_calls", []):
            call["id"] = "call"
    return body["choices"], body["usage"]["completion_tokens"]


def test_all_kinds_at_once_are_answered_as_alone(engine):
    """The same text, the same logprobs to the last bit, the same draws for the same seed."""
    with live(engine, parallel=1) as server:
        alone = [said(server.post(path, body)) for path, body in MIXED]
    with live(engine, parallel=4) as server, ThreadPoolExecutor(len(MIXED)) as threads:
        for _ in range(2):  # the second time on caches that hold what others left
            together = list(threads.map(lambda asked: said(server.post(*asked)), MIXED))
            for asked, its, expected in zip(MIXED, together, alone, strict=True):
                assert its == expected, asked
        figures = server.get("/metrics").text
    for name in ("queue", "first_token", "between_tokens", "step"):
        count = next(line for line in figures.splitlines() if f"localoss_{name}_seconds_count" in line)
        assert float(count.split()[-1]) >= len(MIXED) - 2


def test_who_leaves_takes_nothing_from_the_others(engine):
    with live(engine, parallel=4) as server, ThreadPoolExecutor(4) as threads:
        path, body = ask("Stay", temperature=0, max_tokens=40)
        alone = said(server.post(path, body))
        staying = threads.submit(server.post, path, body | {"user": "other"})
        for number in range(6):
            asked = {"model": MODEL, "prompt": f"leave {number} " * 90, "max_tokens": 500, "stream": True}
            with httpx2.stream("POST", server.url + RAW, json=asked, timeout=300) as answer:
                for line, _ in enumerate(answer.iter_lines()):
                    if line >= number:
                        break
        assert said(staying.result()) == alone
        server.wait_until(lambda: not server.service.scheduler.running)
        assert said(server.post(path, body)) == alone


@pytest.mark.parametrize("begin", ["", "begin " * 100], ids=["another", "a common"])
def test_a_short_question_overtakes_a_long_prompt(engine, monkeypatch, begin):
    """On a machine that takes its time for each layer: the long prompt waits between two of them.

    Nor does the question wait for it where both begin alike, as all conversations do.
    """
    in_layers, order = engine.model.in_layers, []

    def slowly(*arguments):
        for x in in_layers(*arguments):
            time.sleep(0.03)
            yield x

    monkeypatch.setattr(engine.model, "in_layers", slowly)
    monkeypatch.setattr(scheduler, "STEP_S", 0.05)
    with live(engine, parallel=2) as server:

        def long():
            server.post(RAW, {"model": MODEL, "prompt": begin + "long " * 1800, "max_tokens": 1})
            order.append("long")

        thread = threading.Thread(target=long)
        thread.start()
        server.wait_until(lambda: server.service.scheduler.running)
        assert (
            server.post(RAW, {"model": MODEL, "prompt": begin + "short", "max_tokens": 1}).status_code == 200
        )
        order.append("short")
        thread.join()
    assert order == ["short", "long"]


@pytest.fixture
def two_keys(tmp_path):
    (tmp_path / "keys").write_text("hog hog-0123456789\nmodest modest-0123456789\n")
    (tmp_path / "keys").chmod(0o600)
    return Keys(None, tmp_path / "keys")


HOG, MODEST = ({"headers": {"Authorization": f"Bearer {name}-0123456789"}} for name in ("hog", "modest"))
LONG = go_on("long " * 30, seed=7, temperature=1.3, frequency_penalty=0.3, logprobs=2, ignore_eos=True)
LONG = LONG[0], LONG[1] | {"max_tokens": 250}


@pytest.mark.parametrize("conversations", [1, 2], ids=["read again", "still there"])
def test_a_long_answer_makes_room_for_another_client(engine, two_keys, monkeypatch, conversations):
    """It waits in the middle, and goes on with the same draws and logprobs, as if nothing had been."""
    monkeypatch.setattr(scheduler, "_LEAST_RUN_S", 0.0)
    pause, paused = scheduler.Scheduler._pause, []
    monkeypatch.setattr(
        scheduler.Scheduler, "_pause", lambda self, job: (paused.append(job.client.key), pause(self, job))
    )
    with live(engine, parallel=1, conversations=conversations, keys=two_keys) as server:
        alone = said(server.post(*LONG, **HOG))
        short = said(server.post(*go_on("short", temperature=0, max_tokens=3), **MODEST))
        with ThreadPoolExecutor(1) as thread:
            long = thread.submit(server.post, *LONG, **HOG)
            server.wait_until(lambda: server.service.scheduler.running)
            for _ in range(3):
                again = said(server.post(*go_on("short", temperature=0, max_tokens=3), **MODEST))
                assert again == short
            assert not long.done() and paused.count("hog") >= 2
            assert said(long.result()) == alone


def test_who_leaves_while_its_answer_waits_is_forgotten(engine, two_keys, monkeypatch):
    monkeypatch.setattr(scheduler, "_LEAST_RUN_S", 0.0)
    with live(engine, parallel=1, conversations=1, keys=two_keys) as server, httpx2.Client() as client:
        serving = server.service.scheduler
        make_room = serving._make_room

        def runs(name):
            return [job.client.key for job in serving._running] == [name]

        monkeypatch.setattr(serving, "_make_room", lambda: make_room() if runs("hog") else [])
        asked = client.stream("POST", server.url + RAW, json=LONG[1] | {"stream": True}, **HOG)
        with ThreadPoolExecutor(1) as thread, asked as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data:")
            other = thread.submit(server.post, *LONG, **MODEST)
            server.wait_until(lambda: runs("modest") and serving._lines)
            answer.close()
            assert other.result().status_code == 200
        server.wait_until(lambda: not serving.running and not serving._lines)


def test_as_many_run_as_there_is_room_for():
    engine = ScriptedEngine(["<|channel|>final<|message|>" + "on " * 4000], token_s=0.01)
    with live(engine, parallel=3, queue=1) as server:
        bodies = [ask("Hi", user=str(number), max_tokens=3000)[1] for number in range(5)]
        for number, body in enumerate(bodies[:4]):
            threading.Thread(target=server.post, args=[CHAT, body], daemon=True).start()
            server.wait_until(lambda n=number: server.service.scheduler.running == min(n + 1, 3))
        server.wait_until(lambda: server.service.scheduler.waiting == 1)
        answer = server.post(CHAT, bodies[4])
        assert answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1


def test_one_that_fails_does_so_alone():
    class Failing(ScriptedEngine):
        def generate(self, tokens, params, **options):
            for number, token in enumerate(super().generate(tokens, params, **options)):
                if params.seed == 13 and number == 2:
                    raise RuntimeError("a bug of its own")
                yield token

    with live(Failing([HELLO], token_s=0.01), parallel=4) as server, ThreadPoolExecutor(4) as threads:
        asked = [ask("Hi", seed=seed) for seed in (1, 13, 2, 3)]
        answers = list(threads.map(lambda one: server.post(*one), asked))
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200]


def test_clients_pay_for_what_they_read_and_write():
    clients = Accounts()
    clients.join("greedy", set())
    clients.charge("greedy", 1000)
    clients.join("modest", {"greedy"})
    assert clients.cost("modest") == clients.cost("greedy") == 1000, "nobody saves up"
    clients.charge("greedy", 50)
    assert min(("greedy", "modest"), key=clients.cost) == "modest"
    clients.join("late", {"greedy", "modest"})
    assert clients.cost("late") == 1000
    for number in range(1000):
        clients.join(f"passing {number}", {"greedy"})
    assert len(clients._cost_s) < 10, "those that are gone are forgotten"


def test_slots_are_as_many_as_fit(model):
    plan = Plan(read_config(model("short") / "config.json"))
    one = Plan(plan.config, slots=1).total_bytes
    assert choose_slots(plan, 10 * one).slots == MOST_SLOTS
    assert choose_slots(plan, one // 2).slots == 1
    for slots in range(2, MOST_SLOTS):
        context = plan.config.context
        limit = Plan(plan.config, slots=slots, context_tokens=context).total_bytes
        chosen = choose_slots(plan, limit, context)
        assert chosen.slots == slots, "to the byte"
        assert Plan(plan.config, slots=slots, context_tokens=context).verdict(limit) == FITS


def test_a_shared_context(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    (tmp_path / "models" / MODEL).mkdir(parents=True)
    for arguments, says in [
        (["--context-total", "9000", "--context", "100"], "give one of them"),
        (["--context-total", "3", "--parallel", "4"], "leaves 4 answers no token"),
    ]:
        assert cli.main(["serve", MODEL, *arguments]) == 2
        assert says in capsys.readouterr().err
    from localoss.cli.serve import _shared
    from localoss.options import LoadOptions

    free = LoadOptions(context_tokens=None)
    shared = _shared(free, None, 20_000, None)
    assert (shared.slots, shared.context_tokens) == (4, 5000)
    shared = _shared(free, 2, 20_000, 6)
    assert (shared.slots, shared.context_tokens) == (6, 10_000)
    assert _shared(free, None, None, None).slots is None and _shared(free, 3, None, None).slots == 3
