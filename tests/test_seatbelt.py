"""macOS's sandbox for cpython, as far as another system can tell: the profile, the command, and what is
watched because sandbox-exec doesn't bound it. A program that only runs its command stands for sandbox-exec.
"""

import re
import sys
from pathlib import Path

import psutil  # noqa: F401 - before the system is taken for another
import pytest

from localoss.chat.agent import Stop
from localoss.chat.harmony import Message
from localoss.errors import UsageError
from localoss.tools import sandbox, sandbox_child, seatbelt
from localoss.tools.python_tool import RESTARTED, PythonTool

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no such sandbox on Windows")
FOLDERS = ['/Users/a "b") (allow default)/python', "/opt/python"]
STAND_IN = '#!/bin/sh\nwhile [ "$1" != -p ]; do shift; done\nshift 2\nexec "$@"\n'


def rules(text):
    """The profile's rules, each as its words; fails if its parentheses don't match."""
    assert text.count("(") == text.count(")")
    found = re.findall(
        r"^\((allow|deny) ([a-z*\- ]+?)(?:\s*\n|\)$|\s(?=\())(.*?)(?=^\(|\Z)", text, re.M | re.S
    )
    return [(action, operations.split(), filters) for action, operations, filters in found]


def test_the_profile_allows_what_python_needs_and_nothing_else():
    text, parameters = seatbelt.profile("/opt/python/bin/python3", FOLDERS, "/x/child.py", "/private/tmp/s")
    assert text.startswith("(version 1)\n(deny default)\n")
    allowed = {
        operation for action, operations, _ in rules(text) for operation in operations if action == "allow"
    }
    assert allowed == {
        "process-exec", "file-read*", "file-map-executable", "file-read-metadata", "file-write*",
        "file-write-data", "signal", "sysctl-read",
    }  # fmt: skip
    for word in (
        "network",
        "mach-lookup",
        "process-fork",
        "ipc",
        "iokit",
        "(allow default",
        "regex",
        "file-ioctl",
    ):
        assert word not in text.replace("(deny default)", "")
    assert sorted(set(re.findall(r'\(param "(\w+)"\)', text))) == sorted(parameters)
    assert not any(path in text for path in (*FOLDERS, "/x/child.py", "/private/tmp/s"))  # no path is code
    by_kind = {kind: {path for name, path in parameters.items() if name.startswith(kind)} for kind in (
        "SCRATCH", "PYTHON", "READ", "FILE", "ABOVE",
    )}  # fmt: skip
    assert by_kind["SCRATCH"] == {"/private/tmp/s"} and by_kind["PYTHON"] == {"/opt/python/bin/python3"}
    assert set(FOLDERS) <= by_kind["READ"] and "/x/child.py" in by_kind["FILE"]
    homes = (
        "/",
        "/Users",
        "/home",
        "/private",
        "/private/var",
        "/private/tmp",
        "/Library",
        "/etc",
        "/usr/local",
        "/opt",
    )
    assert not by_kind["READ"] & set(homes) and by_kind["ABOVE"] >= {"/", "/private", "/private/tmp"}
    writes = [filters for _, operations, filters in rules(text) if any("write" in one for one in operations)]
    assert len(writes) == 2 and 'param "SCRATCH0"' in writes[0] and '"/dev/null"' in writes[1]
    assert "kern.hostname" not in text and "kern.proc" not in text


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    program = tmp_path / "sandbox-exec"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setattr(seatbelt, "_PROGRAM", str(program))
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))


def test_the_command_and_the_scratch_folder(stand_in):
    cage = seatbelt.Seatbelt("/opt/python/bin/python3", FOLDERS, "/x/child.py")
    program, *words = cage.command()
    assert program == seatbelt._PROGRAM and words[-2] == "-p" and words[-1].startswith("(version 1)")
    assert f"-DREAD0={FOLDERS[0]}" in words and f"-DSCRATCH0={cage.scratch}" in words
    assert all(word.startswith("-D") for word in words[:-2])
    assert "SECRET" not in str(cage.environment) and cage.environment["HOME"] == cage.scratch
    assert Path(cage.scratch).is_dir() and Path(cage.scratch).stat().st_mode & 0o777 == 0o700
    cage.close()
    assert not Path(cage.scratch).exists()


def test_a_sandbox_that_doesnt_hold_is_none(stand_in):
    with pytest.raises(UsageError, match="it doesn't hold: reached files, reached writing, reached network"):
        sandbox.SandboxedPython()


def test_without_the_program_a_line_says_so(stand_in, monkeypatch):
    monkeypatch.setattr(seatbelt, "_PROGRAM", "/no/such/program")
    with pytest.raises(UsageError, match="needs macOS's sandbox-exec, which isn't here; use the python tool"):
        sandbox.SandboxedPython()
    monkeypatch.setattr(sys, "platform", "freebsd")
    with pytest.raises(
        UsageError, match="needs Linux with bubblewrap, or macOS; the python tool runs everywhere"
    ):
        sandbox.SandboxedPython()


def test_what_the_system_doesnt_bound_is_watched(stand_in, monkeypatch):
    monkeypatch.setattr(sandbox, "_PROBE", "")  # the program that stands for it holds nothing
    monkeypatch.setattr(sandbox_child, "MEMORY_BYTES", 200_000_000)
    monkeypatch.setattr(sandbox, "_DRIVE_BYTES", 10_000_000)
    there = sandbox.SandboxedPython()
    scratch = Path(there._cage.scratch)
    tool = PythonTool(there)

    def run(code):
        return tool.run(Message("assistant", code, "analysis", "python", "code"), Stop())

    assert run("import os\nx = 41").ok and run("x + 1").text == "42\n"
    assert run("os.getcwd()").text == f"{str(scratch)!r}\n"
    assert "LOCALOSS_HOME" not in run("sorted(os.environ)").text
    assert run("import resource\nresource.getrlimit(resource.RLIMIT_FSIZE)[0]").text == "200000000\n"
    hungry = run("b = bytearray(300_000_000)\nwhile True:\n    pass")
    assert not hungry.ok and hungry.text == f"MemoryError: more than 0.2 GB\n{RESTARTED}"
    writing = run("open('big', 'wb').write(bytes(20_000_000))\nwhile True:\n    print('on', end='')")
    assert not writing.ok and "OSError: more than 10 MB of files" in writing.text
    (scratch / "big").unlink()
    assert "NameError" in run("x").text
    tool.close()
    assert not scratch.exists()
