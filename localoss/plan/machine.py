"""What this machine, or the control group that this process is held in, has of memory and of processors."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from localoss.plan.memory import reserve_bytes

_CGROUPS = Path("/sys/fs/cgroup")
_CACHE_RESERVE_BYTES = 1_500_000_000
_NO_LIMIT = 1 << 60  # version 1 writes "none" as a number near 2**63


@dataclass(frozen=True)
class Machine:
    """`total_bytes`: of the machine, or its control group's limit if that is lower. `available_bytes`: what
    can be had of it without taking it from other programs, this process's own part included.
    """

    total_bytes: int
    available_bytes: int
    in_cgroup: bool = False

    @property
    def limit_bytes(self) -> int:
        """What a model may take: what is available, but for a reserve."""
        return max(0, self.available_bytes - reserve_bytes(self.total_bytes))

    @property
    def cache_limit_bytes(self) -> int:
        """The same for a model whose experts are in a cache. What can't be dropped must not push others out:
        more is left.
        """
        reserve = max(_CACHE_RESERVE_BYTES, self.total_bytes * 15 // 100)
        return min(self.limit_bytes, max(0, self.available_bytes - reserve))

    @property
    def idle_limit_bytes(self) -> int:
        """What a model may take with nothing else running: whether it can be for this machine at all."""
        return replace(self, available_bytes=self.total_bytes).limit_bytes


def this_machine(cgroups: Path = _CGROUPS, proc: Path = Path("/proc")) -> Machine:
    """Memory as it is now."""
    memory, own = psutil.virtual_memory(), psutil.Process().memory_info()
    own_bytes = own.rss - getattr(own, "shared", 0)
    machine = Machine(memory.total, memory.available + own_bytes)
    for limit, used in _cgroup_levels(cgroups, proc):
        if limit < machine.total_bytes:
            machine = Machine(limit, machine.available_bytes, in_cgroup=True)
        available = min(machine.available_bytes, limit - used + own_bytes)
        machine = Machine(machine.total_bytes, available, machine.in_cgroup)
    return machine


def usual_threads() -> int:
    """Threads for kernels by default: one per core, or as many as may run here if those are fewer."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or cpus, cpus, cpu_quota() or cpus))


def cpu_quota(cgroups: Path = _CGROUPS, proc: Path = Path("/proc")) -> int | None:
    """How many whole processors' time this process's control groups leave it, at least 1; None for no limit.

    More threads than that would spend part of each period waiting, all of them at once.
    """
    quotas = []
    for is_version_2, folder in _groups("cpu", cgroups, proc):
        if is_version_2:
            limits = _read(folder / "cpu.max").split()
        else:
            limits = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(limits) == 2 and all(
            limit.isdecimal() and int(limit) for limit in limits
        ):  # not "max", not -1
            quotas.append(max(1, int(limits[0]) // int(limits[1])))
    return min(quotas, default=None)


def _cgroup_levels(cgroups: Path, proc: Path) -> list[tuple[int, int]]:
    """(limit, what is used and can't be dropped) of this process's group and each group around it."""
    version_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    version_2 = ("memory.max", "memory.current", "")
    groups = _groups("memory", cgroups, proc)
    levels = [_level(folder, *(version_2 if is_version_2 else version_1)) for is_version_2, folder in groups]
    return [level for level in levels if level]


def _groups(controller: str, cgroups: Path, proc: Path) -> list[tuple[bool, Path]]:
    """(whether it is of version 2, folder) of each of this process's groups that may limit `controller`."""
    groups = []
    for line in _read(proc / "self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        is_version_2 = number == "0" and not controllers
        if is_version_2:
            root = cgroups
        elif controller in controllers.split(","):
            root = cgroups / controller
            root = (
                root if root.exists() else cgroups / controllers
            )  # the short name is a link, not always there
        else:
            continue
        # In a container the path is the host's, and what is mounted is the group itself.
        folders = [root, *(root / part for part in _ancestors(path))]
        groups += [(is_version_2, folder) for folder in folders]
    return groups


def _ancestors(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)] if parts != [""] else []


def _level(folder: Path, limit_file: str, usage_file: str, prefix: str) -> tuple[int, int] | None:
    limit, usage = _read(folder / limit_file).strip(), _read(folder / usage_file).strip()
    if not limit.isdigit() or not usage.isdigit() or int(limit) >= _NO_LIMIT:
        return None
    stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines())
    files = sum(int(stat.get(f"{prefix}{name}", 0)) for name in ("active_file", "inactive_file"))
    return int(limit), max(0, int(usage) - files)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # no such group, or not Linux
        return ""
