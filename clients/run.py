"""Every client against the player: installs them into a scratch folder, runs each, writes what passes.

`make clients` runs this; it needs npm, Python's registry and ten minutes. Nothing outside --folder and the
table is written: programs get a home folder of their own.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

NPM = [
    "@openai/codex",
    "@anthropic-ai/claude-code",
    "opencode-ai",
    "@qwen-code/qwen-code",
    "@continuedev/cli",
    "ai@latest",
    "@ai-sdk/openai@latest",
    "@ai-sdk/openai-compatible@latest",
    "@ai-sdk/anthropic@latest",
    "openai",
    "@anthropic-ai/sdk",
    "ollama",
    "@openai/agents",
    "zod",
]
PYPI = [
    "openai",
    "anthropic",
    "ollama",
    "langchain-openai",
    "langchain-ollama",
    "langchain-anthropic",
    "litellm",
    "openai-agents",
    "pydantic-ai-slim[openai]",
    "instructor",
    "smolagents[openai]",
    "inspect-ai",
]
PYTHON = [
    "openai_chat",
    "openai_responses",
    "anthropic",
    "ollama",
    "langchain_openai",
    "langchain_anthropic",
    "langchain_ollama",
    "litellm_openai",
    "litellm_anthropic",
    "litellm_ollama_chat",
    "openai_agents_chat",
    "openai_agents_responses",
    "pydantic_ai",
    "instructor",
    "smolagents",
    "inspect_ai",
]
JAVASCRIPT = [
    "openai_chat",
    "openai_responses",
    "anthropic",
    "ollama",
    "ai_sdk_openai",
    "ai_sdk_openai_compatible",
    "ai_sdk_anthropic",
    "openai_agents",
]
SAY = "please @say BANANA@"
ECHO = '"echo localoss-$((40+2))"'
# What each is given after what `localoss launch` gives it: to ask, to stream, to call a tool; None where it
# can't.
PROGRAMS = {
    "codex": (
        ["exec", "--skip-git-repo-check", SAY],
        ["exec", "--skip-git-repo-check", "--json", SAY],
        [
            *("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
            f'please @call exec_command {{"cmd": {ECHO}}}@',
        ],
    ),
    "claude": (
        ["-p", SAY],
        ["-p", "--output-format", "stream-json", "--verbose", "--include-partial-messages", SAY],
        [
            "-p",
            "--allowedTools",
            "Bash",
            "--",
            f'please @call Bash {{"command": {ECHO}, "description": "x"}}@',
        ],
    ),
    "opencode": (
        ["run", SAY],
        ["run", "--format", "json", SAY],
        ["run", f'please @call bash {{"command": {ECHO}, "description": "x"}}@'],
    ),
    "qwen": (
        ["-p", SAY],
        ["--output-format", "stream-json", "-p", SAY],
        ["--yolo", "-p", f'please @call run_shell_command {{"command": {ECHO}, "is_background": false}}@'],
    ),
    "continue": (
        ["-p", SAY],
        None,  # without a terminal it prints whole answers
        ["-p", "--auto", f'please @call Bash {{"command": {ECHO}}}@'],
    ),
}
KINDS = ("plain", "stream", "tool")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where clients are installed")
    parser.add_argument("--table", type=Path, default=HERE.parent / "docs" / "clients-table.md")
    parser.add_argument("--only", default="", help="part of a client's name")
    parser.add_argument("--patience", type=int, default=180, help="seconds that a client may take")
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    python = install(folder)
    with served(folder) as url:
        results = dict(tried(folder, python, url, chosen))
    write_table(chosen.table, results)
    failed = [
        name for name, passed in results.items() if any(passed.get(kind, False) is False for kind in KINDS)
    ]
    print(f"{len(results) - len(failed)} of {len(results)} pass", *failed, sep="\n  ")
    return bool(failed)


def install(folder: Path) -> Path:
    """The clients, from npm and PyPI, unless they are there; gives their Python."""
    (folder / "home").mkdir(parents=True, exist_ok=True)
    python = folder / "py" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "py"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PYPI], check=True)
    if not (folder / "js" / "node_modules").exists():
        (folder / "js").mkdir(exist_ok=True)
        (folder / "js" / "package.json").write_text('{"private": true, "type": "module"}')
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", *NPM], check=True, cwd=folder / "js")
    return python


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server whose model is the player."""
    log = folder / "server.log"
    environment = os.environ | {"LOCALOSS_HOME": str(folder / "localoss")}
    command = [sys.executable, HERE / "player.py", "serve", "demo", "--port", "0", "--no-page"]
    with open(log, "w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            while not (found := re.search(r"(http://\S+)/v1", log.read_text())):
                assert server.poll() is None, log.read_text()
                time.sleep(0.2)
            yield found[1]
        finally:
            server.terminate()
            server.wait()


def tried(folder, python, url, chosen):
    """Each client's name, and what of KINDS it was answered well."""
    script = folder / "js" / "js_clients.mjs"
    script.write_text((HERE / "js_clients.mjs").read_text(encoding="utf-8"), encoding="utf-8")
    commands = {f"{name} (Python)": [python, HERE / "python_clients.py", name, url] for name in PYTHON}
    commands |= {f"{name} (JavaScript)": ["node", script, name, url] for name in JAVASCRIPT}
    for name, command in commands.items():
        if chosen.only in name:
            lines = output(folder, command, {}, chosen.patience).splitlines()
            told = [json.loads(line) for line in lines if line.startswith("[") and line.endswith("]")]
            yield report(name, {what: ok for what, ok, _ in told})
    for name, attempts in PROGRAMS.items():
        if chosen.only in name:
            yield report(f"{name} (program)", ask_program(folder, url, name, attempts, chosen.patience))


def ask_program(folder, url, name, attempts, patience):
    from localoss.cli.launch import PROGRAMS as KNOWN

    program = KNOWN[name]
    arguments = program.arguments(url, "demo", "none")
    if program.config:
        file = folder / f"{name}.yaml"
        file.write_text(program.config(url, "demo", "none"))
        arguments = [str(file) if word == "FILE" else word for word in arguments]
    passed = {}
    for kind, asked in zip(KINDS, attempts, strict=True):
        if asked is None:
            passed[kind] = None
            continue
        command = [folder / "js" / "node_modules" / ".bin" / program.command, *arguments, *asked]
        said = output(folder, command, program.environment(url, "demo", "none"), patience)
        answer = "localoss-42" if kind == "tool" else "BANANA"
        passed[kind] = answer in said.replace(SAY, "")
    return passed


def output(folder, command, environment, patience) -> str:
    """What a command writes, in a home folder and an empty folder of its own."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    own = {"HOME": str(folder / "home"), "SHELL": "/bin/bash", "NO_COLOR": "1", "DISABLE_TELEMETRY": "1"}
    own["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it looks for prices on the web
    try:
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | own | environment,
            cwd=work,
            timeout=patience,
        )
        said = done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace") + f"\n(more than {patience} s)"
    with open(folder / "output.log", "a", encoding="utf-8") as log:
        log.write(f"$ {command}\n{said}\n")
    return said


def word_for(passes: bool | None) -> str:
    """None stands for what a client has no way to do."""
    return "has none" if passes is None else "yes" if passes else "no"


def report(name, passed):
    told = (f"{kind}: {word_for(passed.get(kind, False))}" for kind in KINDS)
    print(name, *told, sep="  ", flush=True)
    return name, passed


def write_table(path: Path, results) -> None:
    if not results:
        return
    rows = ["| Client | a plain answer | a stream | a tool's round trip |", "|---|---|---|---|"]
    for name, passed in results.items():
        cells = (word_for(passed.get(kind, False)) for kind in KINDS)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    told = (
        f"# What passes\n\nWritten by `make clients` on {datetime.date.today()}: real clients against "
        "`localoss serve` with an engine that plays the model (clients/player.py).\n\n"
    )
    path.write_text(told + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
