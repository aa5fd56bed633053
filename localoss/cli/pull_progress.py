"""How `localoss pull` shows what it does: bars on a terminal, else a line now and then."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from localoss.cli.progress import PLAIN_INTERVAL_S, duration_text, size_text
from localoss.cli.terminal import printable
from localoss.hub.listing import RemoteFile
from localoss.hub.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

SPEED_OVER_S = 10.0
SAMPLES = 50  # of how much had come when: enough for SPEED_OVER_S


class Meter:
    """How much of all files is here, how fast it comes, how long it will take."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._sizes: dict[str, int] = {}
        self._here: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES)

    def begin(self, sizes: dict[str, int], here: dict[str, int]) -> None:
        """Files of `sizes` bytes; `here` of them came earlier and say nothing about the speed."""
        self._sizes, self._here, self._done = sizes, here, dict(here)
        self._samples.append((self._clock(), 0))

    def update(self, name: str, done_bytes: int) -> None:
        self._done[name] = max(done_bytes, self._here.get(name, 0))
        now_s = self._clock()
        if now_s - self._samples[-1][0] >= SPEED_OVER_S / SAMPLES:
            self._samples.append((now_s, self.done_bytes - sum(self._here.values())))

    @property
    def total_bytes(self) -> int:
        return sum(self._sizes.values())

    @property
    def done_bytes(self) -> int:
        return sum(self._done.values())

    def text(self) -> str:
        """Speed and time left in words: 45.2 MB/s, 3 min left."""
        now_s, came = self._clock(), self.done_bytes - sum(self._here.values())
        then_s, had = self._samples[0]
        speed = (came - had) / max(now_s - then_s, 1e-9)
        if speed <= 0:
            return ""
        left_s = (self.total_bytes - self.done_bytes) / speed
        return f"{size_text(round(speed))}/s, {duration_text(left_s)} left"


class PlainProgress(Progress):
    """A line every few seconds, by `show`."""

    def __init__(self, show: Callable[[str], None]):
        self._show = show
        self._meter = Meter()
        self._shown_s = time.monotonic()

    def say(self, text: str) -> None:
        self._show(text)

    def begin(self, files: Sequence[RemoteFile], here: dict[str, int]) -> None:
        self._meter.begin(_sizes(files), here)
        there = sum(here.values())
        if files:
            already = f", {size_text(there)} are here already" if there else ""
            self._show(f"to download: {size_text(self._meter.total_bytes - there)}{already}")

    def fetched(self, name: str, done_bytes: int, total_bytes: int) -> None:
        self._meter.update(name, done_bytes)
        if self._is_time():
            of_file = f"{size_text(done_bytes)} of {size_text(total_bytes)}"
            in_all = f"{size_text(self._meter.done_bytes)} of {size_text(self._meter.total_bytes)}"
            self._show(f"{name}: {of_file}; in all {in_all}, {self._meter.text()}".removesuffix(", "))

    def converted(self, done_bytes: int, total_bytes: int) -> None:
        if self._is_time() and done_bytes:
            self._show(f"converted: {size_text(done_bytes)} of {size_text(total_bytes)}")

    def _is_time(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._shown_s < PLAIN_INTERVAL_S:
            return False
        self._shown_s = now_s
        return True


class BarProgress(Progress):
    """Three bars: the file that comes, all files, and what is converted of them."""

    def __init__(self, bars: "Bars"):
        self._bars = bars
        self._meter = Meter()
        self._name = ""
        self._file = bars.add_task("", visible=False, total=None, speed="")
        self._all = bars.add_task("in all", visible=False, total=None, speed="")
        self._converted = bars.add_task("converted", visible=False, total=None, speed="")

    def say(self, text: str) -> None:
        self._bars.console.print(printable(text), highlight=False, markup=False)

    def begin(self, files: Sequence[RemoteFile], here: dict[str, int]) -> None:
        self._meter.begin(_sizes(files), here)

    def fetched(self, name: str, done_bytes: int, total_bytes: int) -> None:
        self._meter.update(name, done_bytes)
        self._bars.update(self._file, description=name, completed=done_bytes, total=total_bytes, visible=True)
        done_bytes, total_bytes = self._meter.done_bytes, self._meter.total_bytes
        self._bars.update(
            self._all, completed=done_bytes, total=total_bytes, speed=self._meter.text(), visible=True
        )

    def converted(self, done_bytes: int, total_bytes: int) -> None:
        self._bars.update(self._converted, completed=done_bytes, total=total_bytes, visible=True)


def _sizes(files: Sequence[RemoteFile]) -> dict[str, int]:
    return {file.name: file.size for file in files}


@contextmanager
def pull_progress() -> Iterator[Progress]:
    """What shows a pull on stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainProgress(
            lambda text: console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
        )
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        DownloadColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        yield BarProgress(bars)
