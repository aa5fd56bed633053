"""Tool files: what is asked before a command runs, and what the model reads of it."""

import io
import json
import sys

import pytest
from support.calling import final, function
from support.scripted import ScriptedEngine

from localoss import cli
from localoss.chat import harmony
from localoss.chat.agent import Agent
from localoss.chat.harmony import Message
from localoss.errors import UsageError
from localoss.tools.approval import REFUSED, Approvals
from localoss.tools.commands import CommandTools
from localoss.tools.quoting import shell_word
from localoss.tools.toolset import Toolset

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


def results(path, said, *names, kept=None):
    """The results of calls when `said` is answered to the questions, and the questions."""
    answers, asked = iter(said), []

    def ask(question):
        asked.append(question)
        return next(answers)

    toolset = Toolset([CommandTools(path, ask)], Approvals(ask, kept))
    agent = Agent(toolset)
    return [agent.carry_out(call(name)).result.text for name in names], asked


def test_a_command_runs_only_if_it_may(file):
    path = file(tool("echo", command=ECHO), tool("fail", command=FAIL), tool("ask"))
    said, asked = results(path, ["no", "yes", "always"], *["echo"] * 4)
    ran = 'got {"city":"Rome"}\n'
    assert [text.split("\n\n")[0].strip() for text in said] == [REFUSED, *[ran.strip()] * 3]
    assert len(asked) == 3 and asked[0].text.endswith("""<<<'{"city":"Rome"}'""")
    said, _ = results(path, ["yes", "blue"], "fail", "ask")
    assert said == ["The command failed with exit code 1.\nno such thing\n", "blue"]
    missing = file(tool("gone", command=["/no/such/program"]))
    assert "could not be started" in results(missing, ["yes"], "gone")[0][0]


def test_what_was_allowed_for_good_is_kept_for_that_command_alone(file, tmp_path):
    kept = tmp_path / "approvals.json"
    path = file(tool("echo", command=ECHO))
    results(path, ["always"], "echo", kept=kept)
    assert results(path, [], "echo", kept=kept)[1] == []
    path = file(tool("echo", command=[*ECHO, "more"]))  # another command behind the same name
    assert len(results(path, ["never"], "echo", "echo", kept=kept)[1]) == 1
    assert results(path, [], "echo", kept=kept)[0] == [REFUSED]
    kept.write_text("{}")
    with pytest.raises(UsageError, match=r"approvals.json: not the approvals of localoss"):
        results(path, [], kept=kept)


def test_nobody_to_ask(file):
    path = file(tool("echo", command=ECHO), tool("ask"))
    toolset = Toolset([CommandTools(path, None)], Approvals(None, None))
    assert [Agent(toolset).carry_out(call(name)).result.text for name in ("echo", "ask")] == [REFUSED] * 2


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("plain", "plain"),
        ("two words; rm -rf /", "'two words; rm -rf /'"),
        ("it's", """'it'"'"'s'"""),
        ("\x1b[2Jgone", r"$'\x1b[2Jgone'"),
        ("a\nb", r"$'a\nb'"),
        ("evil\u202etxt", r"$'evil\u202etxt'"),
        ("\x9b31m'", r"$'\x9b31m\''"),
        ("", "''"),
    ],
)
def test_what_is_asked_hides_nothing(word, shown):
    assert shell_word(word) == shown


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
        CommandTools(path, None)
    with pytest.raises(UsageError, match="No such file"):
        CommandTools(tmp_path / "none.json", None)


def test_a_conversation_with_a_call(file, tmp_path, monkeypatch, capsys):
    """Over pipes: the call is told, refused, and the answer comes."""
    import localoss

    engine = ScriptedEngine([function("echo", '{"city":"Rome"}'), final("I can't.")])
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    monkeypatch.setattr(localoss, "load", lambda folder, options, listener: engine)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    assert cli.main(["chat", "tiny", "--tools", str(file(tool("echo", command=ECHO)))]) == 0
    said = capsys.readouterr()
    assert "I can't." in said.out and f'▹ echo · {{"city":"Rome"}} → {REFUSED}' in said.err
    prompt = harmony.encoding().decode(engine.prompts[-1])
    assert "type echo = " in prompt and "analysis<|message|>Look.<|end|>" in prompt
    assert "<|start|>functions.echo to=assistant<|channel|>commentary<|message|>The user did not" in prompt
