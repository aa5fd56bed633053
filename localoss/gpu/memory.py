"""How much memory a GPU has. WebGPU tells no program; the system does for some."""

import subprocess
from pathlib import Path

import psutil

from localoss.gpu.adapters import Adapter

_DEVICES = Path("/sys/class/drm")
_TELLING_S = 5.0
_SHARE = 0.6  # of the machine's memory, that Apple and other integrated GPUs may have of it


def memory_bytes(adapter: Adapter, devices: Path = _DEVICES) -> int | None:
    """Bytes that are free on `adapter`, or its share of the machine's memory; None if nothing tells."""
    if adapter.kind == "integrated":
        return int(_SHARE * psutil.virtual_memory().total)
    if "nvidia" in adapter.name.lower():
        return _free_of_nvidia(adapter.name)
    return _free_of_amd(devices) if adapter.kind == "discrete" else None


def _free_of_nvidia(name: str) -> int | None:
    """What NVIDIA's own tool tells; with several alike, of the one that has least."""
    command = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(
            command, capture_output=True, text=True, timeout=_TELLING_S, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    free = [line.rpartition(",") for line in lines]
    sizes = [int(size) << 20 for its, _, size in free if its.strip() == name and size.strip().isdigit()]
    return min(sizes, default=None)


def _free_of_amd(devices: Path) -> int | None:
    """What the amdgpu driver tells; of several, of the one that has most: it is the fast one."""
    free = []
    for total in devices.glob("card*/device/mem_info_vram_total"):
        try:
            used = int(total.with_name("mem_info_vram_used").read_text())
            free.append(int(total.read_text()) - used)
        except (OSError, ValueError):
            continue
    return max(free, default=None)
