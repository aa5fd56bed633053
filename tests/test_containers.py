"""A container whose user has no home and no entry in /etc/passwd."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UNSHARE = ["unshare", "--user", "--map-user=54321", "--mount"]
LOCALOSS = [sys.executable, "-m", "localoss"]


@pytest.fixture(scope="module")
def stranger():
    """What comes before a command to run it as a user whom /etc/passwd doesn't know."""
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare, and the right to use it")
    return UNSHARE


def localoss(before, *arguments, cwd, **environment):
    """The command in an environment of these variables alone. It may end with a line, never a traceback."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    } | environment
    done = subprocess.run(
        [*before, *LOCALOSS, *arguments],
        capture_output=True, text=True, timeout=300, cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "a bug" not in done.stderr, done.stderr
    return done


COMMANDS = [("list",), ("sessions", "list")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_home_and_no_entry_in_passwd(command, stranger, tmp_path):
    """A folder for temporary files stands in, which nobody else may enter; one line says so."""
    (tmp_path / "t").mkdir(exist_ok=True)
    done = localoss(stranger, *command, cwd=tmp_path, TMPDIR=str(tmp_path / "t"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") <= 3
    assert not (tmp_path / "~").exists(), "a folder by that name"
    stand_in = tmp_path / "t" / "localoss-54321"
    if stand_in.exists():
        assert stat.S_IMODE(stand_in.stat().st_mode) == 0o700
