"""`localoss pull`: a model from the hub becomes one of this machine's."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss.cli.number_formats import (
    Attention,
    Embedding,
    EmbeddingDtype,
    ExpertDtype,
    Experts,
    MatrixDtype,
    Unembedding,
)
from localoss.cli.options import AsJson, PullName
from localoss.cli.progress import duration_text, size_text
from localoss.cli.terminal import echo
from localoss.errors import UsageError

if TYPE_CHECKING:
    from localoss.hub.pull import Order, Pulled


def pull(
    name: PullName,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE|auto", help="A GGUF file to take; auto looks for one."),
    ] = None,
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
    from localoss.hub.pull import Order, take
    from localoss.hub.pull import pull as pull_model
    from quant.format.manifest import Dtypes

    dtypes = Dtypes(attention.value, embedding.value, unembedding.value, experts.value)
    order = Order(name, dtypes, revision, stored_as, keep_source, force, repair)
    path = _local_file(order, source)
    try:
        with pull_progress() as progress:
            pulled = take(order, path, progress) if path else pull_model(order, progress)
    except KeyboardInterrupt:
        echo(f"{name}: interrupted; the same command goes on where it stopped", err=True)
        raise typer.Exit(130) from None
    if as_json:
        echo(json.dumps(_report(order.stored_name, pulled), indent=2))
    else:
        echo(_text(order.stored_name, pulled))


def _local_file(order: "Order", source: str | None) -> Path | None:
    """What --from says, or the user when asked about a file that was found; None to download.

    Raises: UsageError if there is no file to take.
    """
    from localoss.hub.pull import offers

    if source and (order.revision or order.keep_source or order.repair):
        raise UsageError("--from takes a file on this machine: leave out --revision, --keep-source, --repair")
    if source not in (None, "auto"):
        return Path(source)
    found = offers(order)
    if source == "auto":
        if not found:
            raise UsageError(
                f"no GGUF file of {order.name} with MXFP4 experts was found where Ollama, LM Studio and "
                "llama.cpp keep theirs; give its path, or leave out --from to download"
            )
        echo(f"taking {found[0].path} ({found[0].program})", err=True)
        return found[0].path
    for offer in found[:1]:
        there = f"{offer.program} has it: {offer.path} ({size_text(offer.bytes)})"
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            echo(f"note: {there}; `--from auto` takes that instead of a download", err=True)
        elif typer.confirm(f"{there}. Take that instead of a download?", default=True, err=True):
            return offer.path
    return None


def _text(name: str, pulled: "Pulled") -> str:
    summary = pulled.summary
    size = size_text(summary.manifest.total_bytes)
    if summary.already_there:
        return f"{name}: there already, {size}, the same as {pulled.origin}; `localoss chat {name}`"
    time = duration_text(summary.elapsed_s)
    came = f"{size_text(pulled.received_bytes)} downloaded" if pulled.commit else pulled.origin
    return f"{name}: {size}, from {came} in {time}; `localoss chat {name}`"


def _report(name: str, pulled: "Pulled") -> dict[str, Any]:
    from localoss.cli.quantize_report import summary_json

    return {
        "name": name,
        "origin": pulled.origin,
        "commit": pulled.commit,
        "received_bytes": pulled.received_bytes,
        **summary_json(pulled.folder, pulled.summary),
    }
