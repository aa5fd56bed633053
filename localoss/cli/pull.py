"""`localoss pull`: a model from the hub becomes one of this machine's."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss.cli.options import (
    AsJson,
    Attention,
    Embedding,
    EmbeddingDtype,
    ExpertDtype,
    Experts,
    MatrixDtype,
    PullName,
    Unembedding,
)
from localoss.cli.progress import duration_text, size_text

if TYPE_CHECKING:
    from localoss.download.pull import Pulled


def pull(
    name: PullName,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="A branch, tag or commit; the newest if not given.")
    ] = None,
    stored_as: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="The model's name on this machine.")
    ] = None,
    attention: Attention = MatrixDtype.int8,
    embedding: Embedding = EmbeddingDtype.int8,
    unembedding: Unembedding = MatrixDtype.int8,
    experts: Experts = ExpertDtype.mxfp4,
    keep_source: Annotated[
        bool, typer.Option("--keep-source", help="Keep the files as published, beside the model.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Check every file of the model, and make the bad ones again.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the model of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download a model from the Hugging Face hub and make it ready.

    Fetches the weights alone, converts them as they come and needs the disk for one model, not two. An
    interrupted pull goes on where it stopped when the same command is given again.
    """
    from localoss.cli.pull_progress import pull_progress
    from localoss.download.pull import Order
    from localoss.download.pull import pull as pull_model
    from quant.manifest import Dtypes

    dtypes = Dtypes(attention.value, embedding.value, unembedding.value, experts.value)
    order = Order(name, dtypes, revision, stored_as, keep_source, force, repair)
    try:
        with pull_progress() as progress:
            pulled = pull_model(order, progress)
    except KeyboardInterrupt:
        typer.echo(f"{name}: interrupted; the same command goes on where it stopped", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(_report(order.stored_name, pulled), indent=2))
    else:
        typer.echo(_text(order.stored_name, pulled))


def _text(name: str, pulled: "Pulled") -> str:
    summary = pulled.summary
    size = size_text(summary.manifest.total_bytes)
    if summary.already_there:
        return f"{name}: there already, {size}, as {pulled.repository} is now; `localoss chat {name}`"
    time = duration_text(summary.elapsed_s)
    came = size_text(pulled.received_bytes)
    return f"{name}: {size}, from {came} downloaded in {time}; `localoss chat {name}`"


def _report(name: str, pulled: "Pulled") -> dict[str, Any]:
    from localoss.cli.quantize_report import summary_json

    return {
        "name": name,
        "repository": pulled.repository,
        "commit": pulled.commit,
        "received_bytes": pulled.received_bytes,
        **summary_json(pulled.folder, pulled.summary),
    }
