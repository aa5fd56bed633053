"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from localoss.errors import UsageError


class Effort(StrEnum):
    """How long the model thinks."""

    low = "low"
    medium = "medium"
    high = "high"


_SAMPLING, _ENGINE = "Sampling", "Engine"

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, or the name of an installed model.")
]
EffortOption = Annotated[
    Effort, typer.Option("--effort", help="How long the model thinks before it answers.")
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="Instructions to the model.")]
SystemFile = Annotated[
    Path | None,
    typer.Option("--system-file", metavar="PATH", help="A file with instructions to the model."),
]
HideThinking = Annotated[bool, typer.Option("--hide-thinking", help="Show the answer alone.")]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", min=1, metavar="N", help="Stop after N tokens, thinking included."),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature", min=0, help="0 always takes the likeliest token.", rich_help_panel=_SAMPLING
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p",
        min=0,
        max=1,
        help="Draw from the likeliest tokens of this total.",
        rich_help_panel=_SAMPLING,
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        "--top-k", min=0, help="Draw from so many likeliest tokens; 0: all.", rich_help_panel=_SAMPLING
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p",
        min=0,
        max=1,
        help="Leave out tokens less likely than this times the likeliest.",
        rich_help_panel=_SAMPLING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="The same seed, the same answer.", rich_help_panel=_SAMPLING),
]
Context = Annotated[
    int,
    typer.Option(
        "--context", min=1, metavar="TOKENS", help="Room for prompt and answer.", rich_help_panel=_ENGINE
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, metavar="N", help="CPU threads; all cores if not given.", rich_help_panel=_ENGINE
    ),
]


def instructions(text: str | None, path: Path | None) -> str | None:
    """What --system or --system-file says. Raises: UsageError if both are given or the file can't be read."""
    if path is None:
        return text
    if text is not None:
        raise UsageError("--system and --system-file were both given; give one of them")
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(f"--system-file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--system-file {path}: not UTF-8 text") from None
