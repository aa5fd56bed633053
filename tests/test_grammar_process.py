"""Schemas that cost: refused by their size, ended by their process, and nobody else's message is lost."""

import json
import os
import signal
import threading
import time
from functools import partial

import pytest

from localoss.chat import grammar, grammar_limits, grammar_process, harmony
from localoss.chat.grammar import Budget, Grammar
from localoss.chat.grammar_process import GrammarProcess
from localoss.chat.harmony import RETURN, Function
from localoss.chat.rules import argument_grammars
from localoss.errors import Cancelled, UsageError

VOCAB = harmony.VOCABULARY_TOKENS
PERSON = {"type": "object", "properties": {"age": {"type": "string"}}, "required": ["age"]}


@pytest.fixture(params=["quick", pytest.param("as ever", marks=pytest.mark.soak)], scope="module")
def process(request, tmp_path_factory):
    """A process of these tests' own, which is started often, and some requests take all that they may.

    So it is quick: it reads words of three letters at most, and its requests end early.
    """
    if request.param == "as ever":
        process = GrammarProcess()
        yield process
        process.close()
        return
    folder = tmp_path_factory.mktemp("vocabulary")
    lines = (grammar_process.VOCABULARY_FOLDER / "o200k_base.tiktoken").read_bytes().splitlines(True)
    (folder / "o200k_base.tiktoken").write_bytes(b"".join(line for line in lines if line.index(b" ") <= 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar_process, "VOCABULARY_FOLDER", folder)
        process = GrammarProcess(cpu_s=0.6)
        yield process
        process.close()


@pytest.fixture(autouse=True)
def one_process(process, monkeypatch):
    """As in a new program: what other tests compiled is no reason to compile elsewhere."""
    monkeypatch.setattr(grammar, "_process", process)
    monkeypatch.setattr(grammar, "_checker", process)
    monkeypatch.setattr(grammar, "_refusals", grammar.Remembered(4096))
    monkeypatch.setattr(grammar, "GrammarProcess", partial(GrammarProcess, cpu_s=process._cpu_s))
    yield
    if grammar._checker is not grammar._process:
        grammar._checker.close()


def explosive(count, extra=""):
    """Patterns that all have to hold: their common automaton has as many states as their product."""
    patterns = [{"type": "string", "pattern": f"^(.{{0,{n}}}[a-z{extra}])*$"} for n in range(1, count)]
    return {"allOf": patterns}


def follow(body, text):
    for token in harmony.encode_raw(text):
        if not body.mask(RETURN)[token]:
            return False
        body.advance(token)
    return bool(body.mask(RETURN)[RETURN])


TOO_LARGE = [
    {"const": "x" * 400_000},
    {"enum": ["a", "x" * 30_000]},
    {"type": "string", "pattern": "a|" * 100_000},
    {"type": "object", "properties": {"x" * 30_000: {}}},
    {"type": "object", "properties": {f"k{n}": {} for n in range(12_000)}},
    {"type": "object", "required": [f"k{n}" for n in range(12_000)]},
    {"properties": {f"k{n}": {"properties": {f"k{m}": {} for m in range(100)}} for n in range(120)}},
    {"enum": list(range(120_000))},
    {"x-unknown": [[[{"y": "z" * 30_000}]]]},
]


@pytest.mark.parametrize("schema", TOO_LARGE, ids=lambda schema: str(schema)[:40])
@pytest.mark.parametrize("strict", [False, True])
def test_what_would_take_long_is_refused_by_its_size(schema, strict, monkeypatch):
    monkeypatch.setattr(grammar, "_refusal", lambda *_: pytest.fail("it went on to be compiled"))
    with pytest.raises(UsageError, match=r"at most|more than"):
        Grammar(schema, strict)


def test_long_descriptions_are_no_matter():
    assert Grammar(PERSON | {"description": "x" * 100_000, "title": "y" * 30_000})


def test_a_schema_that_explodes_is_ended_and_others_go_on():
    """One that was half written when the process ended goes on where it was."""
    half = Grammar(PERSON).begin(VOCAB)
    for token in harmony.encode_raw('{"age":"A'):
        assert half.mask(RETURN)[token]
        half.advance(token)
    for _ in range(2):  # the second time it is known
        began = time.process_time()
        with pytest.raises(UsageError, match="too complex"):
            Grammar(explosive(40))
        assert time.process_time() - began < 1, "the work is done elsewhere"
    assert half.mask(RETURN).any() and follow(half, 'da"}')
    following = grammar._process._process
    with pytest.raises(UsageError, match="too complex"):
        Grammar(explosive(40, "_"))
    assert grammar._process._process is following, "from the second one on they are compiled elsewhere"
    assert follow(Grammar(PERSON).begin(VOCAB), '{"age":"B"}')


def test_what_explodes_is_left_out_of_a_functions_schema():
    schema = PERSON | {"properties": {"age": explosive(40, "A")}}
    grammars = argument_grammars([Function("f", "", schema)])
    assert follow(grammars["f"].begin(VOCAB), '{"age":"x"}')


def test_a_process_that_is_killed_is_started_again():
    body = Grammar(PERSON).begin(VOCAB)
    assert body.mask(RETURN).any()
    os.kill(grammar._process._process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    grammar._process._process._process.wait()
    with pytest.raises(UsageError):  # whoever asks first can't know what ended it
        Grammar({"type": "object", "properties": {"other": {}}})
    assert follow(body, '{"age":"A"}')


def test_a_panic_is_told_in_words(monkeypatch):
    monkeypatch.setattr(grammar, "_MAX_PROPERTIES", 10**9)
    monkeypatch.setattr(grammar, "_MAX_VALUES", 10**9)
    with pytest.raises(UsageError) as refused:
        Grammar({"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(12_000)}})
    assert not {"panic", "backtrace", "unknown", "assertion"} & set(str(refused.value).split())
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


def test_all_schemas_of_a_request_share_a_budget(monkeypatch):
    asked = []

    def slowly(schema, strict, budget):
        asked.append(schema)
        return "it isn't known", 0.1

    monkeypatch.setattr(grammar, "_refusal", slowly)
    functions = [Function(f"f{n}", "", {"type": "object", "properties": {f"p{n}": {}}}) for n in range(1000)]
    with pytest.raises(UsageError, match="take too long"):
        argument_grammars(functions, budget=Budget(left_s=0.5))
    assert len(asked) < 20


def test_nothing_is_compiled_for_a_client_that_left(monkeypatch):
    gone = threading.Event()
    schema = {"type": "object", "properties": {f"p{n}": {"pattern": f"^{n}$"} for n in range(1000)}}
    budget = Budget(is_gone=gone.is_set)

    def leaving(schema, strict, budget):
        gone.set()
        return "it isn't known", 0.0

    monkeypatch.setattr(grammar, "_refusal", leaving)
    with pytest.raises(Cancelled):
        grammar_limits.lenient_grammar("left", schema, budget)


def test_bodies_that_are_gone_are_dropped_in_the_process_too():
    compiled = Grammar(PERSON)
    for _ in range(3):
        assert compiled.begin(VOCAB).mask(RETURN).any()
    assert len(grammar._process._dropped) <= 3, "told with the next request"
    compiled.begin(VOCAB).mask(RETURN)
    assert len(grammar._process._dropped) <= 1


def test_what_compiles_can_be_ended_and_is_not_remembered_as_refused():
    body = Grammar(PERSON).begin(VOCAB)
    assert body.mask(RETURN).any()
    ended = []

    def compiling():
        try:
            Grammar(explosive(40, "0-9"))
        except Cancelled as error:
            ended.append(error)

    thread = threading.Thread(target=compiling)
    thread.start()
    while not grammar._process._lock.locked():
        time.sleep(0.01)
    grammar.interrupt()
    thread.join(timeout=60)
    assert ended and follow(body, '{"age":"A"}')
    assert grammar._refusals.get(json.dumps(explosive(40, "0-9")), "True") is None


def test_the_process_for_new_schemas_ends_where_none_come():
    process = GrammarProcess(idle_s=0.2)
    request = {"do": "compile", "schema": json.dumps(PERSON), "strict": True}
    for _ in range(2):  # and is started again
        assert process.ask(request)
        child = process._process
        child._process.wait(timeout=60)
        while process._process is not None:
            time.sleep(0.01)


def test_a_mask_is_made_while_others_go_on(monkeypatch):
    """The engine asks whether it is there, and may wait for it."""
    go_on, ask = threading.Event(), grammar._process.ask

    def late(*arguments, **options):
        assert go_on.wait(timeout=60)
        return ask(*arguments, **options)

    compiled = Grammar(PERSON)
    monkeypatch.setattr(grammar._process, "ask", late)
    body = compiled.begin(VOCAB)
    assert not body.has_mask(0) and not body.has_mask(0.01)
    go_on.set()
    assert body.has_mask(60) and follow(body, '{"age":"A"}')


def test_what_goes_wrong_beside_is_told_by_the_mask(monkeypatch):
    compiled = Grammar(PERSON)

    def broken(*_, **__):
        raise UsageError("it became too complex")

    monkeypatch.setattr(grammar._process, "ask", broken)
    body = compiled.begin(VOCAB)
    assert body.has_mask(60)
    for use in (lambda: body.mask(RETURN), lambda: body.advance(0)):
        with pytest.raises(UsageError, match="too complex"):
            use()
