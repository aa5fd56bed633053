"""OpenAI's gpt-oss-20b and gpt-oss-120b on an ordinary laptop or desktop."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localoss.engine.engine import Engine

__version__ = "0.1.0"


def load(
    model: str | Path,
    context_tokens: int | None = 8192,
    threads: int | None = None,
    kv_dtype: str = "f16",
    activations: str = "int8",
    memory_limit: int | None = None,
    gpu_layers: int | str = 0,
    *,
    gpu_memory: int | None = None,
    prompt_tokens: int = 0,
    conversations: int = 1,
    must_fit: bool = False,
    lookup: bool = False,
    chunk_tokens: int = 512,
    compiling: Callable[[str], None] | None = None,
    uploading: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> "Engine":
    """Load a model: a name in the store, or a model directory that `localoss quantize` made.

    context_tokens: None for the most that is usual and fits, with room for `prompt_tokens`. threads: by
    default one per core. kv_dtype: "f16", "f32", or "int8", half of f16's memory. activations: "int8", fast,
    or "f32", exact and slower. chunk_tokens: how many tokens prefill runs at once.
    conversations: for how many at a time memory is taken.

    memory_limit: bytes, by default what the machine or its control group can give. KV cache and buffers are
    taken from it here, and nothing later. The weights stay files in the page cache: where they don't fit
    beside that, `notice` is told so in a line and the model runs slowly from the disk, or, with `must_fit`,
    isn't loaded. compiling: told the name of each kernel that is being compiled, which happens once per
    machine and takes half a minute.

    lookup: guess that what was said comes again, and run the guess along with each token: the same answers,
    sooner where they copy, and a little later where they don't.

    gpu_layers: how many of the last layers run on a GPU, "all" with the unembedding, or "auto": as many as
    `gpu_memory` bytes hold, by default what the GPU is known to have. uploading: told how many it has, of how
    many. Without a GPU, or if it fails or is lost, `notice` is told so and the CPU does it all.

    >>> engine = localoss.load("gpt-oss-20b")
    >>> for token in engine.generate(tokens, max_tokens=64): ...

    Raises: quant.errors.QuantError or localoss.errors.LocalossError, whose message says what to do: no such
    model, a damaged file, a Hugging Face checkpoint (`localoss quantize` converts it), a bad option, too
    little memory.
    """
    from localoss.engine.loader import (
        start_engine,  # importing Numba takes a second: wait only to load a model
    )

    return start_engine(
        model,
        context_tokens=context_tokens,
        prompt_tokens=prompt_tokens,
        conversations=conversations,
        threads=threads,
        kv_dtype=kv_dtype,
        activations=activations,
        memory_limit=memory_limit,
        must_fit=must_fit,
        lookup=lookup,
        gpu_layers=gpu_layers,
        gpu_memory=gpu_memory,
        chunk_tokens=chunk_tokens,
        compiling=compiling,
        uploading=uploading,
        notice=notice,
    )
