"""localoss.json: what a model directory holds, from which checkpoint and in which number formats."""

import json
import shlex
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from quant.errors import QuantError
from quant.format.json_file import read_json
from quant.format.layout import FORMAT_VERSION, JOURNAL, MANIFEST
from quant.format.safetensors import INDEX_FILE, SINGLE_FILE
from quant.format.weight_formats import choices

CHOICES = {name: choices(name) for name in ("attention", "embedding", "unembedding", "experts")}


@dataclass(frozen=True)
class Dtypes:
    """The number format of each class of tensors. Raises: QuantError for one that it cannot have."""

    attention: str = CHOICES["attention"][0]
    embedding: str = CHOICES["embedding"][0]
    unembedding: str = CHOICES["unembedding"][0]
    experts: str = CHOICES["experts"][0]

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise QuantError(f"{name} cannot be {value!r}; choose {' or '.join(allowed)}")


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a model directory was made from.

    `fingerprint` is the sha256 of config.json and of every tensor's name, dtype, shape and first bytes; of
    a pulled one, of config.json and of its files' sha256. `revision` is the hub's commit of a pulled one.
    """

    name: str
    config_sha256: str
    fingerprint: str
    revision: str | None = None


@dataclass(frozen=True)
class Text:
    """A calibration text: the sha256 of the file, in hexadecimal, and how many of its tokens were run."""

    sha256: str
    tokens: int


@dataclass(frozen=True)
class FileEntry:
    """One file of the model directory: its size in bytes and the sha256 of all of it, in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of localoss.json."""

    source: Origin
    dtypes: Dtypes
    localoss_version: str
    files: dict[str, FileEntry] = field(default_factory=dict)  # by name
    format_version: int = FORMAT_VERSION
    calibration: Text | None = None

    @property
    def total_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())

    def with_file(self, name: str, entry: FileEntry) -> "Manifest":
        return replace(self, files=dict(sorted({**self.files, name: entry}.items())))

    def to_json(self, **more: Any) -> bytes:
        """The file's content, with the keys and values of `more` at its end."""
        first = {"format_version": self.format_version, "localoss_version": self.localoss_version}
        content = asdict(self)
        if self.source.revision is None:
            del content["source"]["revision"]
        if self.calibration is None:
            del content["calibration"]
        return (json.dumps(first | content | more, indent=2) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of model directory `folder`, with every file there and of the size it tells.

    Raises: QuantError for a folder that is something else, a damaged or newer localoss.json, a file
    missing or of another size.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise QuantError(_what_instead(folder))
    manifest = parse_manifest(path)
    for name, entry in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            raise QuantError(f"{folder / name}: missing; quantize or pull the model again") from None
        if size != entry.bytes:
            raise QuantError(
                f"{folder / name}: {size:,} bytes where {MANIFEST} tells {entry.bytes:,}; "
                "the file is damaged, quantize or pull the model again"
            )
    return manifest


def parse_manifest(path: Path) -> Manifest:
    """The manifest in file `path`, without a look at the other files. Raises: QuantError."""
    try:
        raw = read_json(path)
        version = raw["format_version"]
        if type(version) is int and version > FORMAT_VERSION:
            raise QuantError(
                f"{path}: format version {version}, but this localoss reads up to {FORMAT_VERSION}; "
                "upgrade localoss"
            )
        return _from_json(raw)
    except OSError as error:
        raise QuantError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise QuantError(f"{path}: damaged; quantize or pull the model again") from None


def _from_json(raw: dict[str, Any]) -> Manifest:
    if raw["format_version"] != FORMAT_VERSION:
        raise ValueError("format_version")
    files = {
        name: FileEntry(_natural(entry["bytes"]), str(entry["sha256"]))
        for name, entry in raw["files"].items()
    }
    if any(set(name) & set("/\\:") or name in ("", ".", "..") or not name.isprintable() for name in files):
        raise ValueError("a path instead of a name")
    return Manifest(
        source=_origin(raw["source"]),
        dtypes=Dtypes(**{key: raw["dtypes"][key] for key in CHOICES}),
        localoss_version=str(raw["localoss_version"]),
        files=files,
        calibration=_text(raw["calibration"]) if raw.get("calibration") else None,
    )


def _text(raw: dict[str, Any]) -> Text:
    return Text(str(raw["sha256"]), _natural(raw["tokens"]))


def _origin(raw: dict[str, Any]) -> Origin:
    texts = {key: str(raw[key]) for key in ("name", "config_sha256", "fingerprint")}
    return Origin(**texts, revision=str(raw["revision"]) if raw.get("revision") else None)


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("not a natural number")
    return value


def _what_instead(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: not found"
    if not folder.is_dir():
        return f"{folder}: a file; give a model directory, which holds {MANIFEST}"
    if (folder / INDEX_FILE).exists() or (folder / SINGLE_FILE).exists():
        command = shlex.join(["localoss", "quantize", str(folder), f"{folder.resolve().name}-localoss"])
        return f"{folder}: a Hugging Face checkpoint; convert it first: {command}"
    if (folder / JOURNAL).exists():
        return f"{folder}: quantizing did not finish; run the same `localoss quantize` again to go on"
    return f"{folder}: no {MANIFEST} in it; give a folder that `localoss quantize` made"
