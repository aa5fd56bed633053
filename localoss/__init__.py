"""OpenAI's gpt-oss-20b and gpt-oss-120b on an ordinary laptop or desktop."""

# Nothing else is imported before it is asked for: the command line begins here, and Ctrl-C during an import
# that comes before it can see to that would end in a traceback.
from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:  # as typing's, which takes ten milliseconds
    from pathlib import Path
    from typing import Any

    from localoss import errors as errors
    from localoss import options as options
    from localoss.chat.api import Chat as Chat
    from localoss.chat.api import Reply as Reply
    from localoss.engine.engine import Engine as Engine
    from localoss.errors import LocalossError as LocalossError
    from localoss.options import Listener as Listener
    from localoss.options import LoadOptions as LoadOptions
    from localoss.options import SamplingParams as SamplingParams

__version__ = "0.1.0"
__all__ = ["Chat", "Engine", "Listener", "LoadOptions", "LocalossError", "Reply", "SamplingParams", "load"]
_HOMES = {
    "Chat": "localoss.chat.api",
    "Reply": "localoss.chat.api",
    "Engine": "localoss.engine.engine",
    "LocalossError": "localoss.errors",
    "Listener": "localoss.options",
    "LoadOptions": "localoss.options",
    "SamplingParams": "localoss.options",
}


def __getattr__(name: str) -> Any:
    """What `__all__` names, and the modules errors and options."""
    if name in ("errors", "options"):
        return importlib.import_module(f"localoss.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(
    model: str | Path,
    options: LoadOptions | int | None = None,
    *,
    listener: Listener | None = None,
    **changes: Any,
) -> Engine:
    """Load a model: a name in the store, or a model directory that `localoss quantize` made.

    KV cache and buffers are taken from `memory_limit` here, and nothing later. The weights stay files in the
    page cache: where they don't fit beside that, the model runs slowly from the disk and `listener.notice` is
    told so in a line (LoadOptions can forbid it). Without a GPU, or if it fails or is lost, the CPU
    runs the layers that were to be on it, and a line says so.

    Args:
        model: a name or a folder.
        options: how to load it; a number stands for context_tokens alone.
        listener: who hears of what goes on; its fields can be given by name as well.
        changes: fields of LoadOptions (or Listener) by name: context_tokens=16384, threads=4, kv_dtype="f32".
    Returns: the engine, ready to generate.
    Raises: localoss.errors.LocalossError or quant.errors.QuantError, whose message says what to do: no such
        model, a damaged file, a Hugging Face checkpoint (`localoss quantize` converts it), a bad option, too
        little memory.

    >>> engine = localoss.load("gpt-oss-20b")
    >>> for token in engine.generate(tokens, max_tokens=64): ...
    """
    from localoss.engine.loader import load_engine
    from localoss.options import Listener, LoadOptions, changed

    base = LoadOptions(context_tokens=options) if isinstance(options, int) else options or LoadOptions()
    names = [name for name in ("notice", "compiling", "uploading") if name in changes]
    heard: dict[str, Any] = {name: told for name in names if (told := changes.pop(name)) is not None}
    return load_engine(model, changed(base, changes), changed(listener or Listener(), heard))
