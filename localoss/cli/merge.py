"""`localoss merge`: a model and LoRA adapters become one model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from localoss.cli.options import AsJson, ModelName
from localoss.cli.progress import progress_shown
from localoss.cli.quantize_report import report_json, report_text, summary_json, summary_text
from localoss.cli.terminal import echo


def merge(
    model: ModelName,
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR[:SCALE]...", help="LoRA adapters: folders that PEFT saved, or GGUF files."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the merged model: a new one.")],
    force: Annotated[bool, typer.Option("--force", help="Replace another model in OUT.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add LoRA adapters to a model's weights, in its own number formats, and say what rounding cost.

    MODEL may also be a checkpoint that `quantize` takes: then nothing is rounded twice. Experts that no
    adapter changes stay bit for bit.
    """
    from localoss.hub.registry import find_model
    from quant.convert import convert_source
    from quant.format.layout import MANIFEST
    from quant.format.manifest import Dtypes
    from quant.report import report_of
    from quant.sources import open_source
    from quant.sources.adapter import open_adapter
    from quant.sources.merged import MergedSource
    from quant.sources.model import ModelSource

    path = Path(model)
    is_checkpoint = path.exists() and not (path / MANIFEST).exists()
    folder = path if is_checkpoint else find_model(model)
    with open_source(folder) if is_checkpoint else ModelSource(folder) as base:
        dtypes = base.manifest.dtypes if isinstance(base, ModelSource) else Dtypes()
        merged = MergedSource(base, [open_adapter(text, base.config) for text in adapters])
        with progress_shown("merge") as progress:
            summary = convert_source(merged, out, dtypes, force, progress)
        measured = report_of(merged, out, summary.manifest)
    if as_json:
        echo(json.dumps(summary_json(out, summary) | {"report": report_json(measured)}, indent=2))
    else:
        echo(f"{summary_text(out, summary)}\n\n{report_text(measured)}")
