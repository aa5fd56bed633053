"""What files, hubs and names say reaches a terminal without what a terminal would obey."""

import ast
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from localoss import cli
from localoss.cli import terminal

ROOT = Path(__file__).parent.parent
CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"
EVIL = f"a{CLIPBOARD}\x9b31m\u202eb\x00\x7f\u2066c\x85\x0d"


def is_clean(text):
    controls = [c for c in text if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]
    return not controls and not set(text) & set("\u202e\u2066\u202a\u200f\u061c")


@pytest.mark.parametrize("write", [terminal.echo, terminal.say, lambda text: terminal.echo(text, err=True)])
def test_what_prints_drops_controls(write, capsys):
    write(EVIL + "\tkept\nkept")
    out, err = capsys.readouterr()
    assert is_clean(out + err) and "a]52;c;ZXZpbA==31mbc\tkept\nkept" in out + err


def test_commands_print_through_one_function():
    """Every command's words go through terminal.py; a print of its own would miss it."""
    printing = []
    for path in (ROOT / "localoss" / "cli").glob("*.py"):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = ast.unparse(node.func)
                if name in ("typer.echo", "typer.secho", "click.echo", "click.secho"):
                    printing.append(f"{path.name}:{node.lineno}")
    assert not printing


def test_errors_with_names_of_files(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["run", str(tmp_path / EVIL.replace("\x00", "").replace("/", "")), "Hi"]) == 2
    assert is_clean(capsys.readouterr().err)
    assert cli.main(["show", EVIL.replace("\x00", "")]) != 0
    assert is_clean(capsys.readouterr().err)


def test_what_a_model_says_of_itself(model, tmp_path, capsys, monkeypatch):
    """`list`, `show`, `verify` and `plan` print what a manifest says of where a model is from."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    folder = tmp_path / "models" / "org--evil"
    folder.parent.mkdir(parents=True)
    shutil.copytree(model("short"), folder)
    manifest = json.loads((folder / "localoss.json").read_text())
    for key, value in manifest["source"].items():
        if isinstance(value, str):
            manifest["source"][key] = EVIL + value
    manifest["localoss_version"] = EVIL
    (folder / "localoss.json").write_text(json.dumps(manifest))
    said = ""
    for command in (["list"], ["show", "org/evil"], ["verify"], ["plan", "org/evil"]):
        cli.main(command)
        said += "".join(capsys.readouterr())
    assert is_clean(said) and "]52;c;" in said, said


def test_long_lines_are_broken_between_words(monkeypatch):
    from localoss.cli.loading import introduction
    from localoss.cli.terminal import wrapped

    out = io.StringIO()
    out.isatty, out.fileno = lambda: True, lambda: 1
    monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((40, 24)))
    told = f"{introduction('demo')}\n  a line  that fits"
    lines = wrapped(told, out).split("\n")
    assert max(map(len, lines)) < 40 and lines[-1] == "  a line  that fits"
    assert " ".join(" ".join(lines).split()) == " ".join(told.split()), "no word was broken"
    assert wrapped(told, io.StringIO()) == told
