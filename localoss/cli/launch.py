"""`localoss launch`: a program of others, told to ask a local model, for this one run.

The program's own configuration isn't written: what it has to know is in its environment, its arguments, or
files in a folder that is gone afterwards.
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


FOLDER = "FOLDER"  # begins a word among a program's that is a path: where its files are


@dataclass(frozen=True)
class Program:
    """How a program is told to ask the model `name` of the server at `url`.

    install: how to get it. environment, arguments, files: by (url, name, key). files: contents by their names
    in a temporary folder, whose path takes the place of FOLDER in the other two.
    """

    command: str
    install: str
    environment: Callable[[str, str, str], dict[str, str]] = field(default=lambda url, name, key: {})
    arguments: Callable[[str, str, str], list[str]] = field(default=lambda url, name, key: [])
    files: Callable[[str, str, str], dict[str, str]] = field(default=lambda url, name, key: {})


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
        "ANTHROPIC_API_KEY": "",  # a user's own isn't for this server
        **dict.fromkeys(models, name),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def _continue(url: str, name: str, key: str) -> dict[str, str]:
    """JSON, which is YAML, too."""
    model = {"name": name, "provider": "openai", "model": name, "apiBase": f"{url}/v1", "apiKey": key}
    model["roles"] = ["chat", "edit", "apply"]  # type: ignore[assignment]
    whole = {"name": "localoss", "version": "1.0.0", "schema": "v1", "models": [model]}
    return {"config.yaml": json.dumps(whole)}


def _cline(url: str, name: str, key: str) -> dict[str, str]:
    """What `cline auth` would write."""
    chosen = {"provider": "openai-compatible", "apiKey": key, "model": name, "baseUrl": f"{url}/v1"}
    provider = {"settings": chosen, "updatedAt": "2026-01-01T00:00:00.000Z", "tokenSource": "manual"}
    whole = {"version": 1, "lastUsedProvider": "openai-compatible", "modes": {}}
    return {"settings/providers.json": json.dumps(whole | {"providers": {"openai-compatible": provider}})}


def _llm(url: str, name: str, key: str) -> dict[str, str]:
    model = {"model_id": name, "model_name": name, "api_base": f"{url}/v1", "api_key_name": "localoss"}
    model |= {"supports_tools": True, "supports_schema": True}  # type: ignore[dict-item]
    return {
        "extra-openai-models.yaml": json.dumps([model]),
        "default_model.txt": name,
        "keys.json": json.dumps({"localoss": key}),
    }


PROGRAMS = {
    "aider": Program(
        "aider",
        "pip install aider-chat",
        lambda url, name, key: {"OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": key},
        lambda url, name, key: ["--model", f"openai/{name}", "--no-show-model-warnings"],
    ),
    "claude": Program("claude", "npm install -g @anthropic-ai/claude-code", _claude),
    "cline": Program(
        "cline",
        "npm install -g cline",
        arguments=lambda url, name, key: ["--data-dir", FOLDER],
        files=_cline,
    ),
    "codex": Program(
        "codex", "npm install -g @openai/codex", lambda url, name, key: {"LOCALOSS_API_KEY": key}, _codex
    ),
    "continue": Program(
        "cn",
        "npm install -g @continuedev/cli",
        arguments=lambda url, name, key: ["--config", f"{FOLDER}/config.yaml"],
        files=_continue,
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
    "llm": Program("llm", "pip install llm", lambda url, name, key: {"LLM_USER_PATH": FOLDER}, files=_llm),
    "opencode": Program("opencode", "npm install -g opencode-ai", _opencode),
    "qwen": Program(
        "qwen",
        "npm install -g @qwen-code/qwen-code",
        lambda url, name, key: {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key, "OPENAI_MODEL": name},
        lambda url, name, key: ["--auth-type", "openai", "--model", name],
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
    """What the program gets, with its files in a folder that nobody else can read, while it runs."""
    with tempfile.TemporaryDirectory(prefix="localoss-") as folder:
        yield told_in(program, (url, name, settings.api_key() or "none"), Path(folder))


def told_in(program: Program, told: tuple[str, str, str], folder: Path) -> tuple[dict[str, str], list[str]]:
    """The environment and the arguments that the program gets; its files are written into `folder`."""
    for name, content in program.files(*told).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")

    def placed(word: str) -> str:
        return f"{folder}{word.removeprefix(FOLDER)}" if word.startswith(FOLDER) else word

    environment = {variable: placed(value) for variable, value in program.environment(*told).items()}
    return environment, [placed(word) for word in program.arguments(*told)]


def _print_plan(program: Program, server: "Running | None", model: str, rest: list[str]) -> None:
    """What would be done, as lines for a shell."""
    url, name = server.url if server else "http://127.0.0.1:11435", Path(model).name
    told = (url, name, "KEY" if settings.api_key() else "none")  # the key itself isn't for a screen
    if server is None:
        print(f"localoss serve {shlex.quote(model)} &")
    files = program.files(*told)
    if files:
        print(f"{FOLDER}=$(mktemp -d)")
    for parent in {str(Path(file).parent) for file in files} - {"."}:
        print(f"mkdir -p {_quoted(f'{FOLDER}/{parent}')}")
    for file, content in files.items():
        print(f"printf %s {shlex.quote(content)} > {_quoted(f'{FOLDER}/{file}')}")
    words = [f"{variable}={_quoted(value)}" for variable, value in program.environment(*told).items()]
    words += [_quoted(word) for word in (program.command, *program.arguments(*told))]
    print(" ".join([*words, *map(shlex.quote, rest)]))


def _quoted(word: str) -> str:
    """`word` for a shell, in which a variable is the program's folder."""
    if not word.startswith(FOLDER):
        return shlex.quote(word)
    rest = word.removeprefix(FOLDER)
    return f'"${FOLDER}"{shlex.quote(rest) if rest else ""}'


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run a program until it ends; Ctrl-C is for it alone. Gives its exit code."""
    before: Any = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.call(command, env=settings.environment(environment))
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code
