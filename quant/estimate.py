"""How long a conversion will take: a little of its work, done now."""

import hashlib
import os
import tempfile
import time
from pathlib import Path

PROBE_BYTES = 64 << 20
PIECE_BYTES = 4 << 20


def expected_seconds(source: Path, folder: Path, read_bytes: int, write_bytes: int) -> float | None:
    """Seconds to read `read_bytes` like those of file `source` and to write `write_bytes` into `folder`.

    Writes 64 MB to a file without a name, which is gone again. None if `folder` cannot be written.
    """
    if not write_bytes:
        return 0.0
    try:
        read_speed = _read_speed(source)
        write_speed = _write_speed(folder)
    except OSError:
        return None
    return read_bytes / read_speed + write_bytes / write_speed


def _read_speed(path: Path) -> float:
    """Bytes per second from the middle of file `path`."""
    count = 0
    started_s = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        file.seek(path.stat().st_size // 2)
        while count < PROBE_BYTES and (piece := file.read(PIECE_BYTES)):
            count += len(piece)
    return max(count, 1) / (time.perf_counter() - started_s)


def _write_speed(folder: Path) -> float:
    """Bytes per second to the disk of `folder`; hashing goes on beside it, and the slower counts."""
    piece = bytes(PIECE_BYTES)
    started_s = time.perf_counter()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(PROBE_BYTES // PIECE_BYTES):
            file.write(piece)
        os.fsync(file.fileno())
    write_s = time.perf_counter() - started_s
    started_s = time.perf_counter()
    hashlib.sha256(piece)
    hash_s = (time.perf_counter() - started_s) * PROBE_BYTES / PIECE_BYTES
    return PROBE_BYTES / max(write_s, hash_s)
