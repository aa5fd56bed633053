"""`localoss quantize` beside `cp` of the same checkpoint, in turns: time, processor time, peak memory.

python benchmarks/convert.py CHECKPOINT SCRATCH [--pairs 3] [-- OPTIONS OF QUANTIZE]

Both sides read from the disk (the pages of the checkpoint are dropped from the page cache first) and end when
their bytes are on it (fsync). SCRATCH needs room for one copy; what is written there is removed. Linux only.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Run(NamedTuple):
    """One side of a pair; `cpu_s` is user and system time, `peak_bytes` the largest resident set."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def settle(source: Path) -> None:
    """Wait for writes that are under way, and forget what the page cache holds of `source`."""
    os.sync()
    for path in source.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(command: list[str], out: Path) -> Run:
    """Run `command`, which writes folder `out`, until `out` is on the disk; then remove it."""
    started_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"failed with {process.returncode}: {' '.join(command)}")
    for path in out.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    wall_s = time.perf_counter() - started_s
    shutil.rmtree(out)
    return Run(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def median(runs: list[Run], field: str) -> float:
    return statistics.median(getattr(run, field) for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("options", nargs="*", help="of quantize, after --")
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    source_bytes = sum(path.stat().st_size for path in args.checkpoint.iterdir())
    out = args.scratch / "out"
    copy = ["cp", "-r", str(args.checkpoint), str(out)]
    quantize = [sys.executable, "-m", "localoss", "quantize", str(args.checkpoint), str(out), *args.options]
    copies: list[Run] = []
    conversions: list[Run] = []
    for pair in range(args.pairs):
        for command, runs in ((copy, copies), (quantize, conversions)):
            settle(args.checkpoint)
            runs.append(timed(command, out))
        load = os.getloadavg()[0]
        ratio = copies[-1].wall_s / conversions[-1].wall_s
        print(
            f"pair {pair + 1}: cp {copies[-1].wall_s:.1f} s, quantize {conversions[-1].wall_s:.1f} s, "
            f"speed {ratio:.2f} of cp's, load {load:.1f}",
            file=sys.stderr,
        )
    report = {
        "checkpoint_bytes": source_bytes,
        "pairs": args.pairs,
        "cp_s": median(copies, "wall_s"),
        "quantize_s": median(conversions, "wall_s"),
        "ratios": [round(a.wall_s / b.wall_s, 3) for a, b in zip(copies, conversions, strict=True)],
        "cp_cpu_s": median(copies, "cpu_s"),
        "quantize_cpu_s": median(conversions, "cpu_s"),
        "peak_bytes": max(run.peak_bytes for run in conversions),
        "load_average": os.getloadavg()[0],
        "cpus": os.cpu_count(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
