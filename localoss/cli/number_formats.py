"""Options for the number formats that a model's weights get."""

from enum import StrEnum
from typing import Annotated

import typer

from localoss.cli.terminal import echo


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


def _note_cost(attention: MatrixDtype) -> MatrixDtype:
    """Say what int4 attention costs, where it was asked for."""
    if attention is MatrixDtype.int4:
        line = (
            "note: int4 attention costs much accuracy; --unembedding int4 alone saves about as much at little"
        )
        echo(line, err=True)
    return attention


Attention = Annotated[
    MatrixDtype,
    typer.Option(
        callback=_note_cost,
        help="Format of the attention weights; int4 costs much accuracy: take it for the unembedding first.",
    ),
]
Embedding = Annotated[EmbeddingDtype, typer.Option(help="Format of the embedding.")]
Unembedding = Annotated[
    MatrixDtype, typer.Option(help="Format of the unembedding; int4 saves memory at little cost.")
]
Experts = Annotated[ExpertDtype, typer.Option(help="Format of experts that are not MXFP4 already.")]
