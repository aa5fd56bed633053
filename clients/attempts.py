"""Tries one client: a plain answer, a stream, a tool's round trip, each within its time."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from catalogue import ECHOED, FOUND, KINDS, PROGRAMS, SHOUTED, SNIPPET, Client, Kind, Program
from install import programs_of, python_of
from snippets import command_of, is_answer, snippets

HERE = Path(__file__).parent
_MARK = "LOCALOSS_CLIENTS_RUN"  # in the environment of all that an attempt starts
_GENERATES = (
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/completions",
    "/api/chat",
    "/api/generate",
)


@dataclass
class Result:
    """What came of a client: passed is "yes", "no" or "has none" by column. notes: what else was seen."""

    passed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    version: str = ""
    problem: str = ""

    def passes(self, columns: Sequence[str]) -> bool:
        return not self.problem and all(self.word(column) != "no" for column in columns)

    def text(self, columns: Sequence[str]) -> str:
        words = (f"{column}: {self.word(column)}" for column in columns)
        return "  ".join(filter(None, (self.version, *words, self.problem, *self.notes)))

    def word(self, column: str) -> str:
        return self.passed.get(column, "no")


def try_client(
    folder: Path, client: Client, url: str, patience: float, kinds: tuple[Kind, ...] = KINDS
) -> Result:
    wire = folder / "wire.jsonl"
    wire.touch()
    before = wire.stat().st_size
    if client.script:
        passed = _try_library(folder, client, url, patience * len(KINDS))
    else:
        passed = _Trial(folder, client, PROGRAMS[client.name], url, patience).passed(kinds)
    passed |= _try_snippet(folder, client, url, patience)
    return Result(passed, notes=_refusals(_seen(wire, before)))


def _try_library(folder: Path, client: Client, url: str, patience: float) -> dict[str, str]:
    if client.registry == "npm":
        script = folder / "js" / "js_clients.mjs"  # modules are looked for where the script is
        script.write_text((HERE / "js_clients.mjs").read_text(encoding="utf-8"), encoding="utf-8")
        command = ["node", script, client.script, url]
    else:
        command = [python_of(folder, client), HERE / "python_clients.py", client.script, url]
    lines = output(folder, client.name, command, {}, patience).splitlines()
    told = [json.loads(line) for line in lines if line.startswith('["') and line.endswith("]")]
    return {what: word for what, word, _ in told}


def _try_snippet(folder: Path, client: Client, url: str, patience: float) -> dict[str, str]:
    """Whether the client's snippet in the documentation does what it says."""
    if client.name not in snippets():
        return {}
    shutil.rmtree(folder / "work", ignore_errors=True)  # it makes its own files
    command = command_of(client.name, url, python_of(folder, client), folder / "js")
    path = f"{programs_of(folder, client)}{os.pathsep}{os.environ['PATH']}"
    said = output(folder, client.name, command, {"PATH": path}, patience)
    return {SNIPPET: yes_or_no(is_answer(client.name, said))}


class _Trial:
    """A program's attempts."""

    def __init__(self, folder: Path, client: Client, program: Program, url: str, patience: float) -> None:
        self._folder, self._client, self._program, self._url = folder, client, program, url
        self._patience, self._wire = patience, folder / "wire.jsonl"

    def passed(self, kinds: tuple[Kind, ...]) -> dict[str, str]:
        return {
            kind: "has none" if asked is None else self._try(kind, asked)
            for kind, asked in zip(kinds, self._program.attempts, strict=True)
        }

    def _try(self, kind: Kind, asked: Sequence[str]) -> str:
        environment, arguments = self._told()
        before = self._wire.stat().st_size
        written = self._folder / "work" / (self._program.writes or "")
        if self._program.writes:
            written.unlink(missing_ok=True)
        said = self._output([self._program.command, *arguments, *asked], environment)
        if kind == "tool" and self._program.writes:
            return yes_or_no(written.exists() and "localoss-42" in written.read_text())
        if kind == "web_search":
            return yes_or_no(re.search(FOUND, said, re.S))
        if kind == "tool":
            return yes_or_no(re.search(ECHOED, said, re.S))
        streamed = any(
            one["streamed"] and one["pieces"] > 2 and one["path"] in _GENERATES
            for one in _seen(self._wire, before)
        )
        return yes_or_no(SHOUTED in said and (kind == "plain" or streamed))

    def _output(self, command: list[str], environment: dict[str, str]) -> str:
        name, *rest = command
        executable = programs_of(self._folder, self._client) / name
        return output(self._folder, self._client.name, [executable, *rest], environment, self._patience)

    def _told(self) -> tuple[dict[str, str], list[str]]:
        """What it has to know of the server, as `localoss launch` gives it each time or the table says."""
        from localoss.cli.launch import PROGRAMS as KNOWN
        from localoss.cli.launch import told_in

        program = self._program
        if program.launch is None:
            environment = {name: value.replace("URL", self._url) for name, value in program.environment}
            return environment, list(program.arguments)
        known = KNOWN[program.launch]
        told = (self._url, "demo", "none")
        folder = self._folder / "home" / f"{program.launch}-files"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return told_in(known, told, folder)


def output(folder: Path, name: str, command: list, environment: dict[str, str], patience: float) -> str:
    """What a command writes, in a home folder and an empty folder of its own, and what it started ended."""
    work, home = folder / "work", folder / "home"
    work.mkdir(exist_ok=True)
    home.mkdir(exist_ok=True)
    own = {"HOME": str(home), "PWD": str(work), "SHELL": "/bin/bash", "NO_COLOR": "1"}
    own |= {
        "DISABLE_TELEMETRY": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks the web for prices
        # else aider writes them where the repository begins that the folder lies in
        "AIDER_CHAT_HISTORY_FILE": str(home / "aider.md"),
        "AIDER_INPUT_HISTORY_FILE": str(home / "aider.history"),
        _MARK: str(os.getpid()),
    }
    log = folder / "logs" / (re.sub(r"\W+", "-", name).strip("-") + ".log")
    log.parent.mkdir(exist_ok=True)
    with open(log, "a+", encoding="utf-8", errors="replace") as file:
        file.write(f"$ {' '.join(map(str, command))}\n")
        file.flush()
        begins, began_s = file.tell(), time.monotonic()
        # Into a file: children that outlive the program would keep a pipe open.
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | own | environment,
            cwd=work,
            start_new_session=True,
        )
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            file.write(f"\n(more than {patience:.0f} s)\n")
        finally:
            _end_all(process)
        file.write(f"\n(after {time.monotonic() - began_s:.1f} s: {process.returncode})\n")
        file.flush()
        file.seek(begins)
        return "\n" + file.read()


def _end_all(process: subprocess.Popen) -> None:
    """End a program with all that it started: some leave servers of their own behind, in other sessions."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while left := [other for other in psutil.process_iter() if _is_ours(other)]:
        for other in left:
            with suppress(psutil.Error):
                other.kill()
        psutil.wait_procs(left, timeout=10)


def _is_ours(process: psutil.Process) -> bool:
    """Whether an attempt of this run started it."""
    with suppress(psutil.Error):
        return process.pid != os.getpid() and process.environ().get(_MARK) == str(os.getpid())
    return False


def _seen(wire: Path, after: int) -> list[dict]:
    with open(wire, encoding="utf-8") as file:
        file.seek(after)
        return [json.loads(line) for line in file]


def _refusals(seen: list[dict]) -> list[str]:
    """What the server refused, each once."""
    told = {
        f"{one['method']} {one['path']} was answered {one['status']}" for one in seen if one["status"] >= 400
    }
    return sorted(told)


def yes_or_no(passes: object) -> str:
    return "yes" if passes else "no"
