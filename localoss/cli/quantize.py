"""`localoss quantize`: a published checkpoint becomes a model directory."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from localoss.cli.calibrate import read_calibration
from localoss.cli.number_formats import (
    Attention,
    Embedding,
    EmbeddingDtype,
    ExpertDtype,
    Experts,
    MatrixDtype,
    Unembedding,
)
from localoss.cli.options import AsJson
from localoss.cli.progress import progress_shown
from localoss.cli.quantize_report import (
    plan_json,
    plan_text,
    report_json,
    report_text,
    summary_json,
    summary_text,
)
from localoss.cli.terminal import echo


def quantize(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A gpt-oss checkpoint: its folder, or a GGUF file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the model: a new one.")],
    attention: Attention = MatrixDtype.int8,
    embedding: Embedding = EmbeddingDtype.int8,
    unembedding: Unembedding = MatrixDtype.int8,
    experts: Experts = ExpertDtype.mxfp4,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Run the first 4,096 tokens of this text, and round int4 weights the more exactly the more "
            "they are used.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another model in OUT.")] = False,
    with_report: Annotated[
        bool, typer.Option("--report", help="Measure what rounding did to each class of weights.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say sizes and time, and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a published gpt-oss checkpoint into a model that localoss runs.

    Takes Hugging Face's layout, OpenAI's original one and GGUF. MXFP4 experts are kept bit for bit. Memory
    stays under 2 GB. An interrupted run goes on where it stopped when the same command is given again.
    """
    from quant.convert import convert, plan
    from quant.format.manifest import Dtypes

    dtypes = Dtypes(attention.value, embedding.value, unembedding.value, experts.value)
    calibration = read_calibration(calibrate) if calibrate else None
    if dry_run:
        planned = plan(source, out, dtypes, force, calibration)
        _say(plan_json(out, planned) if as_json else plan_text(out, planned))
        return
    try:
        with progress_shown("quantize") as progress:
            summary = convert(source, out, dtypes, force, progress, calibration=calibration)
    except KeyboardInterrupt:
        echo(f"{out}: interrupted; the same command goes on where it stopped", err=True)
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
    echo(content if isinstance(content, str) else json.dumps(content, indent=2))
