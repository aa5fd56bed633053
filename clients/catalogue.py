"""The clients that `make clients` tries: where each comes from, and how it is asked."""

import re
from dataclasses import dataclass, replace
from typing import Literal

SHOUT = "please @shout banana split, peeled@"
SHOUTED = "BANANA SPLIT, PEELED"  # what the player makes of it; no echo of the prompt has it
ECHO = '"echo localoss-$((40+2))"'
ECHOED = r"The tool said:.{0,400}?localoss-42"  # only what came back to the player, and from it

Kind = Literal["plain", "stream", "tool", "code_interpreter", "web_search", "mcp"]
KINDS: tuple[Kind, ...] = ("plain", "stream", "tool")
SNIPPET = "snippet"  # of docs/clients.md


@dataclass(frozen=True)
class Client:
    """name: for --only and in the table. registry: npm or PyPI. packages: what is installed, the first one's
    version is shown. place: the folder that they are installed in.

    script: the function of python_clients.py or js_clients.mjs that tries it; None for a program. note: what
    the table says below it.
    """

    name: str
    registry: Literal["npm", "PyPI"]
    packages: tuple[str, ...]
    script: str | None = None
    place: str = "js"
    note: str = ""


@dataclass(frozen=True)
class Program:
    """A program of its own: what it is given to ask, to stream and to call a tool; None where it can't.

    launch: its name in `localoss launch`, which says what it has to know of the server. Otherwise
    `environment` and `arguments` do, in which URL stands for the server. writes: the file that the third
    attempt leaves behind.
    """

    command: str
    attempts: tuple[tuple[str, ...] | None, ...]
    launch: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    arguments: tuple[str, ...] = ()
    writes: str | None = None


_CODEX = ("exec", "--skip-git-repo-check")
_CODEX_TOOL = (
    *_CODEX,
    "--dangerously-bypass-approvals-and-sandbox",
    f'please @call exec_command {{"cmd": {ECHO}}}@',
)
_LLM_TOOL = (
    "def weather(city: str) -> str:\n    'The weather of a city.'\n    return 'localoss-' + str(40 + 2)"
)
_AIDER = ("--yes-always", "--no-git", "--no-check-update", "--analytics-disable", "--edit-format", "whole")

CODEX_SEARCH = "codex, the server's tools"

PROGRAMS = {
    "codex": Program("codex", ((*_CODEX, SHOUT), (*_CODEX, "--json", SHOUT), _CODEX_TOOL), launch="codex"),
    "codex --oss (ollama)": Program(
        "codex",
        ((*_CODEX, SHOUT), (*_CODEX, "--json", SHOUT), _CODEX_TOOL),
        environment=(("CODEX_OSS_BASE_URL", "URL/v1"),),
        arguments=("--oss", "--local-provider", "ollama", "-m", "demo"),
    ),
    "codex --oss (lmstudio)": Program(
        "codex",
        ((*_CODEX, SHOUT), (*_CODEX, "--json", SHOUT), _CODEX_TOOL),
        environment=(("CODEX_OSS_BASE_URL", "URL/v1"),),
        arguments=("--oss", "--local-provider", "lmstudio", "-m", "demo"),
    ),
    "claude": Program(
        "claude",
        (
            ("-p", SHOUT),
            ("-p", "--output-format", "stream-json", "--verbose", "--include-partial-messages", SHOUT),
            (
                *("-p", "--allowedTools", "Bash", "--"),
                f'please @call Bash {{"command": {ECHO}, "description": "x"}}@',
            ),
        ),
        launch="claude",
    ),
    "opencode": Program(
        "opencode",
        (
            ("run", SHOUT),
            ("run", "--format", "json", SHOUT),
            ("run", f'please @call bash {{"command": {ECHO}, "description": "x"}}@'),
        ),
        launch="opencode",
    ),
    CODEX_SEARCH: Program(
        "codex",
        (
            None,
            (
                *(*_CODEX, "-c", "tools.web_search=true"),
                'please @run browser.search {"query": "basalt"}@',
            ),
            None,
        ),
        launch="codex",
    ),
    "qwen": Program(
        "qwen",
        (
            ("-p", SHOUT),
            ("--output-format", "stream-json", "-p", SHOUT),
            (
                *("--yolo", "-p"),
                f'please @call run_shell_command {{"command": {ECHO}, "is_background": false}}@',
            ),
        ),
        launch="qwen",
    ),
    "continue": Program(
        "cn",
        (
            ("-p", SHOUT),
            ("-p", "--format", "json", SHOUT),
            ("-p", "--auto", f'please @call Bash {{"command": {ECHO}}}@'),
        ),
        launch="continue",
    ),
    "cline": Program(
        "cline",
        (
            (SHOUT,),
            ("--json", SHOUT),
            (f'please @call run_commands {{"commands": [{ECHO}]}}@',),
        ),
        launch="cline",
    ),
    "aider": Program(
        "aider",
        (
            (*_AIDER, "--no-stream", "--message", SHOUT),
            (*_AIDER, "--message", SHOUT),
            (*_AIDER, "--message", "please @say hello.txt\n```\nlocaloss-42\n```\n@"),
        ),
        launch="aider",
        writes="hello.txt",
    ),
    "llm": Program(
        "llm",
        (
            ("--no-stream", SHOUT),
            (SHOUT,),
            ("--functions", _LLM_TOOL, 'please @call weather {"city": "Rome"}@'),
        ),
        launch="llm",
    ),
}


def _library(name: str, *packages: str, script: str | None = None) -> Client:
    packages = packages or (name,)
    place = re.sub(r"\W.*", "", packages[0])  # one each: pip takes minutes to make some agree
    return Client(f"{name} (Python)", "PyPI", packages, script or name.replace("-", "_"), place)


def _package(name: str, *packages: str, script: str) -> Client:
    return Client(f"{name} (JavaScript)", "npm", packages or (name,), script)


_AIDER_NOTE = "it calls no tools: the third column is a file that it writes as the answer says"

CLIENTS = [
    Client("codex", "npm", ("@openai/codex",)),
    Client("codex --oss (ollama)", "npm", ("@openai/codex",)),
    Client("codex --oss (lmstudio)", "npm", ("@openai/codex",)),
    Client("claude", "npm", ("@anthropic-ai/claude-code",)),
    Client("opencode", "npm", ("opencode-ai",)),
    Client("continue", "npm", ("@continuedev/cli",)),
    Client("qwen", "npm", ("@qwen-code/qwen-code",)),
    Client("cline", "npm", ("cline",)),
    Client("aider", "PyPI", ("aider-chat",), place="aider", note=_AIDER_NOTE),
    Client("llm", "PyPI", ("llm",), place="llm"),
    _library("openai, chat", "openai", script="openai_chat"),
    _library("openai, responses", "openai", script="openai_responses"),
    _library("anthropic"),
    _library("ollama"),
    _library("langchain-openai"),
    _library("langchain-anthropic"),
    _library("langchain-ollama"),
    _library("litellm, openai", "litellm", script="litellm_openai"),
    _library("litellm, anthropic", "litellm", script="litellm_anthropic"),
    _library("litellm, ollama_chat", "litellm", script="litellm_ollama_chat"),
    _library("openai-agents, chat", "openai-agents", script="openai_agents_chat"),
    _library("openai-agents, responses", "openai-agents", script="openai_agents_responses"),
    _library("pydantic-ai", "pydantic-ai-slim[openai]"),
    replace(_library("instructor"), note="a call's arguments are its answer: no result goes back"),
    _library("smolagents", "smolagents[openai]"),
    _library("inspect-ai", "inspect-ai", "openai"),
    _package("openai, chat", "openai", script="openai_chat"),
    _package("openai, responses", "openai", script="openai_responses"),
    _package("anthropic", "@anthropic-ai/sdk", script="anthropic"),
    _package("ollama", script="ollama"),
    _package("AI SDK, openai", "@ai-sdk/openai", "ai", "zod", script="ai_sdk_openai"),
    _package(
        "AI SDK, openai-compatible",
        "@ai-sdk/openai-compatible",
        "ai",
        "zod",
        script="ai_sdk_openai_compatible",
    ),
    _package("AI SDK, anthropic", "@ai-sdk/anthropic", "ai", "zod", script="ai_sdk_anthropic"),
    _package("openai-agents, chat", "@openai/agents", "zod", script="openai_agents_chat"),
    _package("openai-agents, responses", "@openai/agents", "zod", script="openai_agents_responses"),
]

# These use tools that the server itself runs: `serve --tools python,browser --mcp FILE`.
HOSTED: tuple[Kind, ...] = ("code_interpreter", "web_search", "mcp")
HOSTED_CLIENTS = [
    _library("openai, the server's tools", "openai", script="openai_hosted"),
    _library("openai-agents, the server's tools", "openai-agents", script="openai_agents_hosted"),
    Client(CODEX_SEARCH, "npm", ("@openai/codex",)),
]
FOUND = r"The tool said:.{0,600}?localoss-43"  # in the document that the browser of the run searches
