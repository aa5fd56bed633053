#!/usr/bin/env python3
"""Run a command with less memory, and tell what it took: a 16 GB machine played on a larger one.

    sudo python benchmarks/limited.py 16e9 [--cold] -- localoss bench MODEL --json

Needs root on Linux with the version 1 memory controller. Pages of files count for the group that first
touches them, so `--cold` drops the page cache before. Prints JSON on stderr when the command ends: peaks of
anonymous memory, of all resident memory (file pages included), of the group, and the command's page faults.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CONTROLLER = Path("/sys/fs/cgroup/memory")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("limit_bytes", type=float)
    parser.add_argument("--cold", action="store_true", help="drop the page cache first")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    if not os.access(CONTROLLER / "memory.limit_in_bytes", os.R_OK) or os.geteuid() != 0:
        sys.exit("needs root, and Linux's version 1 memory controller at /sys/fs/cgroup/memory")
    if args.cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    group = CONTROLLER / f"localoss-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(int(args.limit_bytes)))
        code, report = run(args.command, group)
    finally:
        remove(group)
    print(json.dumps({"limit_bytes": int(args.limit_bytes), "cold": args.cold, **report}), file=sys.stderr)
    return code


def run(command: list[str], group: Path) -> tuple[int, dict[str, float]]:
    """Run `command` in `group`: its exit code, and the peaks of what /proc tells of it."""
    join = f'echo $$ > {group}/tasks && exec "$@"'
    start = time.perf_counter()
    child = subprocess.Popen(["sh", "-c", join, "sh", *command])
    report: dict[str, float] = {}
    while child.poll() is None:
        for name, value in readings(child.pid).items():
            report[name] = max(value, report.get(name, 0))
        time.sleep(0.1)
    report["seconds"] = round(time.perf_counter() - start, 2)
    report["group_peak_bytes"] = int((group / "memory.max_usage_in_bytes").read_text())
    return child.returncode, report


def readings(pid: int) -> dict[str, int]:
    """Resident memory and faults of a process; nothing once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return {}
    kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith(" kB")}
    found = {f"{name}_bytes": 1024 * kib[name] for name in ("RssAnon", "RssFile", "VmHWM") if name in kib}
    return found | {"minor_faults": int(fields[7]), "major_faults": int(fields[9])}


def remove(group: Path) -> None:
    for _ in range(50):  # the kernel lets go of a group a little after its last process
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
