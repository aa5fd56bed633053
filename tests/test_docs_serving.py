"""Every line of docs/serving.md works."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from support.live_server import live
from support.scripted import HELLO, ScriptedEngine

from localoss.cli import serve

SECTION = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
MODEL = "gpt-oss-20b"
FINAL = "<|channel|>final<|message|>"
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Rome"}<|call|>'
ANSWERS = [
    HELLO,
    CALL,
    FINAL + "Sunny.<|return|>",
    FINAL + '{"name": "Rome", "inhabitants": 2750000}<|return|>',
    FINAL + "Rhine.<|return|>",
    FINAL + "Danube.<|return|>",
]


def blocks(kind):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)
    return [block for language, block in found if language == kind]


def lines(command):
    return [line for block in blocks("") for line in block.splitlines() if line.startswith(command)]


def test_all_lines_are_tested():
    words = {line.split()[0] for block in blocks("") for line in block.splitlines()}
    assert words == {"pip", "localoss", "curl", "export"}
    assert len(blocks("python")) == 4


def test_python(capsys):
    engine = ScriptedEngine(ANSWERS)
    with live(engine, name=MODEL) as server:
        code = "\n".join(blocks("python")).replace("http://127.0.0.1:11435", server.url)
        exec(compile(code, "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out == "Hello!Rome\nSunny.\n2750000\nDanube.\n"
    assert len(engine.prompts) == len(ANSWERS)


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_curl():
    with live(ScriptedEngine(), name=MODEL) as server:
        said = []
        for line in lines("curl"):
            command = shlex.split(line.replace("http://127.0.0.1:11435", server.url))
            done = subprocess.run(
                [*command, "--silent", "--fail"], capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
            said.append(done.stdout)
    assert f'"{MODEL}"' in said[0] and "Hello!" in said[1]


def test_install_names_an_extra_that_is_there():
    pyproject = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert lines("pip") == ["pip install '.[server]'"] and "\nserver = [" in pyproject


def test_command_lines(monkeypatch, tmp_path):
    """Each starts a server with what it asks for; the model is scripted, the port free."""
    from localoss import cli
    from localoss.hub import registry
    from localoss.server import run

    started = []
    monkeypatch.setattr(registry, "find_model", lambda name, tell: tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys.txt").write_text("# who, and the key\nanna 4f1d87e2a90c35b6\n")
    monkeypatch.setattr(run, "serve", lambda *given: started.append((given[0].first.name, given[2])))
    for line in lines("localoss"):
        if "--host" in line:
            monkeypatch.setenv("LOCALOSS_API_KEY", "k")
        assert cli.main([*shlex.split(line)[1:], "--port", "0"]) == 0
        monkeypatch.delenv("LOCALOSS_API_KEY", raising=False)
    assert [name for name, _ in started] == [MODEL] * 4
    assert (started[0][1].host, started[0][1].keys) == ("127.0.0.1", None)
    assert (started[1][1].host, started[1][1].keys.name(b"k")) == ("0.0.0.0", "")
    assert started[2][1].keys.name(b"4f1d87e2a90c35b6") == "anna" and started[2][1].page is None
    assert started[3][1].cors_origins == ["http://localhost:3000"]
    assert started[3][1].think_budget is None
    assert cli.main(["serve", MODEL, "--think-budget", "9", "--port", "0"]) == 0
    assert started[4][1].think_budget == 9


def test_what_is_said_of_options():
    for option in re.findall(r"`(--[a-z-]+)", SECTION):
        assert option.removeprefix("--").replace("-", "_") in serve.serve.__annotations__, option
