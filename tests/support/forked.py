"""`localoss` on scripted engines, each a process of its own that needs no second to import everything.

One process for all the tests of this one imports it, loads the vocabulary, and forks when it is asked to: the
new process has its own arguments, environment, folder, files and terminal, as any other. Not on Windows.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import traceback
from pathlib import Path
from typing import IO, Any

TESTS = Path(__file__).parent.parent
_STANDARD = 3  # stdin, stdout, stderr
_PRELOADED = ["support.scripted", "localoss.cli.chat", "localoss.cli.run", "rich.markdown", "prompt_toolkit"]


# In the process that forks


def _serve(requests: socket.socket) -> None:
    """Fork for each request until the tests are done; tell each one's pid, and its wait status at its end."""
    for name in _PRELOADED:
        importlib.import_module(name)
    from localoss.chat import harmony

    harmony.encoding()
    # What is forked looks at none of this for garbage, a sixth of a second for each chat.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    told: dict[int, int] = {}  # by pid: where its status is wanted

    def reap(*_: Any) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                with contextlib.suppress(BrokenPipeError):
                    os.write(told[pid], str(status).encode())
                os.close(told.pop(pid))

    signal.signal(signal.SIGCHLD, reap)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests
    while True:
        length, files, _, _ = socket.recv_fds(requests, 4, _STANDARD + 1)
        if not length:
            return
        request = json.loads(requests.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            _become(request, files[:_STANDARD])
        told[pid] = files[_STANDARD]
        for file in files[:_STANDARD]:
            os.close(file)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        requests.sendall(pid.to_bytes(8, "big"))


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Be the program that was asked for, to its end."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(_STANDARD, 256)
        if request["is_terminal"]:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        _open_standard_streams()
        sys.argv = request["arguments"]
        code = _run()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run() -> int:
    from support import scripted

    try:
        scripted.main()
    except SystemExit as end:
        threading._shutdown()  # type: ignore[attr-defined]  # as an interpreter does before it ends
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _open_standard_streams() -> None:
    """As an interpreter opens them."""
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8", closefd=False)
    buffering = 1 if os.isatty(1) else -1
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffering, encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)


# In the tests


class _Exit:
    """The end of a forked process: `status` as os.waitpid gives it, None before."""

    def __init__(self, pid: int, file: int) -> None:
        self.pid, self.status, self._file = pid, None, file
        self._lock = threading.Lock()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it has ended, after at most `timeout_s`."""
        with self._lock:
            if self.status is None and select.select([self._file], [], [], timeout_s)[0]:
                self.status = int(os.read(self._file, 16))
                os.close(self._file)
            return self.status is not None

    def kill(self, number: int) -> None:
        if not self.wait(0):
            os.kill(self.pid, number)


@functools.cache
def _server() -> socket.socket:
    """The connection to the process that forks, which ends, and is waited for, with this one."""
    ours, theirs = socket.socketpair()
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    process = subprocess.Popen(
        [sys.executable, "-m", "support.forked"], stdin=theirs, env=os.environ | {"PYTHONPATH": paths}
    )
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)  # before the wait
    return ours


def fork(
    arguments: list[str], environment: dict[str, str], files: list[int], is_terminal: bool = False
) -> _Exit:
    """Start scripted.py with `arguments`; `files` are its stdin, stdout and stderr."""
    asked = dict(
        arguments=["scripted.py", *arguments],
        environment=environment,
        folder=os.getcwd(),
        is_terminal=is_terminal,
    )
    request, server = json.dumps(asked).encode(), _server()
    read, write = os.pipe()
    try:
        socket.send_fds(server, [len(request).to_bytes(4, "big")], [*files, write])
        server.sendall(request)
        answer = server.recv(8, socket.MSG_WAITALL)
    finally:
        os.close(write)
    return _Exit(int.from_bytes(answer, "big"), read)


class Process:
    """What the tests use of subprocess.Popen, with pipes of text or bytes."""

    def __init__(self, arguments: list[str], environment: dict[str, str], text: bool = True) -> None:
        pipes = [os.pipe() for _ in range(_STANDARD)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        self._exit = fork(arguments, environment, theirs)
        for file in theirs:
            os.close(file)
        self.pid = self._exit.pid
        mode, encoding = ("", "utf-8") if text else ("b", None)
        self.stdin: IO[Any] = os.fdopen(pipes[0][1], "w" + mode, encoding=encoding)
        self.stdout, self.stderr = (os.fdopen(read, "r" + mode, encoding=encoding) for read, _ in pipes[1:])

    @property
    def returncode(self) -> int | None:
        return os.waitstatus_to_exitcode(self._exit.status) if self._exit.wait(0) else None

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._exit.wait(timeout):
            raise subprocess.TimeoutExpired("scripted.py", timeout or 0)
        return os.waitstatus_to_exitcode(self._exit.status)

    def send_signal(self, number: int) -> None:
        self._exit.kill(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, data: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        said: dict[str, Any] = {}
        threads = [
            threading.Thread(target=lambda name=name: said.update({name: getattr(self, name).read()}))
            for name in ("stdout", "stderr")
        ]
        for thread in threads:
            thread.start()
        with contextlib.suppress(BrokenPipeError):
            if data:
                self.stdin.write(data)
            self.stdin.close()
        self.wait(timeout)
        for thread in threads:
            thread.join()
        self.stdout.close()
        self.stderr.close()
        return said["stdout"], said["stderr"]


def run(arguments: list[str], environment: dict[str, str], data: bytes) -> tuple[int, bytes, bytes]:
    """Run it with `data` on its stdin: its exit code, stdout and stderr."""
    process = Process(arguments, environment, text=False)
    out, err = process.communicate(data, timeout=60)
    return process.wait(), out, err


try:
    import pexpect
    import ptyprocess
except ImportError:  # only terminals need it
    pass
else:

    class _Pty(ptyprocess.PtyProcess):
        """A pseudo-terminal whose program isn't this process's own child."""

        def __init__(self, arguments, environment, dimensions):
            master, slave = pty.openpty()
            termios.tcsetwinsize(slave, dimensions)
            self._exit = fork(arguments, environment, [slave] * _STANDARD, is_terminal=True)
            os.close(slave)
            super().__init__(self._exit.pid, master)

        def isalive(self):
            if not self.terminated and self._exit.wait(None if self.flag_eof else 0):
                self.status, self.terminated = self._exit.status, True
                code = os.waitstatus_to_exitcode(self.status)
                self.exitstatus, self.signalstatus = (code, None) if code >= 0 else (None, -code)
            return not self.terminated

    class Spawned(pexpect.spawn):
        """pexpect.spawn of a scripted chat."""

        def __init__(self, arguments, env, dimensions, **options):
            self._start = lambda: _Pty(arguments, env, dimensions)
            super().__init__(sys.executable, [], env=env, dimensions=dimensions, **options)

        def _spawnpty(self, args, **options):
            return self._start()


if __name__ == "__main__":
    _serve(socket.socket(fileno=0))
