"""Which GPU, how many layers it takes, and of how many the experts, too."""

from collections.abc import Callable
from dataclasses import replace

from localoss.errors import GpuError, UsageError
from localoss.gpu.adapters import Adapter, choose_adapter
from localoss.gpu.device import Device
from localoss.gpu.memory import memory_bytes
from localoss.options import LoadOptions
from localoss.plan.memory import (
    Plan,
    gigabytes,
    gpu_layers,
    gpu_reserve_bytes,
    most_that_fit,
    with_experts_apart,
)
from quant.format.config import ModelConfig

Layers = int | str | None  # a number, "all", "none" or "auto"


def layer_number(asked: Layers, config: ModelConfig) -> int:
    """How many layers that is, 0 for auto. Raises: UsageError for what is neither."""
    if asked == "all":
        return config.layers
    return _number("gpu_layers", asked, config, "all or auto")


def asked_for(plan: Plan, options: LoadOptions) -> Plan:
    """`plan` with the layers and experts on a GPU that `options` name, none of what is auto.

    Raises: UsageError for numbers that the model hasn't.
    """
    layers = layer_number(options.gpu_layers, plan.config)
    if options.gpu_experts is None:
        return replace(plan, gpu_layers=layers)
    if options.gpu_layers == 0:
        layers = plan.config.layers
    experts = 0
    if options.gpu_experts != "none":
        experts = _number("gpu_experts", options.gpu_experts, plan.config, "none or auto")
    if options.gpu_layers != "auto" and experts > layers:
        raise UsageError(f"gpu_experts is {experts}, and {layers} layers are on the GPU; use 0 to {layers}")
    return replace(plan, gpu_layers=layers, gpu_experts=experts)


def _number(name: str, asked: Layers, config: ModelConfig, words: str) -> int:
    number = 0 if asked == "auto" else asked
    if not isinstance(number, int) or not 0 <= number <= config.layers:
        raise UsageError(f"{name} is {asked}; use 0 to {config.layers}, {words}")
    return number


def open_gpu() -> Device:
    """Open the GPU to run on. Raises: GpuError if there is none; UsageError if wgpu isn't installed."""
    return Device(choose_adapter())


def fit_gpu(plan: Plan, options: LoadOptions, adapter: Adapter) -> Plan:
    """`plan`, whose context is chosen, with what `options` mean by auto on `adapter`: see `fit`."""
    return fit(plan, options, room_on(options, lambda: adapter), adapter.name)


def room_on(options: LoadOptions, adapter: Callable[[], Adapter]) -> int | None:
    """Bytes of a GPU's memory that may be taken; None where nobody knows, or nobody need. It isn't looked for
    where the options say so much that it need not.
    """
    if options.gpu_memory is not None or not _has_auto(options):
        return options.gpu_memory
    return memory_bytes(adapter())


def fit(plan: Plan, options: LoadOptions, room: int | None, name: str) -> Plan:
    """`plan` with what `options` mean by auto in `room` bytes of the memory of a GPU called `name`.

    Raises: UsageError if so many layers don't fit, or nobody knows how many do; GpuError if none fits.
    """
    if not _has_auto(options):
        if room is not None and plan.gpu_bytes > room - gpu_reserve_bytes(room):
            raise UsageError(_too_much(plan, room))
        return plan
    if room is None:
        raise UsageError(f"how much memory {name} has isn't known; give --gpu-memory SIZE, as 8GB")
    fitted = filled(plan, options, room)
    if not fitted.gpu_layers:
        raise GpuError(f"{gigabytes(room)} of its memory hold no layer")
    return fitted


def _has_auto(options: LoadOptions) -> bool:
    return "auto" in (options.gpu_layers, options.gpu_experts)


def filled(plan: Plan, options: LoadOptions, room: int) -> Plan:
    """`plan` with as many layers in `room` bytes, and then experts, as `options` leave open."""
    apart = options.gpu_experts is not None
    if options.gpu_experts == "auto" and options.gpu_layers in (0, "auto"):
        return with_experts_apart(plan, room)
    if options.gpu_experts == "auto":
        return replace(plan, gpu_experts=most_that_fit(plan, room, "gpu_experts", plan.gpu_layers))
    most = most_that_fit(plan, room, "gpu_layers", plan.config.layers)
    return replace(plan, gpu_layers=most, gpu_experts=min(plan.gpu_expert_layers, most) if apart else None)


def _too_much(plan: Plan, room: int) -> str:
    """What is wrong, and what would do."""
    what = f"{plan.gpu_layers} layers take {gigabytes(plan.gpu_bytes)} on the GPU"
    least = f"--gpu-layers {gpu_layers(replace(plan, gpu_experts=None), room)} would do"
    if plan.gpu_experts is not None:
        size = gigabytes(plan.gpu_bytes)
        what = f"{plan.gpu_layers} layers take {size} on the GPU with experts of {plan.gpu_experts}"
        least = "--gpu-experts auto takes what fits"
    return f"{what}, too much for {gigabytes(room)} and a reserve; {least}"
