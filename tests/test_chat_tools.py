"""localoss chat --tools: what is asked before a command runs, and what the model reads of it."""

import json
import sys

import pytest
from support.scripted import ScriptedEngine

from localoss import cli
from localoss.chat import harmony
from localoss.chat.harmony import Message
from localoss.chat.tools import read_tool_file
from localoss.cli.chat.calls import Calls
from localoss.errors import UsageError

ECHO = [sys.executable, "-c", "import sys; print('got', sys.stdin.read())"]
FAIL = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}


def tool(name, **more):
    return {"type": "function", "function": {"name": name, "parameters": CITY}} | more


@pytest.fixture
def file(tmp_path):
    def write(*definitions):
        path = tmp_path / "tools.json"
        path.write_text(json.dumps(list(definitions)))
        return path

    return write


def call(name, arguments='{"city":"Rome"}'):
    return Message("assistant", arguments, "commentary", f"functions.{name}", "json")


def results(tools, typed, *names):
    """The results of calls when `typed` is typed at the questions, and the questions."""
    answers, asked = iter(typed), []

    def ask(question):
        asked.append(question)
        return next(answers)

    calls = Calls(tools, ask)
    return [calls.answer(call(name)).text for name in names], asked


def test_a_command_runs_only_if_it_may(file):
    tools = read_tool_file(file(tool("echo", command=ECHO), tool("fail", command=FAIL), tool("ask")))
    said, asked = results(tools, ["n", None, "y", "a"], *["echo"] * 5)
    refused, ran = "The user did not allow this call.", 'got {"city":"Rome"}\n'
    assert said == [refused, refused, ran, ran, ran]
    assert len(asked) == 4 and all("run `" in question for question in asked)
    said, _ = results(tools, ["y", "blue"], "fail", "ask")
    assert said == ["The command failed with exit code 1.\nno such thing\n", "blue"]
    missing = read_tool_file(file(tool("gone", command=["/no/such/program"])))
    assert "could not be started" in results(missing, ["y"], "gone")[0][0]


def test_nobody_to_ask(file):
    tools = read_tool_file(file(tool("echo", command=ECHO)))
    assert Calls(tools, None).answer(call("echo")).text == "The user did not allow this call."


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("{}", "expected a list"),
        ("[]", "expected a list"),
        ('[{"type": "web_search"}]', "tool type 'web_search'"),
        ('[{"name": "a b"}]', "function name 'a b'"),
        ('[{"name": "a"}, {"name": "a"}]', "two functions have the name 'a'"),
        ('[{"name": "a", "command": "rm -rf"}]', "must be a list, program and arguments"),
        ('[{"name": "a", "parameters": {"type": "banana"}}]', "can't be followed"),
    ],
)
def test_files_that_are_none(tmp_path, content, says):
    path = tmp_path / "tools.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=says):
        Calls(read_tool_file(path), None)
    with pytest.raises(UsageError, match="No such file"):
        read_tool_file(tmp_path / "none.json")


def test_a_conversation_with_a_call(file, tmp_path, monkeypatch, capsys):
    """Over pipes: the call is told, refused, and the answer comes."""
    import io

    import localoss

    think = "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant"
    header = "<|channel|>commentary to=functions.echo <|constrain|>json<|message|>"
    engine = ScriptedEngine(
        [think + header + '{"city":"Rome"}<|call|>', "<|channel|>final<|message|>I can't.<|return|>"]
    )
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    monkeypatch.setattr(localoss, "load", lambda folder, options, listener: engine)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    assert cli.main(["chat", "tiny", "--tools", str(file(tool("echo", command=ECHO)))]) == 0
    said = capsys.readouterr()
    assert "I can't." in said.out and 'echo({"city":"Rome"})' in said.err
    prompt = harmony.encoding().decode(engine.prompts[-1])
    assert "type echo = " in prompt and "analysis<|message|>Look.<|end|>" in prompt
    assert "<|start|>functions.echo to=assistant<|channel|>commentary<|message|>The user did not" in prompt
