"""Where weights come from: every layout that gpt-oss is published in, behind one interface."""

from pathlib import Path

from quant.errors import QuantError
from quant.format.layout import MANIFEST
from quant.format.safetensors import WANTED
from quant.sources.base import Blocks, Source
from quant.sources.gguf import GgufSource
from quant.sources.gguf_file import has_magic
from quant.sources.huggingface import HuggingFaceSource
from quant.sources.original import OriginalSource, is_original
from quant.sources.reduced import TOKEN_IDS, ReducedSource

__all__ = ["Blocks", "Source", "open_source"]


def open_source(path: Path) -> Source:
    """The checkpoint at `path`, its tensors all there and of the right shapes; close it after use.

    Raises: QuantError, naming the file at fault, if it isn't one that localoss knows.
    """
    if not path.exists():
        raise QuantError(f"{path}: not found; {WANTED}")
    if path.is_file() and path.suffix != ".gguf" and not has_magic(path):
        if path.suffix in (".safetensors", ".json") and (path.parent / "config.json").exists():
            raise QuantError(f"{path}: one file of a checkpoint; give its folder, {path.parent}")
        raise QuantError(f"{path}: a file of another kind; {WANTED}")
    source = _reader(path)
    try:
        source.require_tensors()
    except BaseException:
        source.close()
        raise
    return source


def _reader(path: Path) -> Source:
    if path.is_file():
        return GgufSource(path)
    if (path / MANIFEST).exists():
        raise QuantError(f"{path}: converted already; localoss run and chat take it as it is")
    if is_original(path):
        return OriginalSource(path)
    if (path / TOKEN_IDS).exists():
        return ReducedSource(path)
    if not any(path.glob("*.safetensors*")):
        _refuse_folder_without_weights(path)
    return HuggingFaceSource(path)


def _refuse_folder_without_weights(path: Path) -> None:
    """Raises: QuantError for a folder whose weights lie elsewhere, or in pieces that training left."""
    ggufs = sorted(path.glob("*.gguf"))
    if ggufs:
        raise QuantError(f"{path}: holds GGUF; give the file itself, {ggufs[0].name}")
    if (path / "original").is_dir():
        raise QuantError(f"{path}: holds OpenAI's original layout in original/; give that folder")
    if any(path.glob("*.distcp")) or any(path.glob("*/*.distcp")):
        raise QuantError(f"{path}: FSDP's pieces; put them together with `accelerate merge-weights` first")
    if (path / "zero_to_fp32.py").exists():
        raise QuantError(
            f"{path}: DeepSpeed's pieces; put them together with its zero_to_fp32.py --safe_serialization "
            "first, and lay the model's config.json beside what comes out"
        )
    # A trainer's output has its checkpoints one folder further down, the hub's cache two.
    inside = [
        found.parent for pattern in ("*", "snapshots/*") for found in path.glob(f"{pattern}/config.json")
    ]
    if inside and not (path / "config.json").exists():
        newest = max(inside, key=lambda folder: folder.stat().st_mtime_ns)
        raise QuantError(f"{path}: holds checkpoints in folders; give one of them, such as {newest}")
