"""Python by CPython, in the system's own sandbox: see bubblewrap.py for Linux and seatbelt.py for macOS."""

import base64
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from localoss import settings
from localoss.chat.agent import Result, Stop
from localoss.errors import LocalossError, UsageError
from localoss.tools import pictures, sandbox_child
from localoss.tools.cage import Cage
from localoss.tools.output import Output
from localoss.tools.python_tool import INTERNET, LIMIT_S, NO_OUTPUT, RESTARTED, after_output

PACKAGES = ("numpy", "sympy", "matplotlib")
_DRIVE_BYTES = 256 << 20
_MOST_REPLY_BYTES = 100_000_000
_START_S = 20.0
_WATCHED_S = 0.25  # how often memory and disk are looked at where the system doesn't bound them
# What must not be possible is tried before anything is run there: a sandbox that doesn't hold is none.
_PROBE = """\
def _():
    import os, socket
    for name, reach in dict(
        files=lambda: open({path!r}).read(),
        writing=lambda: open({path!r}, "r+").write("x"),
        network=lambda: socket.create_connection(("127.0.0.1", {port}), 5),
        programs=lambda: os.fork() or os._exit(0),
    ).items():
        try:
            reach()
        except OSError:
            continue
        print("reached", name)
_()
del _"""


def environment() -> Path:
    """The virtual environment of the sandbox; `localoss tools setup` makes it."""
    return settings.home() / "python-env"


def set_up(say: Callable[[str], None]) -> None:
    """Make the sandbox's virtual environment, with PACKAGES. Raises: LocalossError."""
    folder = environment()
    say(f"installing {', '.join(PACKAGES)} into {folder}")
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *PACKAGES],
    ):
        if subprocess.run(command).returncode != 0:
            raise LocalossError(f"{' '.join(command[:4])} failed; cpython goes on without these packages")


class SandboxedPython:
    """A process for a conversation; it is replaced when it crashed or had to be ended."""

    def __init__(self) -> None:
        """Raises: UsageError where there is no such sandbox."""
        has_packages = (environment() / "bin" / "python").exists()
        self._cage = _cage(has_packages)
        self._process: subprocess.Popen[bytes] | None = None
        self._replies = -1
        self._ended_for = ""  # the bound that it was ended at
        # bubblewrap's --die-with-parent looks at the thread that started it; a call's thread ends with it.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="cpython")
        self._modules = f"{', '.join(PACKAGES)} and " if has_packages else ""
        self.reach = "nothing: no files of yours, no network, no environment"
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def notes(self) -> tuple[tuple[str, str], ...]:
        there = f"There is no internet access. Of modules, {self._modules}the standard library are there."
        return ((INTERNET, f"{there} No processes can be started."),)

    def run(self, code: str, stop: Stop) -> Result:
        was_lost = self._process is not None and self._process.poll() is not None
        process, output = self._open(), Output()
        request = json.dumps({"code": code}).encode("ascii") + b"\n"
        with stop.ending(process.kill):
            reply = self._exchange(process, request, output)
        if reply is None:
            self._end()
            why = self._ended_for or "it crashed"
            if stop.reason == "time":
                why = f"TimeoutError: it ran longer than {LIMIT_S:.0f} s"
            return Result(after_output(output, f"{why}\n{RESTARTED}"), ok=False)
        try:
            answer = json.loads(reply)
            drawn = [base64.b64decode(data) for data in answer["pictures"]]
            ok = answer["ok"] is True
        except (ValueError, KeyError, TypeError):  # what it runs may write there, too
            self._end()
            return Result(after_output(output, f"its reply can't be read\n{RESTARTED}"), ok=False)
        paths = pictures.keep(drawn)
        text = str(output) or ("" if paths else NO_OUTPUT)
        if paths:
            text = after_output(text, f"[{len(paths)} pictures, shown to the user]")
        if was_lost:
            text = after_output(text, RESTARTED)
        return Result(text, paths, ok)

    def close(self) -> None:
        self._end()
        self._starter.shutdown(wait=False)
        self._cage.close()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    stream and stream.close()
            os.close(self._replies)

    def _open(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._ended_for = ""
            cage = self._cage
            reading, writing = os.pipe()
            try:
                self._process = self._starter.submit(
                    subprocess.Popen,
                    [*cage.command(), cage.python, "-I", "-u", cage.child, str(writing), cage.filter],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(writing,),
                    env=cage.environment,
                    cwd=cage.scratch or None,
                    start_new_session=True,  # Ctrl-C is for the model, or ends a call by `kill`
                ).result()
            except OSError as error:
                os.close(reading)
                raise LocalossError(
                    f"cpython's sandbox can't be started: {error.strerror or error}"
                ) from None
            finally:
                os.close(writing)
            self._replies = reading
            self._check()
        assert self._process
        return self._process

    def _check(self) -> None:
        """Raises: UsageError if nothing runs in the sandbox, as where user namespaces are forbidden."""
        process, output = self._process, Output()
        assert process
        with _outside() as (path, port):
            probe = json.dumps({"code": _PROBE.format(path=path, port=port)}).encode("ascii") + b"\n"
            reply = self._exchange(process, probe, output, _START_S)
        said = str(output).strip().splitlines()
        if reply is None or said:
            self._end()
            why = said[-1] if said else "it doesn't answer"
            if any(line.startswith("reached ") for line in said):
                why = f"it doesn't hold: {', '.join(said)}"
            raise UsageError(f"cpython's sandbox doesn't start here ({why}); use the python tool")

    def _exchange(
        self, process: "subprocess.Popen[bytes]", request: bytes, output: Output, limit_s: float | None = None
    ) -> bytes | None:
        """Send a request, read output until the reply is there; None if the process ended before."""
        assert process.stdin and process.stdout
        try:
            process.stdin.write(request)
            process.stdin.flush()
        except OSError:
            pass  # its output says why it is gone
        printed, reply = process.stdout.fileno(), b""
        ends = None if limit_s is None else time.monotonic() + limit_s
        while not reply.endswith(b"\n"):
            ready = self._ready([printed, self._replies], process, ends)
            data = {one: os.read(one, 1 << 20) for one in ready}
            if data.get(printed):
                output.write(data[printed].decode("utf-8", "replace"))
            reply += data.get(self._replies, b"")
            is_over = not ready or data.get(self._replies) == b""
            if is_over or len(reply) > _MOST_REPLY_BYTES:
                _drain(printed, output)
                return None
        _drain(printed, output)
        return reply

    def _ready(
        self, descriptors: list[int], process: "subprocess.Popen[bytes]", ends: float | None
    ) -> list[int]:
        """Those that can be read, or none at the end of time, or once a bound was passed."""
        watches = not self._cage.bounds_itself
        while True:
            left = None if ends is None else max(ends - time.monotonic(), 0.0)
            step = _WATCHED_S if watches and (left is None or left > _WATCHED_S) else left
            if watches and self._is_beyond(process.pid):
                return []
            ready, _, _ = select.select(descriptors, [], [], step)
            if ready or step == left:
                return ready

    def _is_beyond(self, pid: int) -> bool:
        """Whether it has more memory or disk than it may, which `_ended_for` says then."""
        import psutil

        memory = disk = 0
        with contextlib.suppress(psutil.Error):
            memory = psutil.Process(pid).memory_info().rss
        disk = _size(self._cage.scratch) if self._cage.scratch else 0
        if memory > sandbox_child.MEMORY_BYTES:
            self._ended_for = f"MemoryError: more than {sandbox_child.MEMORY_BYTES / 1e9:.1f} GB"
        elif disk > _DRIVE_BYTES:
            self._ended_for = f"OSError: more than {_DRIVE_BYTES / 1e6:.0f} MB of files"
        return bool(self._ended_for)


def _cage(has_packages: bool) -> Cage:
    """Raises: UsageError where there is no such sandbox."""
    python = str(environment() / "bin" / "python") if has_packages else sys.executable
    if not has_packages and sys.prefix != sys.base_prefix:
        python = os.path.realpath(sys.executable)
    folders = _python_folders(has_packages)
    if sys.platform == "linux":
        from localoss.tools.bubblewrap import Bubblewrap

        return Bubblewrap(python, folders, sandbox_child.__file__)
    if sys.platform == "darwin":
        from localoss.tools.seatbelt import Seatbelt

        return Seatbelt(python, folders, sandbox_child.__file__)
    raise UsageError("cpython needs Linux with bubblewrap, or macOS; the python tool runs everywhere")


def _python_folders(has_packages: bool) -> list[str]:
    """Python's own folders and its virtual environment; none that lies in another."""
    prefixes = {sys.base_prefix, sysconfig.get_path("stdlib")}
    prefixes.add(os.path.realpath(sys.executable).rsplit("/bin/", 1)[0])
    if has_packages:
        prefixes.add(str(environment()))
    return sorted(p for p in prefixes if not any(p != o and p.startswith(f"{o}/") for o in prefixes))


@contextlib.contextmanager
def _outside() -> Iterator[tuple[str, int]]:
    """A file and a port of this machine that a sandbox must not reach."""
    with tempfile.NamedTemporaryFile() as file, socket.create_server(("127.0.0.1", 0)) as server:
        yield file.name, server.getsockname()[1]


def _size(folder: str) -> int:
    """Bytes of the files below a folder that changes meanwhile."""
    paths = (os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            total += os.lstat(path).st_blocks * 512
    return total


def _drain(descriptor: int, output: Output) -> None:
    """Take what is there already."""
    while select.select([descriptor], [], [], 0)[0]:
        data = os.read(descriptor, 1 << 20)
        if not data:
            return
        output.write(data.decode("utf-8", "replace"))
