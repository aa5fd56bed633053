"""The command line on a scripted engine as a process: forked where the system can, which needs no second."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent


def start_scripted(folder: Path, *arguments: str) -> Any:
    """Start it in `folder`, its data folder, which holds script.json; what has the methods of Popen."""
    command = ["script.json", *arguments]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "LOCALOSS_HOME": str(folder)}
    with contextlib.chdir(folder):
        if sys.platform == "win32":
            program, pipe = [sys.executable, str(TESTS / "support" / "scripted.py")], subprocess.PIPE
            return subprocess.Popen(
                [*program, *command], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
            )
        from support import forked

        return forked.Process(command, environment)
