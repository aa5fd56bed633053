#!/usr/bin/env python3
"""localoss beside llama.cpp on the same weights, and beside what the memory allows: every target, measured.

    python benchmarks/compare.py --model q20 --int4-model q20i4 --small-model q4 --gguf g20.gguf \\
        --peer-python peer/bin/python --peer-tools tools/ --pairs 3

Several peers may stand beside it, for what a build leaves out says nothing: --peer NAME=COMMAND, for example
"llama.cpp, native=node benchmarks/peer_node.mjs --modules peer"; each row names the best of them.

A round takes each measurement once, each in a fresh process, ours and llama.cpp's in turns; --pairs says how
many rounds. Results are kept in RESULTS.json after every run, and RESULTS.md is written from them: a run that
was stopped goes on where it was, --rows takes some rows only, --again takes theirs anew, and --pairs 0 only
writes the table. What an option left out would be needed for is left out of the table. At full size llama.cpp
takes 22 GB, and a round half an hour.
"""

import argparse
import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import report
import rows
from measure import MeasureError, Measurement, machine, take, versions

Runs = dict[str, list[dict[str, Any]]]


class Store:
    """RESULTS.json: runs by measurement, each list with the command that gave it."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            self._kept = {}
        except ValueError as error:
            sys.exit(f"{path}: {error}; move it away")
        self._kept.setdefault("measurements", {})

    def runs(self, wanted: dict[str, Measurement]) -> Runs:
        """The kept runs of the same command, for each of `wanted`."""
        kept = self._kept["measurements"]
        return {
            name: kept[name]["runs"] if name in kept and kept[name]["command"] == wanted[name].shown else []
            for name in wanted
        }

    def put(self, measurement: Measurement, runs: list[dict[str, Any]]) -> None:
        self._kept["measurements"][measurement.name] = {"command": measurement.shown, "runs": runs}
        self._write()

    def describe(self, **facts: Any) -> None:
        """Keep what is said of the machine and the versions."""
        self._kept |= facts
        self._write()

    def _write(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self._kept, indent=1) + "\n", "utf-8")
        os.replace(part, self.path)


def main() -> int:
    args = _arguments()
    sizes = rows.QUICK if args.quick else rows.Sizes()
    setup = rows.Setup(
        model=args.model,
        threads=args.threads,
        sizes=sizes,
        int4=args.int4_model,
        small=args.small_model,
        gguf=args.gguf,
        peer_python=args.peer_python,
        peer_tools=args.peer_tools,
        peers=tuple(args.peer or ()),
    )
    table = rows.table(sizes)
    chosen = _choose(table, args.rows)
    can = rows.measurements(setup)
    names = {name for row in chosen for name in (*row.needs, *row.also)}
    todo = [measurement for name, measurement in can.items() if name.partition("@")[0] in names]

    args.output.mkdir(parents=True, exist_ok=True)
    store = Store(args.output / "RESULTS.json")
    facts = {"machine": machine(), "versions": versions(args.peer_python), "sizes": asdict(sizes)}
    store.describe(**facts, threads=args.threads)
    runs = store.runs(can)
    if args.again:
        runs |= {measurement.name: [] for measurement in todo}

    def write() -> None:
        report.write(args.output / "RESULTS.md", table, rows.Results(runs), facts, can)

    failed = _measure(todo, args.pairs, runs, store, args.timeout, write)
    write()
    print(args.output / "RESULTS.md")
    return 1 if failed else 0


def _measure(
    todo: list[Measurement], pairs: int, runs: Runs, store: Store, timeout_s: float, write: Any
) -> set[str]:
    """Take what is missing of `pairs` runs each, in turns, and note each run at once; give what failed."""
    failed: set[str] = set()
    for turn in range(pairs):
        for measurement in todo:
            name = measurement.name
            if name in failed or len(runs[name]) > turn or turn >= measurement.most:
                continue
            print(f"{turn + 1} of {min(pairs, measurement.most)}: {name}: {measurement.shown}", flush=True)
            try:
                runs[name] = [*runs[name], take(measurement, timeout_s)]
            except MeasureError as error:
                print(f"error: {name} {error}", file=sys.stderr)
                failed.add(name)
                continue
            store.put(measurement, runs[name])
            write()
    return failed


def _choose(table: list[rows.Row], names: str | None) -> list[rows.Row]:
    if names is None:
        return table
    wanted, known = names.split(","), [row.name for row in table]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        sys.exit(f"no row is called {unknown[0]!r}; they are {', '.join(known)}")
    return [row for row in table if row.name in wanted]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=_path, required=True, help="int8 attention and unembedding")
    parser.add_argument("--int4-model", type=_path, help="the same weights with int4 ones")
    parser.add_argument("--small-model", type=_path, help="the same with few layers")
    parser.add_argument("--gguf", type=_path, help="the same weights for llama.cpp")
    parser.add_argument("--peer-python", help="a Python that has xllamacpp")
    parser.add_argument("--peer-tools", type=_path, help="with peer_llamacpp.py and read_bandwidth.py")
    parser.add_argument(
        "--peer",
        type=_peer,
        action="append",
        metavar="NAME=COMMAND",
        help="another peer; COMMAND GGUF --prompt-tokens N --gen-tokens N --threads N prints JSON",
    )
    parser.add_argument("--pairs", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--rows", help="names of rows, comma-separated (default: all)")
    parser.add_argument("--again", action="store_true", help="forget earlier runs of these rows")
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=cores, help="of both (default: one per core)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds a process may take")
    parser.add_argument("--quick", action="store_true", help="few tokens, to try this out")
    here = Path(__file__).resolve().parent
    parser.add_argument("--output", type=Path, default=here, help="where RESULTS.* go (default: here)")
    return parser.parse_args()


def _peer(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, command = text.partition("=")
    if not name or not command or "@" in name:
        raise argparse.ArgumentTypeError(f"{text}: give NAME=COMMAND")
    return name, tuple(shlex.split(command))


def _path(text: str) -> Path:
    path = Path(text).resolve()
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return path


if __name__ == "__main__":
    sys.exit(main())
