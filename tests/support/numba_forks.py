"""Scripts in processes forked from one that has imported Numba and compiled once: a second less for each.

What is forked has its own environment, folder and output, and has looked at no cache before. Not on Windows.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


def _serve() -> None:
    """Fork for each line of stdin; tell the wait status of what was forked."""
    import numba
    import numpy as np

    from quant.format import kernel_cache  # noqa: F401 - for what is forked

    numba.njit(lambda x: 2 * x)(1)
    np.zeros(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(json.loads(line))
        print(os.waitpid(pid, 0)[1], flush=True)


def _become(request: dict[str, Any]) -> None:
    """Run the script that is asked for, to its end."""
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(request[name], os.O_WRONLY)
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.path.insert(0, request["folder"])
        sys.dont_write_bytecode, tempfile.tempdir = True, None
        exec(request["script"], {"__name__": "__main__"})
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Forker:
    """The process that forks."""

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root)},
        )

    def run(self, script: str, environment: dict[str, str], folder: Path) -> tuple[list[str], str]:
        """Run it in `folder`, whose modules it may import: its output's lines, and its errors."""
        with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
            asked = dict(script=script, environment=environment, folder=str(folder))
            asked |= dict(stdout=out.name, stderr=err.name)
            assert self._process.stdin and self._process.stdout
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            status, said = int(self._process.stdout.readline()), err.read()
            assert status == 0, said
            return out.read().splitlines(), said

    def close(self) -> None:
        self._process.communicate()


if __name__ == "__main__":
    _serve()
