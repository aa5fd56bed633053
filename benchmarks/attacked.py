#!/usr/bin/env python3
"""What each kind of hostile client costs two well-behaved ones: how long their questions take beside it.

    python benchmarks/attacked.py [--turns 3] [--seconds 10] [--all] [KIND ...]

Starts `localoss serve demo`; has the two alone, then beside each kind of tests/support/attackers.py, or those
that are named, in turns. --all: beside all eight at once, too. For each: answers, the median and the 99th
percentile, both as a ratio of those alone, the slowest /health, and processor seconds a second: of the server
and of the processes that it started.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import attacked
from support.attackers import KINDS

ALONE, ALL = "alone", "all eight"


def processor_s(process):
    """Of the server, and of all that it started so far: what has ended is counted by the system."""
    times = psutil.Process(process.pid).cpu_times()
    children = psutil.Process(process.pid).children(recursive=True)
    living = [child.cpu_times() for child in children]
    of_children = times.children_user + times.children_system + sum(one.user + one.system for one in living)
    return times.user + times.system, of_children


def turn(server, kind, seconds, found):
    """Note what the two see for so long beside `kind`."""
    process, url, _ = server
    attacked.wait_until_idle(url)
    before = processor_s(process)
    began = time.monotonic()
    if kind == ALONE:
        values, health, faults = attacked.watched(url, lambda: time.sleep(seconds))
    else:
        with attacked.attackers(url, seconds, () if kind == ALL else (kind,)) as (attack, seen):
            values, health, faults = attacked.watched(url, attack)
        found[kind]["seen"].append(seen)
    took_s = time.monotonic() - began
    used = [(after - was) / took_s for after, was in zip(processor_s(process), before, strict=True)]
    found[kind]["seconds"] += values
    found[kind]["health"] += health
    found[kind]["used"].append(used)
    if faults:
        print(f"{kind}: {faults[:3]}", file=sys.stderr)


def tell(found):
    alone = sorted(found[ALONE]["seconds"])
    base = attacked.at(0.5, alone), attacked.at(0.99, alone)
    print(f"{'beside':22} {'answers':>7} {'p50 ms':>8} {'p99 ms':>8} {'p50 x':>6} {'p99 x':>6}", end="")
    print(f" {'health ms':>9} {'server':>6} {'its':>5}")
    for kind, its in found.items():
        values = sorted(its["seconds"])
        p50, p99 = attacked.at(0.5, values), attacked.at(0.99, values)
        used = [sum(column) / len(its["used"]) for column in zip(*its["used"], strict=True)]
        print(f"{kind:22} {len(values):7} {1e3 * p50:8.1f} {1e3 * p99:8.1f}", end="")
        print(f" {p50 / base[0]:6.2f} {p99 / base[1]:6.2f} {1e3 * max(its['health']):9.0f}", end="")
        print(f" {used[0]:6.2f} {used[1]:5.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [kind.__name__ for kind in KINDS]
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(names)}")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    if unknown := [kind for kind in options.kinds if kind not in names]:
        parser.error(f"{unknown[0]} is none of {', '.join(names)}")
    kinds = [ALONE, *(options.kinds or ([] if options.all else names)), *([ALL] if options.all else [])]
    found = {kind: defaultdict(list) for kind in kinds}
    with tempfile.TemporaryDirectory() as folder, attacked.served(Path(folder)) as server:
        attacked.watched(server[1], lambda: time.sleep(3))  # warm
        for _ in range(options.turns):
            for kind in kinds:
                turn(server, kind, options.seconds, found)
        tell(found)


if __name__ == "__main__":
    main()
