"""Progress of long work on stderr, and how sizes and times are told."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_INTERVAL_S = 5.0  # between progress lines where stderr is no terminal


@contextmanager
def progress_shown(what: str) -> Iterator[Callable[[int, int], None]]:
    """A callback that shows bytes, speed and time left: a bar on a terminal, else a line now and then."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_progress(console.print)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done_bytes, total_bytes: bar.update(task, completed=done_bytes, total=total_bytes)


def _plain_progress(show: Callable[[str], None]) -> Callable[[int, int], None]:
    started_s = shown_s = time.monotonic()
    resumed_bytes: int | None = None

    def progress(done_bytes: int, total_bytes: int) -> None:
        nonlocal shown_s, resumed_bytes
        if resumed_bytes is None:
            resumed_bytes = done_bytes
        now_s = time.monotonic()
        if now_s - shown_s < PLAIN_INTERVAL_S:
            return
        shown_s = now_s
        speed = max(done_bytes - resumed_bytes, 1) / (now_s - started_s)
        left_s = (total_bytes - done_bytes) / speed
        done = f"{done_bytes / 1e9:.2f} of {total_bytes / 1e9:.2f} GB"
        show(f"{done}, {speed / 1e6:.0f} MB/s, {left_s:.0f} s left")

    return progress


def size_text(size_bytes: int) -> str:
    """A size in powers of 1,000: 13.8 GB."""
    from rich.filesize import decimal

    return decimal(size_bytes, precision=2 if size_bytes >= 1e9 else 1)


def duration_text(seconds: float) -> str:
    """A time to wait: 45 s, 12 min, 3 h 5 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
