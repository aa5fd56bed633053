"""clients/: what `make clients` finds can be a failure, comes within its time, and is written down."""

import ast
import contextlib
import re
import sys
from pathlib import Path
from unittest import mock

import psutil
import pytest
from support import live_server

CLIENTS = Path(__file__).parent.parent / "clients"
sys.path.insert(0, str(CLIENTS))

import attempts  # noqa: E402
import catalogue  # noqa: E402
import install  # noqa: E402
import mcp_servers  # noqa: E402
import player  # noqa: E402
import run  # noqa: E402
import snippets  # noqa: E402
from wire import Wire  # noqa: E402

from localoss.cli.launch import PROGRAMS as LAUNCHED  # noqa: E402
from localoss.server.app import build_app  # noqa: E402

ASKS = """
import json, sys, urllib.request
body = {"model": "tiny", "messages": [{"role": "user", "content": sys.argv[-1]}], "stream": STREAM}
request = urllib.request.Request("URL/v1/chat/completions", json.dumps(body).encode())
request.add_header("Content-Type", "application/json")
for line in urllib.request.urlopen(request):
    line = line.decode().removeprefix("data: ").strip()
    if line.startswith("{"):
        for choice in json.loads(line)["choices"]:
            print((choice.get("delta") or choice.get("message", {})).get("content") or "", end="")
"""


def test_every_client_has_a_way_to_be_tried():
    functions = ast.parse((CLIENTS / "python_clients.py").read_text(encoding="utf-8")).body
    python = {one.name for one in functions if isinstance(one, ast.FunctionDef)}
    javascript = re.findall(
        r"^  async (\w+)\(", (CLIENTS / "js_clients.mjs").read_text(encoding="utf-8"), re.M
    )
    every = [*catalogue.CLIENTS, *catalogue.HOSTED_CLIENTS]
    names = [client.name for client in catalogue.CLIENTS]
    assert len(set(names)) == len(names)
    assert set(catalogue.PROGRAMS) == {one.name for one in every if not one.script}
    for client in every:
        if client.script:
            assert client.script in (python if client.registry == "PyPI" else javascript)
    assert set(snippets.snippets()) == set(names)
    assert {one.launch for one in catalogue.PROGRAMS.values() if one.launch} <= set(LAUNCHED)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Gives the words for a program: what `script` does with an attempt's order as its last argument."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "place" / "bin").mkdir(parents=True)
    (folder / "wire.jsonl").touch()
    client = catalogue.Client("odd", "PyPI", ("odd",), place="place")

    def watched(*arguments, **options):
        app = build_app(*arguments, **options)
        app.add_middleware(Wire, file=folder / "wire.jsonl")
        return app

    def passed(script, patience=60.0, stream=(catalogue.SHOUT,)):
        """The result of a program whose text is `script`; stream: None tries it once only."""
        program = folder / "place" / "bin" / "odd"
        program.write_text(f"#!{sys.executable}\n{script.replace('URL', server.url)}")
        program.chmod(0o755)
        asked = catalogue.Program("odd", ((catalogue.SHOUT,), stream, None))
        with mock.patch.dict(catalogue.PROGRAMS, {"odd": asked}):
            return attempts.try_client(folder, client, server.url, patience)

    with (
        mock.patch.object(live_server, "build_app", watched),
        live_server.live(player.Player(context_tokens=131_072)) as server,
    ):
        passed.folder = folder
        yield passed


@pytest.mark.skipif(sys.platform == "win32", reason="a script is no program there")
class TestAttempts:
    def test_a_client_that_streams(self, tried):
        result = tried(ASKS.replace("STREAM", "True"))
        assert result.passed == {"plain": "yes", "stream": "yes", "tool": "has none"}
        assert result.passes(catalogue.KINDS) and not result.notes

    def test_whole_answers_are_no_stream(self, tried):
        result = tried(ASKS.replace("STREAM", "False"))
        assert result.passed == {"plain": "yes", "stream": "no", "tool": "has none"}
        assert not result.passes(catalogue.KINDS)

    def test_an_echo_of_the_prompt_is_no_answer(self, tried):
        assert tried("import sys; print(sys.argv[-1])").passed["plain"] == "no"

    def test_refusals_are_noted(self, tried):
        result = tried(ASKS.replace('"tiny"', '"another"').replace("STREAM", "True"))
        assert result.notes == ["POST /v1/chat/completions was answered 404"]

    def test_what_hangs_is_ended_with_all_that_it_started(self, tried):
        script = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("child", child.pid, flush=True)
time.sleep(600)
"""
        assert tried(script, patience=3.0, stream=None).passed["plain"] == "no"
        log = (tried.folder / "logs" / "odd.log").read_text(encoding="utf-8")
        children = [int(number) for number in re.findall(r"^child (\d+)$", log, re.M)]
        assert len(children) == 1
        assert not [child for child in children if psutil.pid_exists(child) and _runs(child)]


def test_what_came_with_another_client_is_not_installed(tmp_path):
    """npm puts a client's dependencies beside other clients, and they may be of another version."""
    client = catalogue.Client("ai", "npm", ("ai", "zod"))
    for package in client.packages:
        (tmp_path / "js" / "node_modules" / package).mkdir(parents=True)
        (tmp_path / "js" / "node_modules" / package / "package.json").write_text('{"version": "5.0.0"}')
    with mock.patch.object(install, "_run") as ran:
        assert install.install(tmp_path, client) == ("5.0.0", "")
        assert ran.call_args.args[0][-2:] == ["ai@latest", "zod@latest"]
        (tmp_path / "js" / "package.json").write_text('{"dependencies": {"ai": "^6", "zod": "^4"}}')
        ran.reset_mock()
        assert install.install(tmp_path, client) == ("5.0.0", "") and not ran.called


def _runs(pid):
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_the_table_says_what_passed_and_what_was_not_tried(tmp_path):
    results = run.Results(tmp_path / "results")
    first, second, *_ = catalogue.CLIENTS
    result = attempts.Result({"plain": "yes", "stream": "has none"}, ["a note"], "1.2")
    results.put(first, result, run.COLUMNS, tmp_path / "table.md")
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert f"| {first.name} | 1.2 | yes | has none | no | no |" in table
    assert f"| {second.name} |  | not tried | not tried | not tried | not tried |" in table
    assert f"- {first.name}: a note" in table
    assert f"| {mcp_servers.SERVERS[0].client.name} |  | not tried | not tried |" in table
    assert not results.passed(first, run.COLUMNS) and not results.passed(second, run.COLUMNS)
    assert results.passed(first, ["plain", "stream"])
