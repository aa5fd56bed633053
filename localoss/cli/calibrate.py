"""The text of `localoss quantize --calibrate`: read, tokenized, ready to be run."""

import codecs
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from localoss.cli.terminal import StatusLine
from localoss.errors import UsageError

if TYPE_CHECKING:
    from quant.calibration import Calibration

READ_BYTES = 256 << 10  # of the text's start, to be tokenized: ten times what is used
FEWEST_TOKENS = 256


def read_calibration(path: Path, threads: int | None = None) -> "Calibration":
    """What quant.convert measures with the text in file `path`. Raises: UsageError for a text of no use."""
    from localoss.chat.harmony import encode_raw
    from localoss.measure.start_calibration import start_calibration

    text, sha256 = _read(path)
    tokens = encode_raw(text)
    if len(tokens) < FEWEST_TOKENS:
        raise UsageError(
            f"{path}: a text of {len(tokens):,} tokens; calibrating takes {FEWEST_TOKENS:,} or more, of the "
            "kind that the model will read and write"
        )
    line = StatusLine()
    try:
        return start_calibration(
            tokens,
            sha256,
            threads,
            compiling=lambda kernel: line.show(f"compiling kernels, once on this machine: {kernel}"),
        )
    finally:
        line.clear()


def _read(path: Path) -> tuple[str, str]:
    """The beginning of the text in file `path`, and the sha256 of the whole file."""
    try:
        with open(path, "rb") as file:
            start = file.read(READ_BYTES)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a text file") from None
    try:  # the last character may be cut through
        text = codecs.getincrementaldecoder("utf-8")().decode(start, final=len(start) < READ_BYTES)
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8; give a text file") from None
    return text, sha256
