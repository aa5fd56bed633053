"""A disk whose n-th step fails, or is the last before the process or the power dies."""

import errno
import os
import signal
import threading
from pathlib import Path

from quant.format import disk

STEPS = ("write", "sync", "replace", "remove", "make_folder", "sync_folder")
FAIL, FULL, KILL, POWER_CUT = "fail", "full", "kill", "power cut"


class Faults:
    """Wraps every step of quant.format.disk: `fault` happens at step `at`, from 0 on; without one it counts.

    fail: that step raises EIO. full: it and all later writes raise ENOSPC. kill: SIGKILL, a write half done.
    power cut: a kill, and what wasn't synced is gone: contents of files, renames, removals.
    """

    def __init__(self, monkeypatch, fault=None, at=None):
        self.steps = []
        self._fault, self._at = fault, at
        self._lock = threading.RLock()  # files are written and synced in threads: one step at a time
        self._unsynced = set()
        self._undo = []  # (path, content before or None), of renames and removals since the folder's sync
        for name in STEPS:
            monkeypatch.setattr(disk, name, self._wrap(name, getattr(disk, name)))

    def _wrap(self, name, step):
        def wrapped(*arguments):
            with self._lock:
                self._before(name, arguments)
                count = len(self.steps)
                self.steps.append(name)
                if self._fault == FULL and count >= self._at and name == "write":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if count == self._at:
                    self._strike(name, step, arguments)
                return step(*arguments)

        return wrapped

    def _strike(self, name, step, arguments):
        if self._fault == FAIL:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self._fault in (KILL, POWER_CUT):
            if name == "write":
                file, chunk = arguments
                step(file, memoryview(chunk)[: len(chunk) // 2])
            if self._fault == POWER_CUT:
                self._lose()
            os.kill(os.getpid(), signal.SIGKILL)

    def _before(self, name, arguments):
        """Note what a power cut would undo; nothing may be renamed before it is on the disk."""
        if name == "write":
            self._unsynced.add(Path(arguments[0].name))
        elif name == "sync":
            self._unsynced.discard(Path(arguments[0].name))
        elif name == "replace":
            assert arguments[0] not in self._unsynced, f"{arguments[0]} renamed before it was synced"
        elif name == "sync_folder":
            self._undo.clear()
        if name in ("replace", "remove"):
            self._undo += [(path, path.read_bytes() if path.exists() else None) for path in arguments]

    def _lose(self):
        for path in self._unsynced:
            if path.exists():
                path.write_bytes(b"")
        for path, content in reversed(self._undo):
            if content is not None:
                path.write_bytes(content)
            elif path.exists():
                path.unlink()


def in_child(work):
    """Run `work()` in a forked process; gives its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
