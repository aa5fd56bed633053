"""`localoss export`: a model directory becomes a checkpoint that other programs read."""

import json
from pathlib import Path
from typing import Annotated

import typer

from localoss.cli.options import ModelName
from localoss.cli.progress import progress_shown, size_text
from localoss.cli.terminal import echo


def export(
    model: ModelName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder; with --gguf, a new file.")],
    gguf: Annotated[bool, typer.Option("--gguf", help="Write one GGUF file, for llama.cpp.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")] = False,
) -> None:
    """Write a model in the layout that Hugging Face publishes, for transformers and vLLM.

    MXFP4 experts are the published ones bit for bit, everything else is bfloat16. As GGUF, int8 and int4
    weights stay as they are too.
    """
    from localoss.hub.registry import find_model

    folder = find_model(model)
    with progress_shown("export") as progress:
        if gguf:
            from localoss.chat.harmony import VOCABULARY_FOLDER
            from quant.export_gguf import export_gguf

            size = export_gguf(folder, out, progress, VOCABULARY_FOLDER / "o200k_base.tiktoken")
        else:
            from quant.export import export as export_folder

            size = export_folder(folder, out, progress)
    if as_json:
        report = {"model": str(folder), "out": str(out), "gguf": gguf, "written_bytes": size}
        echo(json.dumps(report, indent=2))
    else:
        echo(f"{out}: {size_text(size)}")
