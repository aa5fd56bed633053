"""Options that several commands share."""

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from localoss.cli.help import apply_preset, complete_preset
from localoss.errors import LocalossError, UsageError
from localoss.options import LoadOptions, SamplingParams
from localoss.settings import size_bytes
from localoss.tools.choice import ToolOptions


class Effort(StrEnum):
    """How long the model thinks."""

    low = "low"
    medium = "medium"
    high = "high"


class KVDtype(StrEnum):
    """What the KV cache's numbers are kept as."""

    f16 = "f16"
    f32 = "f32"
    int8 = "int8"


_MODEL_HELP = "A model folder, or the name of an installed model."
_TOP_P_HELP = "Draw from the likeliest tokens that make up this share."
_MIN_P_HELP = "Leave out tokens less likely than this share of the likeliest."


def _complete_model(incomplete: str) -> list[str]:
    """What the shell offers for a MODEL."""
    from localoss.hub.registry import names_beginning

    try:
        return names_beginning(incomplete)
    except (LocalossError, OSError):
        return []


def complete_session(incomplete: str) -> list[str]:
    """What the shell offers for the name of a session."""
    from localoss.chat.session_store import sessions

    try:
        return [one.name for one in sessions() if one.name.startswith(incomplete)]
    except (LocalossError, OSError):
        return []


ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL_HELP, autocompletion=_complete_model)]
PullName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="gpt-oss-20b, or a repository of the hub: owner/name.",
        autocompletion=_complete_model,
    ),
]
OptionalModelName = Annotated[
    str | None, typer.Argument(metavar="MODEL", help=_MODEL_HELP, autocompletion=_complete_model)
]

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        is_eager=True,
        callback=apply_preset,
        autocompletion=complete_preset,
        help="Instructions, effort and sampling by name, as the configuration file has them.",
    ),
]
EffortOption = Annotated[
    Effort, typer.Option("--effort", help="How long the model thinks before it answers.")
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="Instructions to the model.")]
SystemFile = Annotated[
    Path | None, typer.Option(metavar="PATH", help="A file with instructions to the model.")
]
HideThinking = Annotated[bool, typer.Option("--hide-thinking", help="Show the answer alone.")]

MaxTokens = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Stop after N tokens, thinking included.")
]
ThinkBudget = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="After N tokens of thinking the answer must begin.")
]
Temperature = Annotated[float, typer.Option(metavar="T", min=0, help="0 always takes the likeliest token.")]
TopP = Annotated[float, typer.Option(metavar="P", min=0, max=1, help=_TOP_P_HELP)]
TopK = Annotated[int, typer.Option(metavar="K", min=0, help="Draw from the K likeliest tokens; 0: from all.")]
MinP = Annotated[float, typer.Option(metavar="P", min=0, max=1, help=_MIN_P_HELP)]
Seed = Annotated[int | None, typer.Option(metavar="N", min=0, help="The same seed gives the same answer.")]

Context = Annotated[
    int | None,
    typer.Option(metavar="TOKENS", min=1, help="Room for prompt and answer; by default what fits, to 32768."),
]
MemoryLimit = Annotated[
    int | None,
    typer.Option(metavar="SIZE", parser=size_bytes, help="What it may take, as 12GB; default: what is free."),
]
MustFit = Annotated[
    bool, typer.Option("--must-fit", help="Refuse a model that would run slowly, from the disk.")
]
Lookup = Annotated[
    bool,
    typer.Option("--lookup", help="Guess that what was said comes again: faster where the answer copies."),
]
Gentle = Annotated[
    bool,
    typer.Option("--gentle", help="Let other programs go first, and on battery rest half of the time."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")]
KVDtypeOption = Annotated[
    KVDtype,
    typer.Option(
        "--kv-dtype",
        help="Numbers of the KV cache; int8 takes three fifths of the memory, for some accuracy.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="CPU threads; one per core if not given.")
]


def layers_on_gpu(text: str | int) -> int | str:
    """A number of layers, auto or all. Raises: UsageError."""
    word = str(text).strip().lower()  # Typer gives the default, too
    if word in ("auto", "all"):
        return word
    if not (word.isascii() and word.isdigit()):
        raise UsageError(f"--gpu-layers is {text!r}; give a number of layers, auto or all")
    return int(word)


GpuLayers = Annotated[
    Any,  # int | str, which Typer takes for a choice between two parsers
    typer.Option(
        "--gpu-layers",
        metavar="N",
        parser=layers_on_gpu,
        help="Layers that run on a GPU: a number, auto (as many as fit) or all.",
    ),
]


def experts_on_gpu(text: str | int | None) -> int | str | None:
    """A number of layers, auto or none. Raises: UsageError."""
    if text is None:  # Typer gives the default, too
        return None
    word = str(text).strip().lower()
    if word not in ("auto", "none") and not (word.isascii() and word.isdigit()):
        raise UsageError(f"--gpu-experts is {text!r}; give a number of layers, auto or none")
    return word if word in ("auto", "none") else int(word)


GpuExperts = Annotated[
    Any,
    typer.Option(
        "--gpu-experts",
        metavar="N",
        parser=experts_on_gpu,
        help="Layers whose experts the GPU has, too: a number, auto or none; the CPU runs the rest.",
    ),
]


def memory_for_experts(text: str | int) -> int:
    """A size, or 0 for "mapped". Raises: UsageError."""
    return 0 if str(text).strip().lower() in ("mapped", "0") else size_bytes(str(text))


ExpertMemory = Annotated[
    int | None,
    typer.Option(
        "--expert-memory",
        metavar="SIZE",
        parser=memory_for_experts,
        help="Experts to keep in memory, as 9GB, the others on the disk; mapped: leave it to the system.",
    ),
]
AdapterNames = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="DIR[:SCALE]",
        help="A LoRA adapter, PEFT's folder or a GGUF file, beside the weights; more than one may be given. "
        "For serve NAME=DIR makes it a model of that name.",
    ),
]
GpuMemory = Annotated[
    int | None,
    typer.Option(
        metavar="SIZE", parser=size_bytes, help="What the GPU may hold, as 8GB; default: what is free."
    ),
]


Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Use the machines of the Ray cluster at ADDRESS, or auto: the one that this machine is in.",
    ),
]
Spread = Annotated[
    bool,
    typer.Option("--spread", help="With --ray: share the model's layers out among the machines."),
]


def instructions(text: str | None, path: Path | None) -> str | None:
    """What --system or --system-file says. Raises: UsageError if both are given or the file can't be read."""
    if path is None:
        return text
    if text is not None:
        raise UsageError("--system and --system-file were both given; give one of them")
    from localoss.chat.documents import read_text

    return read_text(path, f"--system-file {path}").strip()


# What every command that loads a model takes, and every one that draws tokens: the parameters' names, what
# Typer makes of them, and their defaults.
_LOADING: dict[str, tuple[Any, Any]] = {
    "context": (Context, None),
    "kv_dtype": (KVDtypeOption, KVDtype.f16),
    "memory_limit": (MemoryLimit, None),
    "must_fit": (MustFit, False),
    "lookup": (Lookup, False),
    "threads": (Threads, None),
    "gpu_layers": (GpuLayers, 0),
    "gpu_experts": (GpuExperts, None),
    "gpu_memory": (GpuMemory, None),
    "expert_memory": (ExpertMemory, None),
    "adapter": (AdapterNames, None),
    "gentle": (Gentle, False),
    "ray": (Ray, None),
    "spread": (Spread, False),
}
_SAMPLING: dict[str, tuple[Any, Any]] = {
    "max_tokens": (MaxTokens, None),
    "temperature": (Temperature, 1.0),
    "top_p": (TopP, 1.0),
    "top_k": (TopK, 0),
    "min_p": (MinP, 0.0),
    "seed": (Seed, None),
}
ToolNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|FILE",
        help="What the model may call: python, cpython, browser, a JSON file of functions; commas between.",
    ),
]
Docs = Annotated[
    list[Path] | None,
    typer.Option(metavar="FOLDER", help="Documents that the browser searches; more than one may be given."),
]
Web = Annotated[bool, typer.Option("--web", help="The browser may fetch pages of the public web.")]
WebSearch = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|URL", help="What searches the web: brave, exa, you, ddgs, or a SearXNG's address."
    ),
]
WebAllow = Annotated[
    list[str] | None,
    typer.Option(metavar="HOST", help="A host of your own network that pages may be fetched from."),
]
Folder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="A folder whose files the model may list, read and search."),
]
Write = Annotated[
    bool,
    typer.Option(
        "--write", help="The model may change files of --folder, by patches that you are asked about."
    ),
]
McpFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="MCP servers, in the form that Claude Desktop has.")
]
_TOOLS: dict[str, tuple[Any, Any]] = {
    "tools": (ToolNames, None),
    "docs": (Docs, None),
    "web": (Web, False),
    "web_search": (WebSearch, None),
    "web_allow": (WebAllow, None),
    "folder": (Folder, None),
    "write": (Write, False),
    "mcp": (McpFile, None),
}
NoServer = Annotated[
    bool, typer.Option("--no-server", help="Load the model here, even if a running server has it.")
]
_Command = Callable[..., Any]


def takes_tool_options(command: _Command) -> _Command:
    """Give `command` the options that say what may be called: its parameter `tooling` is a ToolOptions."""

    def chosen(tools: list[str] | None, **others: Any) -> ToolOptions:
        names = [name.strip() for given in tools or () for name in given.split(",")]
        lists = {name: tuple(value or ()) for name, value in others.items() if name in ("docs", "web_allow")}
        return ToolOptions(tuple(dict.fromkeys(filter(None, names))), **(others | lists))

    return _taking(command, "tooling", _TOOLS, chosen)


def takes_load_options(command: _Command) -> _Command:
    """Give `command` the options that say how a model is loaded: its parameter `loading` is a LoadOptions."""

    def loading(
        context: int | None, kv_dtype: KVDtype, adapter: list[str] | None, **others: Any
    ) -> LoadOptions:
        adapters = tuple(adapter or ())
        return LoadOptions(context_tokens=context, kv_dtype=kv_dtype.value, adapters=adapters, **others)

    return _taking(command, "loading", _LOADING, loading)


def given_load_options(context: typer.Context) -> list[str]:
    """Those that stand on the command line, as --threads: what is configured holds for servers, too."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in _LOADING
        and (source := context.get_parameter_source(parameter.name))
        and source.name == "COMMANDLINE"
    ]


def takes_sampling_params(command: _Command) -> _Command:
    """Give `command` the options that say how tokens are drawn: its parameter `sampling` is the result."""
    return _taking(command, "sampling", _SAMPLING, SamplingParams)


def _taking(
    command: _Command, name: str, group: dict[str, tuple[Any, Any]], build: Callable[..., Any]
) -> _Command:
    """`command` with the options of `group` instead of its parameter `name`, which `build` makes of them.

    A parameter of its own that has the name of one of the group's stays the command's, and goes to both.
    """
    own = dict(inspect.signature(command).parameters)
    del own[name]
    added = {
        option: inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for option, (kind, default) in group.items()
        if option not in own
    }

    @functools.wraps(command)
    def called(**given: Any) -> Any:
        options = {option: given[option] if option in own else given.pop(option) for option in group}
        return command(**given, **{name: build(**options)})

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()]
    called.__signature__ = inspect.Signature([*parameters, *added.values()])  # type: ignore[attr-defined]
    kinds = {option: parameter.annotation for option, parameter in added.items()}
    called.__annotations__ = {n: a for n, a in command.__annotations__.items() if n != name} | kinds
    return called
