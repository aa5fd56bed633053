"""`localoss quantize`: a published checkpoint becomes a model directory."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from localoss.cli.quantize_report import (
    plan_json,
    plan_text,
    report_json,
    report_text,
    summary_json,
    summary_text,
)

PLAIN_INTERVAL_S = 5.0  # between progress lines where stderr is no terminal


class MatrixDtype(StrEnum):
    int8 = "int8"
    int4 = "int4"
    bf16 = "bf16"


class ExpertDtype(StrEnum):
    mxfp4 = "mxfp4"
    int4 = "int4"
    bf16 = "bf16"


class EmbeddingDtype(StrEnum):
    int8 = "int8"
    bf16 = "bf16"


def quantize(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A gpt-oss checkpoint: its folder, or a GGUF file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the model: a new one.")],
    attention: Annotated[
        MatrixDtype, typer.Option(help="Format of the attention weights.")
    ] = MatrixDtype.int8,
    embedding: Annotated[EmbeddingDtype, typer.Option(help="Format of the embedding.")] = EmbeddingDtype.int8,
    unembedding: Annotated[MatrixDtype, typer.Option(help="Format of the unembedding.")] = MatrixDtype.int8,
    experts: Annotated[
        ExpertDtype, typer.Option(help="Format of experts that are not MXFP4 already.")
    ] = ExpertDtype.mxfp4,
    force: Annotated[bool, typer.Option("--force", help="Replace another model in OUT.")] = False,
    with_report: Annotated[
        bool, typer.Option("--report", help="Measure what rounding did to each class of weights.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say sizes and time, and write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")] = False,
) -> None:
    """Convert a published gpt-oss checkpoint into a model that localoss runs.

    Takes Hugging Face's layout, OpenAI's original one and GGUF. MXFP4 experts are kept bit for bit. Memory
    stays under 2 GB. An interrupted run goes on where it stopped when the same command is given again.
    """
    from quant.convert import convert, plan
    from quant.manifest import Dtypes

    dtypes = Dtypes(attention.value, embedding.value, unembedding.value, experts.value)
    if dry_run:
        planned = plan(source, out, dtypes, force)
        _say(plan_json(out, planned) if as_json else plan_text(out, planned))
        return
    try:
        with progress_shown("quantize") as progress:
            summary = convert(source, out, dtypes, force=force, progress=progress)
    except KeyboardInterrupt:
        typer.echo(f"{out}: interrupted; the same command goes on where it stopped", err=True)
        raise typer.Exit(130) from None
    if not with_report:
        _say(summary_json(out, summary) if as_json else summary_text(out, summary))
        return
    from quant.report import report

    measured = report(source, out, summary.manifest)
    if as_json:
        _say(summary_json(out, summary) | {"report": report_json(measured)})
    else:
        _say(f"{summary_text(out, summary)}\n\n{report_text(measured)}")


def _say(content: str | dict[str, Any]) -> None:
    typer.echo(content if isinstance(content, str) else json.dumps(content, indent=2))


@contextmanager
def progress_shown(what: str) -> Iterator[Callable[[int, int], None]]:
    """A callback that shows bytes, speed and time left: a bar on a terminal, else a line now and then."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_progress(console.print)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done_bytes, total_bytes: bar.update(task, completed=done_bytes, total=total_bytes)


def _plain_progress(show: Callable[[str], None]) -> Callable[[int, int], None]:
    started_s = shown_s = time.monotonic()
    resumed_bytes: int | None = None

    def progress(done_bytes: int, total_bytes: int) -> None:
        nonlocal shown_s, resumed_bytes
        if resumed_bytes is None:
            resumed_bytes = done_bytes
        now_s = time.monotonic()
        if now_s - shown_s < PLAIN_INTERVAL_S:
            return
        shown_s = now_s
        speed = max(done_bytes - resumed_bytes, 1) / (now_s - started_s)
        left_s = (total_bytes - done_bytes) / speed
        done = f"{done_bytes / 1e9:.2f} of {total_bytes / 1e9:.2f} GB"
        show(f"{done}, {speed / 1e6:.0f} MB/s, {left_s:.0f} s left")

    return progress
