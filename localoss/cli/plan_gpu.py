"""`localoss plan --gpu-memory`: what a GPU of some size holds, by whole layers and with experts apart."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from localoss.plan.gpu_speed import CARD_BYTES_PER_S, gpu_estimate
from localoss.plan.memory import FITS, Plan, gigabytes, gpu_layers, with_experts_apart
from localoss.plan.speed import TYPICAL_BYTES_PER_S

if TYPE_CHECKING:
    from rich.console import Console

_SOURCES = {
    "bench of this model": ", memory as its bench here measured it",
    "bench": ", memory as a bench here measured it",
    "typical laptop": f", memory of {TYPICAL_BYTES_PER_S / 1e9:.0f} GB/s",
}


def ways(plan: Plan, gpu_bytes: int) -> list[Plan]:
    """`plan` with whole layers on such a GPU, and with experts apart, where that is another plan."""
    whole = replace(plan, gpu_layers=gpu_layers(plan, gpu_bytes))
    apart = with_experts_apart(plan, gpu_bytes)
    is_other = apart.gpu_layers and apart.on_gpu != whole.on_gpu
    return [whole, apart] if is_other else [whole]


def report(plan: Plan, gpu_bytes: int, limit_bytes: int) -> dict[str, Any]:
    """For --json: the whole layers' figures, and under experts_apart those of the other way."""
    whole, *apart = (_figures(way, limit_bytes) for way in ways(plan, gpu_bytes))
    return {"bytes": gpu_bytes, **whole, **({"experts_apart": apart[0]} if apart else {})}


def _figures(plan: Plan, limit_bytes: int) -> dict[str, Any]:
    figures = {
        "layers": plan.gpu_layers,
        "layers_with_experts": plan.gpu_expert_layers,
        "on_gpu_bytes": plan.on_gpu,
        "left_in_memory_bytes": plan.total_bytes,
    }
    if plan.gpu_layers and plan.verdict(limit_bytes) == FITS:
        card = {"is_estimate": True, "card_bytes_per_s": CARD_BYTES_PER_S}
        figures["speed"] = asdict(gpu_estimate(plan)) | card
    return figures


def show(console: "Console", plan: Plan, gpu_bytes: int, limit_bytes: int) -> None:
    """Print what such a GPU holds of `plan`, and how fast that would be."""
    found = ways(plan, gpu_bytes)
    if not any(way.gpu_layers for way in found):
        console.print(f"A GPU of {gigabytes(gpu_bytes)} holds no layer of it.")
        return
    for way in found:
        if way.gpu_layers:
            _show_way(console, way, gpu_bytes, limit_bytes)


def _show_way(console: "Console", plan: Plan, gpu_bytes: int, limit_bytes: int) -> None:
    every = ", the unembedding too" if plan.unembeds_on_gpu else ""
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in plan.on_gpu.items() if size)
    held, option = (
        f"{plan.gpu_layers} of {plan.config.layers} layers{every}",
        f"--gpu-layers {plan.gpu_layers}",
    )
    if plan.gpu_experts is not None:
        held += f", with the experts of {plan.gpu_experts}, the others' in RAM"
        option = f"--gpu-experts {plan.gpu_experts}"
        if not plan.unembeds_on_gpu:
            option = f"--gpu-layers {plan.gpu_layers} {option}"
    console.print(
        f"A GPU of {gigabytes(gpu_bytes)} holds {held} ({option}): "
        f"{gigabytes(plan.gpu_bytes)}, of it {parts}.\n"
        f"The machine's memory takes {gigabytes(plan.total_bytes)} then{_speed(plan, limit_bytes)}."
    )


def _speed(plan: Plan, limit_bytes: int) -> str:
    """The estimate, or that there isn't room for the rest."""
    if plan.verdict(limit_bytes) != FITS:
        return ", more than there is: experts would come from the disk"
    speed, card = gpu_estimate(plan), CARD_BYTES_PER_S / 1e9
    return (
        f"; bandwidths give {speed.tokens_per_s:.3g} tokens/s, {speed.full_tokens_per_s:.3g} with a full "
        f"context (a card of {card:.0f} GB/s{_SOURCES[speed.source]})"
    )
