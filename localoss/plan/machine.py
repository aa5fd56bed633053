"""What this machine, or the control group that this process is held in, has of memory."""

from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from localoss.plan.memory import reserve_bytes

_CGROUPS = Path("/sys/fs/cgroup")
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


def _cgroup_levels(cgroups: Path, proc: Path) -> list[tuple[int, int]]:
    """(limit, what is used and can't be dropped) of this process's group and each group around it."""
    levels = []
    for line in _read(proc / "self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        elif number == "0" and not controllers:
            root, names = cgroups, ("memory.max", "memory.current", "")
        else:
            continue
        # In a container the path is the host's, and what is mounted is the group itself.
        folders = [root, *(root / part for part in _ancestors(path))]
        levels += [level for folder in folders if (level := _level(folder, *names))]
    return levels


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
