"""`localoss run` and `chat` where a running server has the model: it answers, and nothing is loaded."""

import contextlib
import io
import json
import shutil
import sys
from dataclasses import replace

import pytest
from support.demo import put
from support.live_server import MODEL, live
from support.scripted import ScriptedEngine

import localoss
from localoss import cli
from localoss.chat.conversation import Conversation
from localoss.chat.generate import generate
from localoss.chat.harmony import ChatSetup, Function, encode_raw
from localoss.chat.remote import RemoteModel, find_remote
from localoss.chat.rules import AnswerRules, argument_grammars
from localoss.chat.turn import Turn
from localoss.errors import LocalossError
from localoss.hub.running import Running, registered
from localoss.options import LoadOptions, SamplingParams
from localoss.server.core.models import only
from localoss.server.core.pool import SequencePool
from localoss.server.core.scheduler import Scheduler
from localoss.server.core.service import Service

CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
WEATHER = Function("weather", "The weather.", CITY | {"additionalProperties": False})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return put(tmp_path_factory.mktemp("models") / "demo")


@pytest.fixture(scope="module")
def engine(folder):
    return localoss.load(folder, context_tokens=2048, threads=1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", None)  # nothing is piped in
    return tmp_path


@pytest.fixture
def server(folder, engine, home):
    """One with the demo model, that this user's commands find."""
    with serving(folder, engine) as server:
        yield server


@contextlib.contextmanager
def serving(folder, engine):
    service = Service(engine, "demo", Scheduler(engine, 64, 1), SequencePool(engine, 2))
    with live(engine, models=only(service, folder)) as server, registered(server.url + "/v1"):
        yield server


def answered(engine, setup, rules, params, text="What is 3 plus 4?"):
    """What a model says, here or there: its messages and how it ended."""
    if setup is None:
        prompt = encode_raw(text)
    else:
        conversation = Conversation(setup)
        conversation.ask(text)
        prompt = conversation.tokens()
    turn = Turn(prompt, setup, params, rules)
    read = []
    events = list(generate(engine, turn, None, lambda done, total: read.append((done, total))))
    assert events and read[-1] == (len(prompt), len(prompt))
    return turn.messages, turn.finish, turn.generated_tokens, round(turn.last_logprob, 6)


@pytest.mark.parametrize(
    ("setup", "rules"),
    [
        (ChatSetup(), AnswerRules()),
        (ChatSetup(instructions="Be short."), AnswerRules(think_budget=3)),
        (
            ChatSetup(functions=(WEATHER,)),
            AnswerRules(must_call=True, think_budget=20),
        ),
        (
            ChatSetup(builtin_tools=("python",), functions=(WEATHER,)),
            AnswerRules(functions=(), builtin_tools=False),
        ),
        (None, AnswerRules()),
    ],
    ids=["chat", "budget", "call", "no calls", "raw"],
)
def test_a_server_says_what_the_engine_says(server, folder, engine, setup, rules):
    """The same draws with a seed, and what holds here for an answer holds there."""
    remote = find_remote(folder)
    assert isinstance(remote, RemoteModel) and remote.context_tokens == engine.context_tokens
    if rules.must_call:
        rules = replace(rules, arguments=argument_grammars(setup.functions))
    params = SamplingParams(temperature=0.9, top_p=0.95, top_k=50, min_p=0.01, seed=7, max_tokens=120)
    there = answered(remote, setup, rules, params)
    server.wait_until(lambda: not server.service.scheduler.running)
    assert there == answered(engine, setup, rules, params)
    if rules.must_call:
        assert json.loads(there[0][-1].text)["city"] in ("Rome", "Oslo")


def test_run_loads_nothing(server, folder, monkeypatch, capsys):
    monkeypatch.setattr(localoss, "load", None)
    said = ["run", str(folder), "What is 3 plus 4?", "--temperature", "0"]
    assert cli.main(said) == 0
    out, err = capsys.readouterr()
    assert "7" in out and err == ""
    assert cli.main([*said, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["server"] == server.url and report["answer"] + "\n" == out
    assert report["generated_tokens"] > 5 and report["thinking_tokens"] > 0


@pytest.mark.parametrize("options", [["--threads", "1"], ["--context", "512"], ["--no-server"]])
def test_what_a_server_does_not_have_is_loaded_here(server, folder, monkeypatch, capsys, options):
    monkeypatch.setattr(localoss, "load", lambda folder, options, listener: ScriptedEngine())
    assert cli.main(["run", str(folder), "Hi", *options]) == 0
    out, err = capsys.readouterr()
    why = f"({server.url} has demo without {options[0]}: it is loaded here)\n"
    assert (out, err) == ("Hello!\n", "" if options == ["--no-server"] else why)


def test_a_prompt_beyond_the_servers_context_is_answered_here(server, folder, engine, monkeypatch, capsys):
    monkeypatch.setattr(
        localoss, "load", lambda folder, options, listener: ScriptedEngine(context_tokens=8192)
    )
    assert cli.main(["run", str(folder), "word " * 3000]) == 0
    out, err = capsys.readouterr()
    assert out == "Hello!\n" and "without a context of" in err and err.count("\n") == 1


def test_another_model_of_that_name_is_not_asked(server, folder, tmp_path):
    other = tmp_path / "demo"
    shutil.copytree(folder, other)
    assert find_remote(other) is not None  # the same, elsewhere
    manifest = other / "localoss.json"
    manifest.write_text(manifest.read_text() + " ")
    assert find_remote(other) is None


def test_a_server_with_an_adapter_says_other_things(server, folder, monkeypatch):
    monkeypatch.setattr(server.models.catalogue, "options", LoadOptions(adapters=("some/adapter",)))
    assert find_remote(folder) is None
    monkeypatch.setattr(server.models.catalogue, "options", LoadOptions(adapters=("mine=some/adapter",)))
    assert find_remote(folder).name == "demo"


def test_a_server_that_is_stopped_is_not_asked(home, folder):
    with registered("http://127.0.0.1:9/v1"):  # nobody listens there
        assert find_remote(folder) is None
    assert find_remote(folder) is None


def test_stopping_an_answer_stops_it_there(home, folder):
    with live(ScriptedEngine(token_s=0.05, answers=["<|channel|>final<|message|>" + "on " * 2000])) as server:
        remote = _remote(server, folder)
        turn = Turn(Conversation(ChatSetup()).tokens(), ChatSetup())
        heard = []
        for event in generate(remote, turn, None, None, lambda: len(heard) > 5):
            heard.append(event)
        assert turn.finish == "cancelled" and 5 < len(heard) < 20
        server.wait_until(lambda: not server.service.scheduler.running, 10)


def test_a_server_that_goes_away_is_an_error_of_one_line(home, folder):
    with live(ScriptedEngine(token_s=0.05, answers=["<|channel|>final<|message|>" + "on " * 2000])) as server:
        remote = _remote(server, folder)
        events = generate(remote, Turn(Conversation(ChatSetup()).tokens(), ChatSetup()))
        next(events)
    with pytest.raises(LocalossError, match=r"^http://\S+ ") as error:
        list(events)
    assert "\n" not in str(error.value)
    with pytest.raises(LocalossError, match="refused"):
        list(generate(remote, Turn(Conversation(ChatSetup()).tokens(), ChatSetup())))


def _remote(server, folder):
    return RemoteModel(Running(1, server.url, 0.0), MODEL, folder, 8192)


def test_a_session_goes_on_with_a_server_and_without(server, folder, home, monkeypatch, capsys):
    def chat(text, *options):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert cli.main(["chat", str(folder), "--session", "one", *options]) == 0
        return capsys.readouterr()

    out, err = chat("What is 3 plus 4?\n", "--temperature", "0")
    assert "7" in out and f"at {server.url}" in err
    asked = server.service.metrics.text()
    out, err = chat("What is 5 plus 5?\n", "--temperature", "0", "--no-server")
    assert "10" in out and "at http" not in err and "(session: 2 messages" in err
    assert server.service.metrics.text() == asked  # it heard nothing of that
    out, err = chat("What is 2 plus 6?\n", "--temperature", "0")
    assert "8" in out and "(session: 4 messages" in err
    messages = json.loads((home / "sessions" / "one" / "messages.json").read_text())["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant"] * 3
