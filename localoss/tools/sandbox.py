"""Python by CPython, in Linux's own sandbox: bubblewrap's namespaces, a filter of system calls, and limits.

Nothing of the user's files is there, no network, no environment; what it writes lies in memory.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from localoss import settings
from localoss.chat.agent import Result, Stop
from localoss.errors import LocalossError, UsageError
from localoss.tools import pictures, sandbox_child, seccomp
from localoss.tools.output import Output
from localoss.tools.python_tool import INTERNET, LIMIT_S, NO_OUTPUT, RESTARTED, after_output

PACKAGES = ("numpy", "sympy", "matplotlib")
_DRIVE_BYTES = 256 << 20
_MOST_REPLY_BYTES = 100_000_000
_START_S = 20.0
_CHILD = "/sandbox.py"  # where the child's program is, inside
_ENVIRONMENT = {"HOME": "/mnt/data", "MPLBACKEND": "Agg", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "2"}
_ESSENTIAL = ("/usr", "/bin", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/etc/alternatives")


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
        if sys.platform != "linux":
            raise UsageError("cpython needs Linux with bubblewrap; the python tool runs everywhere")
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise UsageError("cpython needs bubblewrap: install the package bubblewrap, or use python")
        self._bwrap, self._filter = bwrap, base64.b64encode(seccomp.program()).decode("ascii")
        self._process: subprocess.Popen[bytes] | None = None
        self._replies = -1
        has_packages = (environment() / "bin" / "python").exists()
        self._python = str(environment() / "bin" / "python") if has_packages else sys.executable
        self._modules = f"{', '.join(PACKAGES)} and " if has_packages else ""
        self.reach = "nothing: no files of yours, no network, no environment"
        self._open()

    def notes(self) -> tuple[tuple[str, str], ...]:
        there = f"There is no internet access. Of modules, {self._modules}the standard library are there."
        return ((INTERNET, f"{there} No processes can be started."),)

    def run(self, code: str, stop: Stop) -> Result:
        process, output = self._open(), Output()
        request = json.dumps({"code": code}).encode("ascii") + b"\n"
        with stop.ending(process.kill):
            reply = self._exchange(process, request, output)
        if reply is None:
            self.close()
            why = (
                f"TimeoutError: it ran longer than {LIMIT_S:.0f} s" if stop.reason == "time" else "it crashed"
            )
            return Result(after_output(output, f"{why}\n{RESTARTED}"), ok=False)
        try:
            answer = json.loads(reply)
            drawn = [base64.b64decode(data) for data in answer["pictures"]]
            ok = answer["ok"] is True
        except (ValueError, KeyError, TypeError):  # what it runs may write there, too
            self.close()
            return Result(after_output(output, f"its reply can't be read\n{RESTARTED}"), ok=False)
        paths = pictures.keep(drawn)
        text = str(output) or ("" if paths else NO_OUTPUT)
        if paths:
            text = after_output(text, f"[{len(paths)} pictures, shown to the user]")
        return Result(text, paths, ok)

    def close(self) -> None:
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
            self.close()
            reading, writing = os.pipe()
            try:
                self._process = subprocess.Popen(
                    [*self._command(), self._python, "-I", "-u", _CHILD, str(writing), self._filter],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(writing,),
                    env={},
                    start_new_session=True,  # Ctrl-C is for the model, or ends a call by `kill`
                )
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
        if self._exchange(process, b'{"code": ""}\n', output, _START_S) is None:
            said = str(output).strip().splitlines() or ["it doesn't answer"]
            self.close()
            raise UsageError(f"cpython's sandbox doesn't start here ({said[-1]}); use the python tool")

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
        while not reply.endswith(b"\n"):
            ready, _, _ = select.select([printed, self._replies], [], [], limit_s)
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

    def _command(self) -> list[str]:
        words = [self._bwrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"]
        words.append("--clearenv")
        for path in _ESSENTIAL:
            target = Path(path)
            if target.is_symlink() and path.count("/") == 1:
                words += ["--symlink", os.readlink(path), path]
            elif target.exists():
                words += ["--ro-bind", path, path]
        for folder in self._python_folders():
            words += ["--ro-bind", folder, folder]
        words += ["--proc", "/proc", "--dev", "/dev", "--dir", "/mnt"]
        for folder in ("/tmp", "/mnt/data"):
            words += ["--size", str(_DRIVE_BYTES), "--tmpfs", folder]
        words += ["--ro-bind", sandbox_child.__file__, _CHILD, "--chdir", "/mnt/data", "--cap-drop", "ALL"]
        words += ["--remount-ro", "/dev", "--remount-ro", "/"]  # nothing else can be filled
        for name, value in _ENVIRONMENT.items():
            words += ["--setenv", name, value]
        return [*words, "--"]

    def _python_folders(self) -> list[str]:
        """Python's own folders and its virtual environment; none that lies in another."""
        prefixes = {sys.base_prefix, sysconfig.get_path("stdlib")}
        prefixes.add(os.path.realpath(sys.executable).rsplit("/bin/", 1)[0])
        if self._modules:
            prefixes.add(str(environment()))
        elif sys.prefix != sys.base_prefix:
            self._python = os.path.realpath(sys.executable)
        kept = [p for p in prefixes if not any(p != o and p.startswith(f"{o}/") for o in {*prefixes, "/usr"})]
        return sorted(p for p in kept if p != "/usr")


def _drain(descriptor: int, output: Output) -> None:
    """Take what is there already."""
    while select.select([descriptor], [], [], 0)[0]:
        data = os.read(descriptor, 1 << 20)
        if not data:
            return
        output.write(data.decode("utf-8", "replace"))
