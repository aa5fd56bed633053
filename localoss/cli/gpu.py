"""`localoss gpu`: which GPUs there are, and whether layers are faster there."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss.cli import options
from localoss.cli.terminal import echo
from localoss.errors import GpuError

if TYPE_CHECKING:
    from localoss.gpu.adapters import Adapter

_BINDING = "max-storage-buffer-binding-size"
_CONTEXT_TOKENS = 1_024  # of the conversation that is timed


def gpu(
    model: options.OptionalModelName = None,
    gpu_memory: options.GpuMemory = None,
    threads: options.Threads = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure how fast the GPU reads and multiplies each format.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """List the GPUs of this machine; with MODEL, time one of its layers on the GPU and on the CPU.

    It then says how many layers to run there: --gpu-layers of run, chat, serve and bench.
    """
    from localoss.gpu.adapters import all_adapters
    from localoss.gpu.memory import memory_bytes

    found = all_adapters()
    report: dict[str, Any] = {"adapters": [_described(a, memory_bytes(a)) for a in found]}
    if not as_json:
        _print_adapters(report["adapters"])
    if model:
        report["split"] = _measured(model, gpu_memory, threads)
        if not as_json:
            _print_split(report["split"])
    if measure:
        report["rates"] = _rates()
        if not as_json:
            _print_rates(report["rates"])
    if as_json:
        echo(json.dumps(report, indent=2))


def _rates() -> dict[str, Any]:
    """What `measure_rates` finds on the GPU that models would run on. Raises: GpuError without one."""
    from localoss.gpu.choice import open_gpu
    from localoss.hub.registry import known_models
    from localoss.measure.gpu_rates import measure_rates

    config = known_models()["gpt-oss-20b"].config
    assert config
    device = open_gpu()
    return {"adapter": device.adapter.name} | asdict(measure_rates(device, config))


def _print_rates(rates: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("weights", box=box.SIMPLE_HEAD)
    for column in ("one token, GB/s", "of reading", "8 tokens, G multiply-adds/s"):
        table.add_column(column, justify="right")
    for rate in rates["formats"]:
        name = rate["name"] if rate["is_used"] else f"({rate['name']}, not used)"
        share = rate["gb_per_s"] / rates["read_gb_per_s"]
        table.add_row(name, f"{rate['gb_per_s']:.1f}", f"{share:.0%}", f"{rate['many_gmacs']:.1f}")
    Console(highlight=False, soft_wrap=True).print(table, markup=False)
    echo(
        f"{rates['adapter']} reads {rates['read_gb_per_s']:.1f} GB/s of its memory; "
        f"what is copied to it comes at {rates['bus_gb_per_s']:.1f} GB/s."
    )


def _described(adapter: "Adapter", memory: int | None) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "kind": adapter.kind,
        "backend": adapter.backend,
        "driver": adapter.driver,
        "memory_bytes": memory,
        "limits": adapter.limits,
        "missing_limits": adapter.missing,
    }


def _measured(model: str, gpu_memory: int | None, threads: int | None) -> dict[str, Any]:
    """Both times of a layer, and the best split. Raises: GpuError without a GPU."""
    from localoss.cli.loading import load_model
    from localoss.gpu.layers import GpuLayers
    from localoss.gpu.memory import memory_bytes
    from localoss.measure.gpu_split import measure_split
    from localoss.options import LoadOptions
    from localoss.plan.memory import Plan, gpu_layers

    _, engine = load_model(model, LoadOptions(context_tokens=_CONTEXT_TOKENS, threads=threads, gpu_layers=1))
    gpu = engine.model.stacks[-1]
    if not isinstance(gpu, GpuLayers):
        raise GpuError("nothing to compare: see above")
    split = measure_split(engine)
    adapter = gpu.device.adapter
    room = memory_bytes(adapter) if gpu_memory is None else gpu_memory
    plan = Plan(engine.config, engine.dtypes, kv_dtype=engine.kv_dtype, threads=engine.threads)
    most = split.layers if room is None else gpu_layers(plan, room)
    return {
        **asdict(split),
        "adapter": adapter.name,
        "threads": engine.threads,
        "cpu_bytes_per_s": split.cpu_bytes_per_s,
        "gpu_bytes_per_s": split.gpu_bytes_per_s,
        "memory_bytes": room,
        "context_tokens": plan.context_tokens,
        "fitting_layers": most,
        "best_layers": split.best_layers(most),
        "seconds_by_layers": {str(n): split.token_s(n) for n in sorted({0, most})},
    }


def _print_adapters(adapters: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if not adapters:
        echo("No GPU was found: everything runs on the CPU.")
        return
    table = Table("GPU", "kind", "driver", "memory", "largest binding", box=box.SIMPLE_HEAD)
    for adapter in adapters:
        memory, binding = adapter["memory_bytes"], adapter["limits"][_BINDING]
        size = f"{memory / 1e9:.1f} GB" if memory else "unknown"
        kind = "software, not used" if adapter["kind"] == "software" else adapter["kind"]
        if adapter["missing_limits"]:
            kind += ", too little"
        driver = f"{adapter['backend']} {adapter['driver']}".strip()
        table.add_row(adapter["name"], kind, driver, size, f"{binding / 1e9:.2f} GB")
    Console(highlight=False, soft_wrap=True).print(table, markup=False)


def _print_split(split: dict[str, Any]) -> None:
    for where, what in (("cpu", f"CPU, {split['threads']} threads"), ("gpu", split["adapter"])):
        time_ms, speed = 1000 * split[f"{where}_layer_s"], split[f"{where}_bytes_per_s"] / 1e9
        echo(f"{what}: {time_ms:.2f} ms a layer and token, {speed:.1f} GB/s of weights")
    echo(f"Handing a token to the GPU and back takes {1000 * split['gpu_call_s']:.2f} ms.")
    most, best = split["fitting_layers"], split["best_layers"]
    if split["memory_bytes"] is None:
        echo("How much memory it has isn't known: --gpu-memory SIZE says how many layers fit.")
    else:
        context = split["context_tokens"]
        echo(f"{most} of {split['layers']} layers fit, with a context of {context:,} tokens.")
    if not best:
        echo("Best: --gpu-layers 0, all on the CPU.")
        return
    gain = split["seconds_by_layers"]["0"] / split["seconds_by_layers"][str(best)]
    echo(f"Best: --gpu-layers {best}, where the layers of a token are {gain:.1f} times as fast.")
