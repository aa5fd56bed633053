"""One measurement: a fresh process that prints JSON; and the machine it ran on."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
READ_BYTES = 16 << 20


class MeasureError(Exception):
    """A measurement gave no result; the message is one line."""


@dataclass(frozen=True)
class Measurement:
    """A command that prints JSON, and how to run it."""

    name: str
    command: tuple[str, ...]
    files: Path  # a file or folder that should be in the page cache
    needs_bytes: int = 0  # memory beyond that of files that can be dropped; a warning if there is less
    cold_kernels: bool = False  # compile everything: start with an empty kernel cache
    most: int = 1000  # runs, however many pairs are asked for

    @property
    def shown(self) -> str:
        """The command without the paths of this machine: the same on another one."""
        parts = [Path(part).name if os.sep in part else part for part in self.command]
        return " ".join(parts) + (" (kernels not cached)" if self.cold_kernels else "")


def take(measurement: Measurement, timeout_s: float) -> dict[str, Any]:
    """Run it: what it printed, when it was run, and wall_s, first_output_s and max_rss_bytes of the process.

    Raises: MeasureError.
    """
    read_through(measurement.files)
    available = psutil.virtual_memory().available
    if measurement.needs_bytes > available:
        print(
            f"warning: {measurement.name} takes about {measurement.needs_bytes / 1e9:.1f} GB of memory, "
            f"{available / 1e9:.1f} GB are available: it may swap, slow down or be killed",
            file=sys.stderr,
        )
    taken = time.strftime("%Y-%m-%d %H:%M")
    with tempfile.TemporaryDirectory(prefix="localoss-kernels-") as empty:
        elsewhere = {"XDG_CACHE_HOME": empty, "HOME": empty, "LOCALAPPDATA": empty}
        environment = os.environ | (elsewhere if measurement.cold_kernels else {})
        output, process = run(measurement.command, environment, timeout_s)
    printed = last_json(output)
    printed.pop("model", None)  # a path of this machine: no reader's business
    return {"taken": taken, "commit": commit(), **printed, **process}


def run(
    command: tuple[str, ...], environment: dict[str, str], timeout_s: float
) -> tuple[str, dict[str, float]]:
    """A process's stdout, and what the process took. Raises: MeasureError if it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        try:
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment
            )
        except OSError as error:
            raise MeasureError(f"{command[0]}: {error.strerror}") from None
        alarm = threading.Timer(timeout_s, child.kill)
        alarm.start()
        try:
            assert child.stdout is not None
            lines = [child.stdout.readline()]
            first_output_s = time.perf_counter() - start
            lines += child.stdout.readlines()
            peak = _wait(child)
        except BaseException:
            child.kill()
            raise
        finally:
            alarm.cancel()
        wall_s = time.perf_counter() - start
        if child.returncode:
            errors.seek(0)
            last = errors.read().strip().splitlines()[-1:]
            why = f"killed by signal {-child.returncode}" if child.returncode < 0 else "".join(last)
            raise MeasureError(f"failed after {wall_s:.0f} s: {why or child.returncode}")
    return "".join(lines), {"wall_s": wall_s, "first_output_s": first_output_s, **peak}


def _wait(child: "subprocess.Popen[str]") -> dict[str, int]:
    """Wait for the end of `child`; its peak memory, where the system tells it."""
    if not hasattr(os, "wait4"):
        child.wait()
        return {}
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return {"max_rss_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)}


def last_json(text: str) -> dict[str, Any]:
    """The last JSON object of `text` that begins a line. Raises: MeasureError if there is none."""
    start = ("\n" + text).rfind("\n{")
    if start < 0:
        raise MeasureError("printed no JSON")
    try:
        return dict(json.loads(text[start:]))
    except ValueError as error:
        raise MeasureError(f"printed malformed JSON: {error}") from None


def read_through(path: Path) -> None:
    """Read a file, or a folder's files, so that they are in the page cache as far as memory allows."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb", buffering=0) as opened:
                while opened.read(READ_BYTES):
                    pass


def commit() -> str:
    """The commit of this checkout, with a + if files differ from it; empty outside of git."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        ).stdout.strip()
    except OSError:
        return ""


def machine() -> dict[str, Any]:
    """What kind of machine this is; nothing that tells which one."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return {
        "cpu": name,
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(peer_python: str | None) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("localoss", "numba", "llvmlite", "numpy"):
        found[name] = importlib.metadata.version(name)
    if peer_python:
        code = "from importlib.metadata import version; print(version('xllamacpp'))"
        try:
            asked = subprocess.run([peer_python, "-c", code], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return found
        if asked.returncode == 0:
            found["llama.cpp (xllamacpp)"] = asked.stdout.strip()
    return found
