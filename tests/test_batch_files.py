"""`localoss batch` and /v1/batches: each line is answered exactly once, whatever happens meanwhile."""

import json
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import openai
import pytest
from support.live_server import MODEL, live
from support.scripted import HELLO, ScriptedEngine
from support.scripted_process import start_scripted

import localoss
from localoss import cli
from localoss.server.batches.batches import Batches
from localoss.server.batches.store import FileStore

CHAT, RAW, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def line(custom_id, url=CHAT, **body):
    asked = {
        CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
        RAW: {"prompt": "Hi", "max_tokens": 3},
        RESPONSES: {"input": "Hi"},
    }.get(url, {})
    body = {"model": MODEL} | asked | body
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def read(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with a model whose engine is scripted, and an empty file of requests."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    (tmp_path / "models" / MODEL).mkdir(parents=True)
    (tmp_path / "models" / MODEL / "localoss.json").touch()
    engine = ScriptedEngine([HELLO], slots=4)
    monkeypatch.setattr(localoss, "load", lambda folder, options, listener: engine)
    monkeypatch.chdir(tmp_path)
    return engine


def run(*arguments):
    return cli.main(["batch", "in.jsonl", "-o", "out.jsonl", *arguments])


def test_answers_and_errors(home, capsys):
    wrong = {
        "null": "is no JSON object",
        "{": "is no JSON",
        '{"x": NaN}': "is no JSON",
        "{}": "has no custom_id",
        line("a"): "stands on an earlier line",
        line("e", "/v1/embeddings"): "use one of /v1/chat/completions",
        line("s", stream=True): "answers of a batch come whole",
        json.dumps({"custom_id": "g", "method": "GET", "url": CHAT, "body": {}}): "only POST",
        json.dumps({"custom_id": "b", "method": "POST", "url": CHAT, "body": []}): "must be a JSON object",
    }
    right = [line("a"), line("b é", RAW, stop="x"), line("c", RESPONSES)]
    refused = [line("m", model="another"), line("n", temperature="hot")]
    Path("in.jsonl").write_text("\n".join([*right, "", *wrong, *refused]))
    assert run("--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["answered"], report["failed"]) == (3, len(wrong) + 2) and report["tokens"] > 3
    answers = {one["custom_id"]: one for one in read(Path("out.jsonl"))}
    assert set(answers) == {"a", "b é", "c"}
    for one in answers.values():
        assert set(one) == {"id", "custom_id", "response", "error"} and one["error"] is None
        assert one["response"]["status_code"] == 200 and one["response"]["request_id"]
    openai.types.chat.ChatCompletion.model_validate(answers["a"]["response"]["body"], strict=True)
    assert answers["a"]["response"]["body"]["choices"][0]["message"]["content"] == "Hello!"
    errors = {one["line"]: one for one in read(Path("out.errors.jsonl"))}
    for number, says in enumerate(wrong.values(), 5):
        assert says in errors[number]["error"]["message"] and errors[number]["response"] is None
    statuses = [errors[number]["response"]["status_code"] for number in sorted(errors)[-2:]]
    assert statuses == [404, 400]
    assert not list(Path().glob("*.partial"))


def test_what_is_done_is_not_done_again(home, capsys):
    Path("in.jsonl").write_text("\n".join(line(f"r{number}") for number in range(5)) + "\nnonsense")
    assert run() == 0 and len(home.prompts) == 5
    assert run() == 0 and len(home.prompts) == 5, "all is done"
    assert "5 answered" in capsys.readouterr().err
    whole = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.jsonl").unlink()
    Path("out.jsonl.partial").write_bytes(whole[0] + whole[2] + whole[3][:-20])  # killed while it wrote
    assert run() == 0 and len(home.prompts) == 8
    assert sorted(one["custom_id"] for one in read(Path("out.jsonl"))) == [f"r{n}" for n in range(5)]
    assert len(read(Path("out.errors.jsonl"))) == 1
    with open("in.jsonl", "a") as file:
        file.write("\n" + line("more"))
    assert run() == 0 and len(home.prompts) == 9, "lines may be added"


def test_one_model_for_all(home):
    Path("in.jsonl").write_text(line("a", model="gpt-x") + "\n" + line("b", model="gpt-y"))
    assert run("--model", MODEL) == 0
    assert {one["response"]["body"]["model"] for one in read(Path("out.jsonl"))} == {MODEL}


def test_what_is_refused(home, capsys, tmp_path):
    assert run() == 2 and "in.jsonl: No such file" in capsys.readouterr().err
    Path("in.jsonl").write_text(line("a", model="gpt-x"))
    assert run() == 2 and "--model NAME" in capsys.readouterr().err
    Path("in.jsonl").write_text(line("a"))
    Path("out.jsonl").write_text("my diary\n")
    assert run() == 2 and "no batch's; choose another -o" in capsys.readouterr().err
    assert Path("out.jsonl").read_text() == "my diary\n", "as it was"
    Path("out.jsonl.partial").write_text(json.dumps({"custom_id": "other"}) + "\n")
    assert run() == 2 and "are both there; remove or rename one" in capsys.readouterr().err
    Path("out.jsonl").unlink()
    assert run() == 2 and "an answer to 'other', which isn't in in.jsonl" in capsys.readouterr().err
    assert cli.main(["batch", "in.jsonl", "-o", "no/such/out.jsonl"]) == 2
    assert "no/such/out.jsonl.partial: No such file" in capsys.readouterr().err


def started(folder, *options):
    return start_scripted(folder, "batch", "in.jsonl", "-o", "out.jsonl", *options)


@pytest.mark.parametrize(
    ("count", "kills"), [(40, 2), pytest.param(1000, 20, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_killed_at_random(tmp_path, count, kills):
    """A real process, which dies in the middle of things; what is done stays done."""
    (tmp_path / "models" / MODEL).mkdir(parents=True)
    (tmp_path / "models" / MODEL / "localoss.json").touch()
    (tmp_path / "script.json").write_text(json.dumps({"slots": 4, "token_s": 0.001}))
    lines = [line(f"r{number}", CHAT if number % 3 else RAW) for number in range(count)]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, "nonsense", line("bad", n=-1)]))
    chance, partial, met = random.Random(count), tmp_path / "out.jsonl.partial", []

    def written():
        return partial.read_bytes().count(b"\n") if partial.exists() else 0

    for number in range(kills):
        process = started(tmp_path, "--parallel", "4")
        wanted = count * (number + 1) // (kills + 2)
        while written() < wanted and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.01)
        process.kill()
        process.wait()
        met.append(written())
    assert met[0] > 0 and met == sorted(met) and met[-1] < count + 1, met
    process = started(tmp_path, "--parallel", "4")
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    times = Counter(one["custom_id"] for one in read(tmp_path / "out.jsonl"))
    assert times == Counter(f"r{number}" for number in range(count))
    assert sorted(one["line"] for one in read(tmp_path / "out.errors.jsonl")) == [count + 1, count + 2]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to one process")
def test_ctrl_c_keeps_what_is_done(tmp_path):
    (tmp_path / "models" / MODEL).mkdir(parents=True)
    (tmp_path / "models" / MODEL / "localoss.json").touch()
    (tmp_path / "script.json").write_text(json.dumps({"slots": 2, "token_s": 0.01}))
    (tmp_path / "in.jsonl").write_text("\n".join(line(f"r{number}") for number in range(500)))
    process = started(tmp_path)
    partial = tmp_path / "out.jsonl.partial"
    while not partial.exists() or partial.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert 3 <= len(read(partial)) < 500


@pytest.fixture
def served(tmp_path):
    engine = ScriptedEngine([HELLO], slots=2)
    with live(engine, parallel=2) as server:
        server.models.batches = Batches(FileStore(tmp_path / "files"), 2)
        yield server, engine


def finished(client, batch, *states):
    for _ in range(2000):
        batch = client.batches.retrieve(batch.id)
        if batch.status in (states or ("completed",)):
            return batch
        assert batch.status in ("validating", "in_progress", "finalizing", "cancelling"), batch
        time.sleep(0.01)
    raise AssertionError("it isn't finished")


def uploaded(client, lines):
    return client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")


def test_a_batch_over_http(served):
    server, _ = served
    client = server.client()
    file = uploaded(client, [line("a"), line("b"), line("c", RAW), "nonsense"])
    assert (file.filename, file.purpose, file.status) == ("in.jsonl", "batch", "processed")
    made = client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"whose": "mine"}
    )
    batch = finished(client, made)
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (
        4,
        2,
        2,
    )
    assert batch.metadata == {"whose": "mine"} and batch.completed_at >= batch.created_at
    answers = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(one["custom_id"] for one in answers) == ["a", "b"]
    errors = client.files.content(batch.error_file_id).text.splitlines()
    assert {json.loads(text)["line"] for text in errors} == {3, 4}
    assert [one.id for one in client.batches.list()] == [batch.id]
    assert {one.id for one in client.files.list()} == {file.id, batch.output_file_id, batch.error_file_id}
    assert client.files.retrieve(file.id).bytes == file.bytes
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)
    for name in ("file-x", "..%2F..%2Fetc%2Fpasswd", batch.id):
        assert server.get(f"/v1/files/{name}/content").status_code == 404


def test_a_batch_is_cancelled_and_keeps_what_is_done(served):
    server, engine = served
    client, engine.token_s = server.client(), 0.01
    file = uploaded(client, [line(f"r{number}") for number in range(200)])
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    server.wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 1)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = finished(client, batch, "cancelled")
    kept = client.files.content(batch.output_file_id).text.splitlines()
    assert 1 < len(kept) < 200
    assert client.batches.cancel(batch.id).status == "cancelled"


def test_a_new_server_goes_on_with_a_batch(served, tmp_path):
    server, engine = served
    client, engine.token_s = server.client(), 0.01
    file = uploaded(client, [line(f"r{number}") for number in range(30)])
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    server.wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 2)
    server.service.scheduler.cut_short()
    server.wait_until(lambda: not server.service.scheduler.running)
    server.wait_until(lambda: server.models.batches._current is None)
    with live(ScriptedEngine([HELLO], slots=2), parallel=2) as other:
        other.models.batches = Batches(FileStore(tmp_path / "files"), 2)
        client = other.client()
        late = uploaded(client, [line("late")])
        client.batches.create(input_file_id=late.id, endpoint=CHAT, completion_window="24h")
        batch = finished(client, batch)
        answers = client.files.content(batch.output_file_id).text.splitlines()
    times = Counter(json.loads(text)["custom_id"] for text in answers)
    assert times == Counter(f"r{number}" for number in range(30))


def test_what_batches_refuse(served):
    server, _ = served
    client = server.client()
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-" + "0" * 24, endpoint=CHAT, completion_window="24h")
    with pytest.raises(openai.BadRequestError):
        client.batches.create(input_file_id="x", endpoint="/v1/embeddings", completion_window="24h")
    for files, data in [({}, {"purpose": "batch"}), ({"file": ("a", b"x")}, {})]:
        answer = server.post("/v1/files", None, files=files, data=data)
        assert answer.status_code == 400, answer.text
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_" + "0" * 24)
