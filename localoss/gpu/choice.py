"""Which GPU, and how many layers it takes."""

from dataclasses import replace

from localoss.errors import GpuError, UsageError
from localoss.gpu.adapters import Adapter, choose_adapter
from localoss.gpu.device import Device
from localoss.gpu.memory import memory_bytes
from localoss.plan.memory import Plan, gigabytes, gpu_layers, gpu_reserve_bytes
from quant.format.config import ModelConfig

Layers = int | str  # a number, "all" or "auto"


def layer_number(asked: Layers, config: ModelConfig) -> int:
    """How many layers that is, 0 for auto. Raises: UsageError for what is neither."""
    if asked == "all":
        return config.layers
    number = 0 if asked == "auto" else asked
    if not isinstance(number, int) or not 0 <= number <= config.layers:
        raise UsageError(f"gpu_layers is {asked}; use 0 to {config.layers}, all or auto")
    return number


def open_gpu() -> Device:
    """Open the GPU to run on. Raises: GpuError if there is none; UsageError if wgpu isn't installed."""
    return Device(choose_adapter())


def fit_gpu(plan: Plan, asked: Layers, gpu_memory: int | None, adapter: Adapter) -> Plan:
    """`plan`, whose context is chosen, with what `asked` means on `adapter`.

    gpu_memory: bytes that the layers may take, by default what is known to be free.
    Raises: UsageError if so many don't fit, or nobody knows how many do; GpuError if none fits.
    """
    if asked != "auto":
        if gpu_memory is not None and plan.gpu_bytes > gpu_memory - gpu_reserve_bytes(gpu_memory):
            raise UsageError(
                f"{plan.gpu_layers} layers take {gigabytes(plan.gpu_bytes)} on the GPU, too much for "
                f"{gigabytes(gpu_memory)} and a reserve; --gpu-layers {gpu_layers(plan, gpu_memory)} would do"
            )
        return plan
    room = memory_bytes(adapter) if gpu_memory is None else gpu_memory
    if room is None:
        raise UsageError(f"how much memory {adapter.name} has isn't known; give --gpu-memory SIZE, as 8GB")
    most = gpu_layers(plan, room)
    if not most:
        raise GpuError(f"{gigabytes(room)} of its memory hold no layer")
    return replace(plan, gpu_layers=most)
