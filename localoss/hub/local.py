"""GGUF files of a model that other programs keep on this machine: taken, they save a download."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from localoss import settings
from localoss.errors import UsageError
from localoss.hub import transfer
from localoss.hub.errors import WrongFileError
from localoss.hub.listing import RemoteFile
from localoss.hub.registry import KnownModel
from quant.errors import QuantError
from quant.format.json_file import read_json
from quant.sources import Source, open_source

MOST_FOLDERS_DOWN = 4  # publisher/repository/snapshots/commit/file
_NUMBER_FORMAT = r"(-(mxfp4|f16|bf16|f32|i?q\d\w*|ud-\w+)(_moe)?)*(-00001-of-[0-9]{5})?"


@dataclass(frozen=True)
class Found:
    """A GGUF file that `program` keeps, with MXFP4 experts, or the first of several; `bytes` in all."""

    path: Path
    program: str
    bytes: int


def discover(known: KnownModel) -> list[Found]:
    """The files of model `known` on this machine that become the model without rounding its experts again.

    The name tells a fine-tune from the original, the header the size. What cannot be read is passed over.
    """
    candidates = [(path, "Ollama") for path in _of_ollama(known.name)]
    for program, folders in (
        ("LM Studio", settings.lm_studio_models()),
        ("llama.cpp", settings.llama_cpp_models()),
        ("Hugging Face's cache", [Path(constants.HF_HUB_CACHE)]),
    ):
        candidates += [(path, program) for folder in folders for path in _ggufs(folder, known.name)]
    found: dict[Path, Found] = {}
    for path, program in candidates:
        if path.resolve() not in found and (size := _exact_bytes(path, known)):
            found[path.resolve()] = Found(path, program, size)
    return list(found.values())


def _exact_bytes(path: Path, known: KnownModel) -> int | None:
    """The size of the model in `path`, if it is `known` with MXFP4 experts."""
    try:
        with open_source(path) as source:
            if source.has_mxfp4_experts and _difference(source, known) is None:
                return sum(part.stat().st_size for part in source.paths)
    except (QuantError, OSError):
        pass
    return None


def _of_ollama(name: str) -> Iterator[Path]:
    """Files that Ollama's manifests call `name`: library/gpt-oss/20b is gpt-oss-20b."""
    family, _, size = name.rpartition("-")
    tags = (size, "latest") if size == "20b" else (size,)
    for folder in settings.ollama_models():
        for tag in tags:
            try:
                manifest = read_json(folder / "manifests" / "registry.ollama.ai" / "library" / family / tag)
                layers = [str(layer["digest"]) for layer in manifest["layers"] if _is_model(layer)]
            except (OSError, ValueError, TypeError, KeyError):
                continue
            digests = [re.fullmatch(r"sha256:([0-9a-f]{64})", digest) for digest in layers]
            blobs = (folder / "blobs" / f"sha256-{digest[1]}" for digest in digests if digest)
            yield from (blob for blob in blobs if blob.is_file())


def _is_model(layer: dict[str, str]) -> bool:
    return layer.get("mediaType") == "application/vnd.ollama.image.model"


def _ggufs(folder: Path, name: str) -> Iterator[Path]:
    """GGUF files below `folder` that are called `name`, whatever number format and owner stand beside it."""
    pattern = re.compile(rf"(.*[_/])?{re.escape(name)}{_NUMBER_FORMAT}\.gguf", re.IGNORECASE)
    for depth in range(MOST_FOLDERS_DOWN + 1):
        try:
            yield from sorted(p for p in folder.glob("*/" * depth + "*.gguf") if pattern.fullmatch(p.name))
        except OSError:
            return


def _difference(source: Source, known: KnownModel) -> str | None:
    """What of the architecture differs from the known model's; None where nothing does."""
    if known.config is None:
        return None
    for name in ("layers", "hidden", "intermediate", "experts", "active_experts", "heads", "vocab"):
        there, expected = getattr(source.config, name), getattr(known.config, name)
        if there != expected:
            return f"{name} {there:,} where {known.name} has {expected:,}"
    return None


def open_local(path: Path, known: KnownModel | None) -> Source:
    """The checkpoint in `path`, which must be of `known`'s architecture if that is given.

    An Ollama file, whose name is its sha256, is checked against it. Raises: QuantError, UsageError,
    WrongFileError.
    """
    path = path.expanduser()
    digest = re.fullmatch(r"sha256-([0-9a-f]{64})", path.name)
    if digest and path.is_file():
        listed = RemoteFile(path.name, path.stat().st_size, digest[1], None)
        if not transfer.is_whole(path, listed, lambda done_bytes: None):
            raise WrongFileError(f"{path}: damaged, its sha256 is another than its name; pull it anew")
    source = open_source(path)
    difference = _difference(source, known) if known else None
    if difference:
        source.close()
        raise UsageError(f"{path}: another model, {difference}; give it another name with --as")
    return source
