"""`localoss plan` with a GPU: what it holds by whole layers and with experts apart, or as it is asked for."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from localoss.errors import GpuError
from localoss.options import LoadOptions
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


@dataclass(frozen=True)
class Ways:
    """What of a model a GPU may hold, and how large it is: None where only the layers are told.

    reason: why there is no way at all.
    """

    room_bytes: int | None
    plans: list[Plan]
    reason: str = ""


def ways(plan: Plan, options: LoadOptions, sized: Callable[[Plan], Plan]) -> Ways | None:
    """`plan` with the layers and experts on a GPU that `options` ask for; where only its memory is told, with
    whole layers, and with experts apart where that is another plan. None if nobody asks for a GPU.

    sized: gives a plan the context that it is to have. Raises: UsageError for what doesn't fit.
    """
    if options.uses_a_device:
        return _asked(plan, options, sized)
    room = options.gpu_memory
    if room is None:
        return None
    whole = replace(plan, gpu_layers=gpu_layers(plan, room))
    apart = with_experts_apart(plan, room)
    found = [whole, apart] if apart.gpu_layers and apart.on_gpu != whole.on_gpu else [whole]
    if not any(way.gpu_layers for way in found):
        return Ways(room, found, f"A GPU of {gigabytes(room)} holds no layer of it.")
    return Ways(room, found)


def _asked(plan: Plan, options: LoadOptions, sized: Callable[[Plan], Plan]) -> Ways:
    """What `options` ask for; what is auto fills the memory that they name, or this machine's GPU has."""
    from localoss.gpu.adapters import choose_adapter
    from localoss.gpu.choice import asked_for, fit, room_on

    asked, room = asked_for(plan, options), None
    try:
        room = room_on(options, choose_adapter)
        # Fitted twice, as by the loader: what the GPU holds leaves memory for context; it has its cache, too.
        context = sized(fit(asked, options, room, "the GPU")).context_tokens
        return Ways(room, [fit(replace(asked, context_tokens=context), options, room, "the GPU")])
    except GpuError as error:
        return Ways(room, [plan], f"No layers on a GPU: {error}.")


def report(found: Ways, limit_bytes: int) -> dict[str, Any]:
    """For --json: the asked or the whole layers' figures, and under experts_apart those of the other way."""
    first, *others = (_figures(way, limit_bytes) for way in found.plans)
    other = {"experts_apart": others[0]} if others else {}
    return {"bytes": found.room_bytes, **first, **({"reason": found.reason} if found.reason else {}), **other}


def _figures(plan: Plan, limit_bytes: int) -> dict[str, Any]:
    figures = {
        "context_tokens": plan.context_tokens,
        "layers": plan.gpu_layers,
        "layers_with_experts": plan.gpu_expert_layers,
        "on_gpu_bytes": plan.on_gpu,
        "left_in_memory_bytes": plan.total_bytes,
    }
    if plan.gpu_layers and plan.verdict(limit_bytes) == FITS:
        card = {"is_estimate": True, "card_bytes_per_s": CARD_BYTES_PER_S}
        figures["speed"] = asdict(gpu_estimate(plan)) | card
    return figures


def show(console: "Console", found: Ways, context_tokens: int, limit_bytes: int) -> None:
    """Print what the GPU holds, how fast that would be, and the context if it isn't that of the CPU alone."""
    if found.reason:
        console.print(found.reason, markup=False)
        return
    for way in found.plans:
        if way.gpu_layers:
            _show_way(console, way, found.room_bytes, limit_bytes)
            if way.context_tokens != context_tokens:
                console.print(f"It leaves room for a context of {way.context_tokens:,} tokens.")


def _show_way(console: "Console", plan: Plan, room_bytes: int | None, limit_bytes: int) -> None:
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
    size = "" if room_bytes is None else f" of {gigabytes(room_bytes)}"
    console.print(
        f"A GPU{size} holds {held} ({option}): {gigabytes(plan.gpu_bytes)}, of it {parts}.\n"
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
