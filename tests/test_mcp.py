"""MCP servers: the file that names them, calls, approvals, and a server that is hostile."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from localoss import cli
from localoss.chat import harmony
from localoss.chat.agent import Agent, Stop
from localoss.chat.conversation import Conversation
from localoss.chat.harmony import ChatSetup, Message
from localoss.errors import LocalossError, UsageError
from localoss.tools import mcp_link, mcp_tools
from localoss.tools.approval import REFUSED, Approvals
from localoss.tools.mcp_config import McpServer, read_servers
from localoss.tools.toolset import Toolset

pytest.importorskip("mcp")
from localoss.tools.mcp_client import McpLoop
from localoss.tools.mcp_link import McpLink
from localoss.tools.mcp_tools import McpTools, model_name, open_servers

SERVER = str(Path(__file__).parent / "support" / "hostile_mcp.py")


@pytest.fixture(scope="module")
def loop():
    loop = McpLoop()
    yield loop
    loop.close()


@pytest.fixture
def start(loop):
    """Start a hostile server with words; gives its tools, whose notices are in `told`."""
    started = []

    def begin(*words, name="bad", start_s=20.0, env=()):
        server = McpServer(name, sys.executable, (SERVER, *words), env)
        told = []
        tools = McpTools(McpLink(server, loop, told.append, start_s))
        tools.told = told
        started.append(tools)
        return tools

    yield begin
    for tools in started:
        tools.close()


def call(tools, name, arguments="{}", stop=None):
    message = Message("assistant", arguments, "commentary", f"functions.{tools.name}__{name}", "json")
    return tools.run(message, stop or Stop())


def test_tools_resources_and_prompts(start):
    tools = start("tools=echo,fail,picture")
    assert [function.name for function in tools.functions] == [
        "bad__echo", "bad__fail", "bad__picture", "bad__read_resource"
    ]  # fmt: skip
    said = call(tools, "echo", '{"text": "hi"}')
    assert said.ok and said.text.startswith('[data from MCP server bad]\necho got {"text": "hi"}')
    assert not call(tools, "fail").ok
    assert "[image/png, which isn't text" in call(tools, "picture").text
    assert "the note note://one" in call(tools, "read_resource", '{"uri": "note://one"}').text
    assert tools.prompts[0].required == ("topic",) and tools.prompt("explain", {"topic": "x"}) == "Explain x."
    with pytest.raises(LocalossError, match="no JSON object"):
        call(tools, "echo", "[")


def test_it_doesnt_inherit_the_environment(start, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_TEST", "secret")
    tools = start("tools=env", env=(("GIVEN", "yes"),))
    environment = json.loads(call(tools, "env").text.partition("\n")[2])
    assert environment["GIVEN"] == "yes" and "SECRET_OF_THE_TEST" not in environment


def test_a_server_that_dies_is_started_again_once(start):
    tools = start("tools=echo,die")
    with pytest.raises(LocalossError, match=r"has ended|[Cc]losed"):
        call(tools, "die")
    assert tools.told == ["(MCP server bad had ended; it was started again)"]
    with pytest.raises(LocalossError, match=r"has ended|[Cc]losed"):  # the second time for good
        call(tools, "die")
    with pytest.raises(LocalossError, match="has ended again; it isn't restarted any more"):
        call(tools, "echo")
    tools = start("tools=echo,die", name="other")
    pid = int(call(tools, "echo").text.rpartition(" ")[2])
    os.kill(pid, 9 if os.name == "posix" else 15)
    time.sleep(0.3)
    assert "echo got" in call(tools, "echo").text and len(tools.told) == 1


def test_a_huge_result_is_cut_and_a_hanging_one_is_stopped(start):
    import threading

    tools = start("tools=huge,hang,echo")
    assert len(call(tools, "huge").text) <= mcp_tools._MOST_RESULT_CHARS + 100
    stop = Stop()
    threading.Timer(0.3, stop.request, ["user"]).start()
    began = time.monotonic()
    with pytest.raises(LocalossError, match="stopped"):
        call(tools, "hang", stop=stop)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("deep", "nested deeper than 20 levels"),
        ("wide", "its schema has 1"),
        ("word", "its schema has 5"),
        ("cycle", None),
    ],
)
def test_schema_bombs_are_left_out(start, kind, says):
    tools = start(f"schema={kind}", "tools=a,b")
    if says:
        assert [function.name for function in tools.functions] == ["bad__read_resource"]
        assert len(tools.told) == 2 and says in tools.told[0]
    toolset = Toolset([tools], Approvals(None, None))  # what is left can be followed, and rendered
    harmony.render(toolset.add_to(ChatSetup()), [Message("user", "Hi")])


def test_many_tools_are_bounded(start):
    tools = start("tools=" + ",".join(f"t{n}" for n in range(300)))
    assert len(tools.functions) == 101 and "only the first 100 of 300" in tools.told[-1]


def test_names_never_clash(start):
    one, two = start("tools=echo,a.b,a_b,a/b", name="a b"), start("tools=echo", name="a.b")
    toolset = Toolset([one, *[]], Approvals(None, None))
    names = [function.name for function in one.functions]
    assert len(set(names)) == len(names) == 5 and names[0] == "a_b__echo" == two.functions[0].name
    with pytest.raises(UsageError, match="two tools have the name 'a_b__echo'"):
        Toolset([one, two], Approvals(None, None))
    assert toolset.tool_of(f"functions.{names[2]}") is one
    assert len(model_name("s" * 60, "t" * 60, ())) == 64


def test_results_are_data_and_change_no_approval(start, tmp_path):
    tools = start("tools=evil,echo", "evil")
    asked = []

    def ask(question):
        asked.append(question)
        return "yes"

    approvals = Approvals(ask, tmp_path / "approvals.json")
    toolset = Toolset([tools], approvals)
    agent = Agent(toolset)
    conversation = Conversation(toolset.add_to(ChatSetup()))
    conversation.ask("Hi")
    for _ in range(2):
        message = Message("assistant", '{"text":"\x1b[1m"}', "commentary", "functions.bad__evil", "json")
        conversation.messages += [message, agent.carry_out(message).result]
    assert [question.key for question in asked] == ["mcp:bad/evil"] * 2 and approvals.kept == {}
    assert asked[0].text == r"""bad evil $'{"text":"\x1b[1m"}'"""
    tokens = conversation.tokens()
    assert tokens.count(harmony.START) == 8  # system, developer, user, two calls, two results, the answer's
    assert "[data from MCP server bad]" in harmony.encoding().decode(tokens)


def test_approvals_per_tool_and_per_server(start, tmp_path):
    tools = start("tools=echo,other")
    approvals = Approvals(lambda question: "no", tmp_path / "approvals.json")
    toolset = Toolset([tools], approvals)

    def said(name):
        message = Message("assistant", "{}", "commentary", f"functions.bad__{name}", "json")
        return Agent(toolset).carry_out(message).result.text

    assert said("echo") == REFUSED
    approvals.set("mcp:bad", "always")
    assert "echo got" in said("echo") and "other got" in said("other")
    approvals.set("mcp:bad/other", "never")
    assert "echo got" in said("echo") and said("other") == REFUSED
    assert Approvals(None, tmp_path / "approvals.json").kept == {
        "mcp:bad": "always",
        "mcp:bad/other": "never",
    }
    approvals.set("mcp:bad/other", "ask")
    assert said("other") == REFUSED  # it is asked again, and the answer is no


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("dies",), "MCP server bad: "),
        (("silent",), "not ready within 1 s"),
        (("slow=30",), "not ready within 1 s"),
    ],
)
def test_a_server_that_doesnt_start(start, words, says):
    began = time.monotonic()
    with pytest.raises(LocalossError, match=says):
        start(*words, start_s=1.0)
    assert time.monotonic() - began < 15


def test_a_server_that_doesnt_list_its_tools_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(mcp_link, "_LIST_S", 0.5)
    path = tmp_path / "mcp.json"
    server = {"command": sys.executable, "args": [SERVER, "unlisted"]}
    path.write_text(json.dumps({"mcpServers": {"bad": server}}))
    told = []
    loop, tools = open_servers(path, told.append)
    loop.close()
    assert tools == [] and told == ["(MCP server bad: no answer within 0 s; it is left out)"]


def test_a_tool_may_be_called_as_what_reads_resources_is(start):
    tools = start("tools=read_resource")
    assert "read_resource got" in call(tools, "read_resource").text
    reader = tools.functions[1].name.removeprefix("bad__")
    assert "the note note://one" in call(tools, reader, '{"uri": "note://one"}').text


def test_garbage_between_messages_is_passed_over(start):
    assert "echo got" in call(start("garbage"), "echo").text


def test_one_that_fails_leaves_the_others(tmp_path):
    servers = {
        "good": {"command": sys.executable, "args": [SERVER]},
        "gone": {"command": "/no/such/program"},
        "off": {"command": "x", "disabled": True},
    }
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    told = []
    loop, tools = open_servers(path, told.append)
    assert [one.name for one in tools] == ["good"] and len(told) == 1 and "gone" in told[0]
    for one in tools:
        one.close()
    loop.close()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("[]", "expected"),
        ("{}", "expected"),
        ('{"mcpServers": {}}', "expected"),
        ('{"mcpServers": {"a": 1}}', "must be an object"),
        ('{"mcpServers": {"a": {}}}', "needs either a command or a url"),
        ('{"mcpServers": {"a": {"command": "x", "url": "http://x"}}}', "needs either a command or a url"),
        ('{"mcpServers": {"a": {"url": "file:///x"}}}', "must begin with http"),
        ('{"mcpServers": {"a/b": {"command": "x"}}}', "a name has"),
        ('{"mcpServers": {"a": {"command": "x", "args": "y"}}}', "args must be a list"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"A": 1}}}}', "env must be an object of texts"),
        ('{"mcpServers": {"a": {"url": "http://x", "type": "sse"}}}', "old SSE transport"),
    ],
)
def test_files_that_are_none(tmp_path, content, says):
    path = tmp_path / "mcp.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=says):
        read_servers(path)


@pytest.mark.parametrize(
    "document",
    [
        {"mcpServers": {"a": {"command": "x", "args": None, "env": None}}},
        {"servers": {"a": {"type": "stdio", "command": "x"}}, "inputs": []},
        {"mcp": {"servers": {"a": {"command": "x"}}}},
        {"mcpServers": {"a": {"type": "http", "url": "http://x"}}},
        {"mcpServers": {"a": {"httpUrl": "http://x"}}},
        {
            "mcpServers": {
                "a": {"serverUrl": "http://x", "headers": {"A": "b"}},
                "b": {"command": "y", "disabled": True},
            }
        },
    ],
)
def test_forms_that_others_write(tmp_path, document):
    path = tmp_path / "mcp.json"
    path.write_text("\ufeff" + json.dumps(document), encoding="utf-8")
    (server,) = read_servers(path)
    assert server.name == "a" and server.words in (("x",), ("http://x",))


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    path = tmp_path / "mcp.json"
    path.write_text(
        json.dumps({"mcpServers": {"good": {"command": sys.executable, "args": [SERVER, "a b"]}}})
    )
    assert cli.main(["mcp", "list", str(path)]) == 0
    assert "'a b'" in capsys.readouterr().out
    assert cli.main(["mcp", "test", str(path)]) == 0
    said = capsys.readouterr().out
    assert "good: 2 tools" in said and "good__echo" in said and "explain" in said
    path.write_text(json.dumps({"mcpServers": {"off": {"command": "x", "disabled": True}}}))
    for command in ("list", "test"):
        assert cli.main(["mcp", command, str(path)]) == 0
        assert "no server that is switched on" in capsys.readouterr().err
    path.write_text(json.dumps({"mcpServers": {"gone": {"command": "/no/such/program"}}}))
    assert cli.main(["mcp", "test", str(path)]) == 1
