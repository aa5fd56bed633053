"""`localoss launch`: a program of others, told to ask a local model, for this one run.

The program's own configuration is neither read nor written: what it has to know is in its environment, its
arguments, or a file that is gone afterwards.
"""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss import settings
from localoss.cli.terminal import say
from localoss.errors import LocalossError, UsageError

if TYPE_CHECKING:
    from localoss.hub.running import Running

_LOOK_S = 0.1


@dataclass(frozen=True)
class Program:
    """How a program is told to ask the model `name` of the server at `url`.

    install: how to get it. environment, arguments: by (url, name, key). config: what a temporary file holds,
    whose path takes the place of FILE among the arguments.
    """

    command: str
    install: str
    environment: Callable[[str, str, str], dict[str, str]] = field(default=lambda url, name, key: {})
    arguments: Callable[[str, str, str], list[str]] = field(default=lambda url, name, key: [])
    config: Callable[[str, str, str], str] | None = None


def _codex(url: str, name: str, key: str) -> list[str]:
    provider = f'{{name="localoss", base_url="{url}/v1", wire_api="responses", env_key="LOCALOSS_API_KEY"}}'
    settings = ("model_provider=localoss", f"model_providers.localoss={provider}", f'model="{name}"')
    return [word for setting in settings for word in ("-c", setting)]


def _opencode(url: str, name: str, key: str) -> dict[str, str]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "localoss",
        "options": {"baseURL": f"{url}/v1", "apiKey": key},
        "models": {name: {"name": name}},
    }
    chosen = {"model": f"localoss/{name}", "small_model": f"localoss/{name}"}
    return {"OPENCODE_CONFIG_CONTENT": json.dumps({"provider": {"localoss": provider}} | chosen)}


def _claude(url: str, name: str, key: str) -> dict[str, str]:
    models = ["ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL"]
    models += ["ANTHROPIC_DEFAULT_SONNET_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL"]
    return {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": key,
        **dict.fromkeys(models, name),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def _continue(url: str, name: str, key: str) -> str:
    """JSON, which is YAML, too."""
    model = {"name": name, "provider": "openai", "model": name, "apiBase": f"{url}/v1", "apiKey": key}
    model["roles"] = ["chat", "edit", "apply"]  # type: ignore[assignment]
    return json.dumps({"name": "localoss", "version": "1.0.0", "schema": "v1", "models": [model]})


PROGRAMS = {
    "aider": Program(
        "aider",
        "pip install aider-chat",
        lambda url, name, key: {"OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": key},
        lambda url, name, key: ["--model", f"openai/{name}", "--no-show-model-warnings"],
    ),
    "claude": Program("claude", "npm install -g @anthropic-ai/claude-code", _claude),
    "codex": Program(
        "codex", "npm install -g @openai/codex", lambda url, name, key: {"LOCALOSS_API_KEY": key}, _codex
    ),
    "continue": Program(
        "cn",
        "npm install -g @continuedev/cli",
        arguments=lambda url, name, key: ["--config", "FILE"],
        config=_continue,
    ),
    "goose": Program(
        "goose",
        "see https://block.github.io/goose",
        lambda url, name, key: {
            "GOOSE_PROVIDER": "openai",
            "GOOSE_MODEL": name,
            "OPENAI_HOST": url,
            "OPENAI_API_KEY": key,
        },
    ),
    "opencode": Program("opencode", "npm install -g opencode-ai", _opencode),
    "qwen": Program(
        "qwen",
        "npm install -g @qwen-code/qwen-code",
        lambda url, name, key: {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key, "OPENAI_MODEL": name},
        lambda url, name, key: ["--auth-type", "openai"],
    ),
}

ProgramName = Annotated[str, typer.Argument(metavar="PROGRAM", help=", ".join(PROGRAMS) + ".")]
Rest = Annotated[
    list[str] | None, typer.Argument(metavar="-- ARGUMENTS", help="What the program itself is given.")
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="The model that it asks; else the default one.")
]
Prints = Annotated[bool, typer.Option("--print", help="Show what it would do, and do nothing.")]


def launch(program: ProgramName, rest: Rest = None, model: Model = None, prints: Prints = False) -> None:
    """Start a program that asks a local model, such as codex, claude, opencode or aider.

    It asks the server that runs, or one that is started for it and ends with it. The program's own
    configuration stays as it is. Example: localoss launch codex -- exec "Explain this folder."
    """
    from localoss.hub.registry import default_model, find_model
    from localoss.hub.running import running_servers

    if program not in PROGRAMS:
        raise UsageError(f"there is no {program!r} to launch; there are {', '.join(PROGRAMS)}")
    chosen = PROGRAMS[program]
    folder = find_model(model or default_model(), say)
    name = folder.absolute().name.replace("--", "/", 1)
    server = next((one for one in running_servers() if _has(one, name)), None)
    if prints:
        _print_plan(chosen, server, str(folder) if model and Path(model).is_dir() else name, rest or [])
        return
    executable = shutil.which(chosen.command)
    if executable is None:
        raise UsageError(f"{chosen.command} isn't installed: {chosen.install}")
    with _served(server, folder) as url, _told(chosen, url, name) as (environment, arguments):
        code = _run([executable, *arguments, *(rest or [])], environment)
    raise typer.Exit(code)


def _has(server: "Running", name: str) -> bool:
    """Whether a server answers and has a model of that name."""
    try:
        return any(one["id"] == name for one in server.get("/v1/models")["data"])
    except LocalossError:
        return False


@contextmanager
def _served(server: "Running | None", folder: Path) -> Iterator[str]:
    """The base URL of a server that has the model: the one that runs, or one that ends with the context."""
    if server:
        yield server.url
        return
    from localoss.hub.running import running_servers

    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        command = [sys.executable, "-m", "localoss", "serve", str(folder), "--port", "0"]
        # In a session of its own: Ctrl-C is for the program, not for the server.
        own = {"start_new_session": True} if sys.platform != "win32" else {"creationflags": 0x200}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **own)  # type: ignore[call-overload]
        say(f"starting a server with {folder.name}; it ends with the program")
        try:
            started = None
            while started is None:
                started = next((one for one in running_servers() if one.pid == process.pid), None)
                if process.poll() is not None:
                    log.seek(0)
                    lines = log.read().strip().splitlines() or ["it ended without a word"]
                    raise LocalossError(f"the server didn't start: {lines[-1].removeprefix('error: ')}")
                time.sleep(_LOOK_S)
            yield started.url
        finally:
            process.terminate()
            process.wait()


@contextmanager
def _told(program: Program, url: str, name: str) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The environment and the arguments that the program gets, with a temporary file if it needs one."""
    key = settings.api_key() or "none"
    environment, arguments = program.environment(url, name, key), program.arguments(url, name, key)
    if program.config is None:
        yield environment, arguments
        return
    with tempfile.TemporaryDirectory(prefix="localoss-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(program.config(url, name, key), encoding="utf-8")
        yield environment, [str(file) if word == "FILE" else word for word in arguments]


def _print_plan(program: Program, server: "Running | None", model: str, rest: list[str]) -> None:
    """What would be done, as lines for a shell."""
    url, name = server.url if server else "http://127.0.0.1:11435", Path(model).name
    key = "KEY" if settings.api_key() else "none"  # the key itself isn't for a screen
    if server is None:
        print(f"localoss serve {shlex.quote(model)} &")
    if program.config:
        print(f"echo {shlex.quote(program.config(url, name, key))} > FILE")
    words = [f"{variable}={value}" for variable, value in program.environment(url, name, key).items()]
    words = [word.split("=", 1)[0] + "=" + shlex.quote(word.split("=", 1)[1]) for word in words]
    words += [shlex.quote(word) for word in (program.command, *program.arguments(url, name, key), *rest)]
    print(" ".join(words))


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run a program until it ends; Ctrl-C is for it alone. Gives its exit code."""
    before: Any = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.call(command, env=settings.environment(environment))
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code
