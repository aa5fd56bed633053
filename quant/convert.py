"""The converter: a published checkpoint in, a model directory out, a slice of a tensor at a time.

Published MXFP4 is permuted into tiles and never rounded again; the rest becomes what the caller asks for.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quant.calibration import Calibration, Moments, calibration_specs
from quant.encode_tensors import Part, layer_parts, vocabulary_parts
from quant.errors import QuantError
from quant.estimate import expected_seconds
from quant.format import disk
from quant.format.config import ModelConfig
from quant.format.layout import (
    CALIBRATION_FILE,
    VOCABULARY_FILE,
    TensorSpec,
    layer_file,
    layer_specs,
    vocabulary_specs,
)
from quant.format.manifest import Dtypes, Manifest, Origin
from quant.format.weight_formats import MXFP4
from quant.format.writer import Writer, file_bytes
from quant.output_folder import Target
from quant.sources import Source, open_source

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What a conversion would do. `files` are sizes in bytes by name; `expected_s` None where unknown."""

    files: dict[str, int]
    to_write_bytes: int  # less than all of them where an earlier run had finished some
    read_bytes: int
    free_bytes: int
    expected_s: float | None

    @property
    def total_bytes(self) -> int:
        return sum(self.files.values())


@dataclass(frozen=True)
class Summary:
    """What a conversion did. `written_bytes` leaves out files that an earlier run had finished.

    `notes` are lines on how the checkpoint was read that its owner should know.
    """

    manifest: Manifest
    already_there: bool
    written_bytes: int
    elapsed_s: float
    notes: tuple[str, ...] = ()


def convert(
    source: Path,
    out: Path,
    dtypes: Dtypes | None = None,
    force: bool = False,
    progress: Progress | None = None,
    name: str | None = None,
    calibration: Calibration | None = None,
) -> Summary:
    """Convert the checkpoint `source`, a folder or a GGUF file, to a model directory `out`.

    An interrupted conversion goes on where it stopped. `force` replaces another model in `out`, never
    anything else. `progress(done_bytes, total_bytes)` counts bytes of the model directory. `name` is what the
    manifest calls the checkpoint, else its own name. `calibration` weighs the rounding of int4 weights.
    Memory stays under 2 GB at any model size. Raises: QuantError.
    """
    with open_source(source) as checkpoint:
        return convert_source(checkpoint, out, dtypes, force, progress, name, calibration)


def convert_source(
    checkpoint: Source,
    out: Path,
    dtypes: Dtypes | None = None,
    force: bool = False,
    progress: Progress | None = None,
    name: str | None = None,
    calibration: Calibration | None = None,
) -> Summary:
    """`convert` for a checkpoint that is open already. Raises: QuantError."""
    started_s = time.monotonic()
    wanted = _wanted(checkpoint, dtypes or Dtypes(), name, calibration)
    files = _files(checkpoint.config, wanted.dtypes, calibration is not None)
    with Target(out, wanted, checkpoint.stamps) as target:
        there = target.prepare({name: file_bytes(specs) for name, specs in files.items()}, force)
        written_bytes = 0 if there else _write_files(checkpoint, files, target, progress, calibration)
    elapsed_s = time.monotonic() - started_s
    return Summary(target.manifest, there, written_bytes, elapsed_s, tuple(checkpoint.files.notes))


def plan(
    source: Path,
    out: Path,
    dtypes: Dtypes | None = None,
    force: bool = False,
    calibration: Calibration | None = None,
) -> Plan:
    """What `convert` would do with these arguments; `out` stays as it is. Raises: QuantError as convert.

    The time is without that of calibrating.
    """
    with open_source(source) as checkpoint:
        wanted = _wanted(checkpoint, dtypes or Dtypes(), calibration=calibration)
        files = _sizes(checkpoint, _files(checkpoint.config, wanted.dtypes, calibration is not None))
        target = Target(out, wanted, checkpoint.stamps)
        complete = target.look(force)
        left = {name: size for name, size in files.items() if name not in target.manifest.files}
        to_write_bytes = 0 if complete else sum(left.values())
        source_bytes = sum(info.size for _, info in checkpoint.files.tensors.values())
        read_bytes = round(source_bytes * to_write_bytes / sum(files.values()))
        largest = max(checkpoint.paths, key=lambda path: path.stat().st_size)
        expected_s = expected_seconds(largest, disk.existing_folder(out), read_bytes, to_write_bytes)
        return Plan(files, to_write_bytes, read_bytes, target.free_bytes(), expected_s)


def _wanted(
    checkpoint: Source, dtypes: Dtypes, name: str | None = None, calibration: Calibration | None = None
) -> Manifest:
    """The manifest to be, without files."""
    _check_experts(checkpoint, dtypes)
    text = calibration.text if calibration else None
    return Manifest(origin_of(checkpoint, name), dtypes, _localoss_version(), calibration=text)


def output_bytes(checkpoint: Source, dtypes: Dtypes) -> dict[str, int]:
    """Size in bytes of each file of the model directory but localoss.json, by name."""
    return _sizes(checkpoint, _files(checkpoint.config, dtypes))


def _sizes(checkpoint: Source, files: dict[str, dict[str, TensorSpec]]) -> dict[str, int]:
    small = {name: len(content) for name, content in checkpoint.small_files.items()}
    return small | {name: file_bytes(specs) for name, specs in files.items()}


def _files(config: ModelConfig, dtypes: Dtypes, calibrated: bool = False) -> dict[str, dict[str, TensorSpec]]:
    """The tensors of each safetensors file, in the order in which they are written."""
    files = {CALIBRATION_FILE: calibration_specs(config, dtypes)} if calibrated else {}
    for layer in range(config.layers):
        files[layer_file(layer)] = layer_specs(config, dtypes.attention, dtypes.experts)
    return files | {VOCABULARY_FILE: vocabulary_specs(config, dtypes.embedding, dtypes.unembedding)}


def _write_files(
    checkpoint: Source,
    files: dict[str, dict[str, TensorSpec]],
    target: Target,
    progress: Progress | None,
    calibration: Calibration | None,
) -> int:
    """Write what `target` lacks, localoss.json last; gives the bytes written."""
    small = checkpoint.small_files
    sizes = _sizes(checkpoint, files)
    missing = [name for name in sizes if name not in target.manifest.files]
    to_write_bytes, total_bytes = sum(sizes[name] for name in missing), sum(sizes.values())
    done_bytes = total_bytes - to_write_bytes

    def advance(written_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += written_bytes
        if progress:
            progress(done_bytes, total_bytes)

    advance(0)
    with Writer(advance) as writer:
        for name in checkpoint.arrange(missing, writer.flush):
            path, done = target.folder / name, partial(target.add, name)
            if name in small:
                writer.write(path, [small[name]], done)
            else:
                parts = _parts(checkpoint, name, files[name], target, calibration)
                writer.write_tensors(path, files[name], parts, done)
            if name == CALIBRATION_FILE:
                writer.flush()  # the next files read it
    target.finish()
    return to_write_bytes


def _parts(
    checkpoint: Source,
    name: str,
    specs: dict[str, TensorSpec],
    target: Target,
    calibration: Calibration | None,
) -> Iterator[Part]:
    """The content of safetensors file `name`."""
    if name == CALIBRATION_FILE:
        assert calibration
        yield from calibration.measure(checkpoint, list(specs))
        return
    dtypes = target.manifest.dtypes
    with Moments(target.folder if calibration else None) as moments:
        if name == VOCABULARY_FILE:
            yield from vocabulary_parts(checkpoint, dtypes, moments)
        else:
            layer = [layer_file(layer) for layer in range(checkpoint.config.layers)].index(name)
            yield from layer_parts(checkpoint, layer, dtypes, moments)


def _check_experts(checkpoint: Source, dtypes: Dtypes) -> None:
    """Raises: QuantError if MXFP4 experts would be rounded a second time."""
    if checkpoint.has_mxfp4_experts and dtypes.experts != MXFP4.name:
        raise QuantError(
            f"{checkpoint.name}: its experts are MXFP4 already and are kept bit for bit; leave out --experts"
        )


def origin_of(checkpoint: Source, name: str | None = None) -> Origin:
    """What a manifest tells of `checkpoint`; may read the start of each tensor. Raises: QuantError."""
    fingerprint = checkpoint.fingerprint()
    return Origin(name or checkpoint.name, checkpoint.config_sha256, fingerprint, checkpoint.revision)


def _localoss_version() -> str:
    try:
        return version("localoss")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
