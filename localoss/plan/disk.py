"""How fast the disk under a folder brings experts: measured once by `localoss plan --measure`, and kept."""

import contextlib
import datetime
import json
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from localoss import settings
from localoss.plan.sizes import READERS
from quant.format.direct import DirectFile, page_buffer
from quant.format.layout import PAGE

FILE = "disk.json"
ASSUMED_BYTES_PER_S = 3.5e9  # a laptop's SSD with PCIe 3
_READS = 16
_TRIAL_BYTES = 13_254_656  # an expert of gpt-oss


@dataclass(frozen=True)
class DiskSpeed:
    """date: when it was measured, empty if it is assumed. is_direct: whether reads go past the page cache."""

    bytes_per_s: float
    date: str = ""
    is_direct: bool = True

    def __str__(self) -> str:
        speed = f"{self.bytes_per_s / 1e9:.2f} GB/s"
        if not self.date:
            return f"{speed} assumed; `localoss plan MODEL --measure` reads what this one does"
        buffered = "" if self.is_direct else ", through the page cache: this file system has no direct reads"
        return f"{speed}, measured {self.date}{buffered}"

    def report(self) -> dict[str, object]:
        return {**asdict(self), "is_assumed": not self.date}


def known(folder: Path) -> DiskSpeed:
    """What was measured of the disk that `folder` lies on, or what is assumed of it."""
    entry = _read().get(_mount(folder))
    return entry or DiskSpeed(ASSUMED_BYTES_PER_S)


def measure(folder: Path, today: Callable[[], datetime.date] = datetime.date.today) -> DiskSpeed:
    """Read _READS records of a model's files in `folder` at random places, and keep the figure.

    Without such files a trial file is written there, and removed. Raises: OSError, QuantError.
    """
    files = sorted(folder.glob("layer-*.safetensors"))
    large = [path for path in files if path.stat().st_size >= 2 * _TRIAL_BYTES]
    if large:
        found = _time(large, _TRIAL_BYTES)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".disk-trial-{os.getpid()}"
        try:
            _write(trial, _READS * _TRIAL_BYTES)
            found = _time([trial], _TRIAL_BYTES)
        finally:
            trial.unlink(missing_ok=True)
    speed = DiskSpeed(found[0], today().isoformat(), found[1])
    _keep(_mount(folder), speed)
    return speed


def _write(path: Path, size: int) -> None:
    """A file of bytes that no disk can compress, on the disk and out of the page cache."""
    with open(path, "wb") as file:
        for _ in range(_READS):
            file.write(random.randbytes(size // _READS))
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _time(paths: list[Path], size: int) -> tuple[float, bool]:
    """Bytes per second of _READS reads on READERS threads, and whether they went past the page cache."""
    opened = {path: DirectFile(path) for path in paths}
    places = [
        (opened[path], at * PAGE)
        for path in paths
        for at in range(0, (path.stat().st_size - size) // PAGE + 1, size // PAGE)
    ]
    jobs = random.sample(places, min(_READS, len(places)))
    count, views = len(jobs), [page_buffer(size) for _ in range(READERS)]
    for view in views:
        view[::PAGE] = bytes(len(view[::PAGE]))  # given by the system before the clock runs
    errors: list[Exception] = []

    def read(view: memoryview) -> None:
        try:
            while jobs:
                file, offset = jobs.pop()
                file.read_into(view, offset)
        except IndexError:  # another thread took the last one
            pass
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(view,)) for view in views]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - start
    is_direct = all(file.is_direct for file in opened.values())
    for file in opened.values():
        file.close()
    if errors:
        raise errors[0]
    return count * size / took_s, is_direct


def _mount(folder: Path) -> str:
    """The mount point of the disk that `folder` is on, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    place = place.resolve()
    while place != place.parent and place.parent.stat().st_dev == place.stat().st_dev:
        place = place.parent
    return str(place)


def _keep(mount: str, speed: DiskSpeed) -> None:
    path = settings.home() / FILE
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")
        new.write_text(json.dumps({name: asdict(one) for name, one in {**_read(), mount: speed}.items()}))
        os.replace(new, path)


def _read() -> dict[str, DiskSpeed]:
    """What was kept; nothing of a file that is damaged."""
    try:
        entries = json.loads((settings.home() / FILE).read_bytes())
        found = {mount: DiskSpeed(**entry) for mount, entry in entries.items()}
        return {mount: one for mount, one in found.items() if one.bytes_per_s > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
