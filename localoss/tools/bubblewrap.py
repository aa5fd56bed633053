"""Linux's sandbox for cpython: bubblewrap's namespaces and a filter of system calls.

Nothing of the user's files is there, no network, no environment; what it writes lies in memory.
"""

import base64
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from localoss.errors import UsageError
from localoss.tools import seccomp
from localoss.tools.cage import Cage

_DRIVE_BYTES = 256 << 20
_ENVIRONMENT = {"HOME": "/mnt/data", "MPLBACKEND": "Agg", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "2"}
_ESSENTIAL = ("/usr", "/bin", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/etc/alternatives")


class Bubblewrap(Cage):
    """Namespaces of its own, with a disk in memory."""

    child = "/sandbox.py"
    environment: dict[str, str] = {}  # noqa: RUF012 - inside it is set by bubblewrap

    def __init__(self, python: str, folders: Sequence[str], child: str) -> None:
        """folders: those that are there, read-only. Raises: UsageError where there is no bubblewrap."""
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise UsageError("cpython needs bubblewrap: install the package bubblewrap, or use python")
        self._bwrap, self.filter = bwrap, base64.b64encode(seccomp.program()).decode("ascii")
        self.python, self._child = python, child
        self._folders = [folder for folder in folders if folder != "/usr" and not folder.startswith("/usr/")]

    def command(self) -> list[str]:
        words = [self._bwrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"]
        words.append("--clearenv")
        for path in _ESSENTIAL:
            target = Path(path)
            if target.is_symlink() and path.count("/") == 1:
                words += ["--symlink", os.readlink(path), path]
            elif target.exists():
                words += ["--ro-bind", path, path]
        for folder in self._folders:
            words += ["--ro-bind", folder, folder]
        words += ["--proc", "/proc", "--dev", "/dev", "--dir", "/mnt"]
        for folder in ("/tmp", "/mnt/data"):
            words += ["--size", str(_DRIVE_BYTES), "--tmpfs", folder]
        words += ["--ro-bind", self._child, self.child, "--chdir", "/mnt/data", "--cap-drop", "ALL"]
        words += ["--remount-ro", "/dev", "--remount-ro", "/"]  # nothing else can be filled
        for name, value in _ENVIRONMENT.items():
            words += ["--setenv", name, value]
        return [*words, "--"]
