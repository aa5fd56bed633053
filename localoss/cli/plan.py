"""`localoss plan`: what a model takes of memory, and whether this machine has it."""

import json
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss.cli import options
from localoss.cli.terminal import echo, printable
from localoss.errors import ModelError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from localoss.cli.plan_gpu import Ways
    from localoss.plan.experts import Streaming
    from localoss.plan.machine import Machine
    from localoss.plan.memory import Plan

_BAR_COLUMNS = 64
_USED_BYTES = 4_000_000_000  # of a laptop's memory that isn't free: the system, a browser, what else is open
_LETTERS = {"experts": "█", "attention": "▓", "embedding": "▒", "unembedding": "▒", "routers and norms": "▒"}
_OWN_LETTER, _FREE_LETTER = "#", "·"
_SPEED = (
    "Estimate: {speed.tokens_per_s:.3g} tokens/s at the beginning, {speed.full_tokens_per_s:.3g} with a full "
    "context{source}."
)
_SOURCES = {
    "bench of this model": ", from its bench on this machine",
    "bench": ", from another model's bench on this machine",
    "typical laptop": ", as on a typical laptop: `localoss bench` measures this one",
}
_WHEN_USED = {
    "fits": "it fits still",
    "from disk": "a part of the weights comes from the disk, slowly",
    "too large": "it does not run",
}
_VERDICTS = {
    "fits": "It fits, with {left} to spare.",
    "from disk": "It runs, but {missing} of the weights don't stay in memory: slowly, from the disk.",
    "too large": "It doesn't run: even reading weights from the disk all the time it needs {least}.",
}


def plan(
    model: options.ModelName,
    context: options.Context = None,
    kv_dtype: options.KVDtypeOption = options.KVDtype.f16,
    conversations: Annotated[
        int,
        typer.Option("--conversations", "--parallel", min=1, help="Conversations at a time, as for serve."),
    ] = 1,
    memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=options.size_bytes, help="Plan for a machine with this much, such as 16GB."
        ),
    ] = None,
    gpu_memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=options.size_bytes,
            help="Say what a GPU of this size holds, and how fast it is then.",
        ),
    ] = None,
    gpu_layers: options.GpuLayers = 0,
    gpu_experts: options.GpuExperts = None,
    machines: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            help="Say what several machines do, as 4x16GB,25GB/s,1Gb/s: memory, its speed, the network's.",
        ),
    ] = None,
    expert_memory: options.ExpertMemory = None,
    adapter: options.AdapterNames = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure how fast this disk brings experts, and keep it."),
    ] = False,
    threads: options.Threads = None,
    interactive: Annotated[
        bool, typer.Option("-i", "--interactive", help="Change the plan with the arrow keys.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Say what a model takes of memory, and whether it fits; nothing is loaded or downloaded.

    MODEL may be one that `localoss pull` knows, an installed one, or a folder. --memory takes the machine to
    be empty; without it, what other programs use is left to them. --machines tells what the forms of
    --ray would do: batches and serving with whole models, or one model spread over all.
    """
    import psutil

    from localoss.cli import plan_gpu
    from localoss.options import LoadOptions
    from localoss.plan.machine import Machine, this_machine, usual_threads
    from localoss.plan.memory import Plan, choose_context

    label, config, dtypes = _what(model)
    if context is not None and context > config.context:
        raise UsageError(f"--context is {context:,}; this model takes 1 to {config.context:,}")
    if machines is not None:
        from localoss.cli.plan_machines import tell_of

        made = Plan(config, dtypes, kv_dtype=kv_dtype.value, slots=conversations)
        tell_of(machines, label, replace(made, context_tokens=context or made.context_tokens), as_json)
        return
    machine = this_machine() if memory is None else Machine(memory, memory)
    cores = usual_threads() if memory is None else psutil.cpu_count(logical=False) or 1
    made = Plan(config, dtypes, kv_dtype=kv_dtype.value, slots=conversations, threads=threads or cores)
    if adapter:
        from localoss.model.adapters import bytes_of

        made = replace(made, adapter_bytes=bytes_of(adapter, config, made.chunk_tokens))

    def sized(plan: Plan) -> Plan:
        return (
            choose_context(plan, machine.limit_bytes)
            if context is None
            else replace(plan, context_tokens=context)
        )

    made = sized(made)
    if interactive:
        _change(label, made, machine)
        return
    streaming = _streaming(model, made, machine, expert_memory, measure)
    split = LoadOptions(gpu_layers=gpu_layers, gpu_experts=gpu_experts, gpu_memory=gpu_memory)
    on_gpu = plan_gpu.ways(made, split, sized)
    if as_json:
        report = _report(label, made, machine, memory is None, on_gpu)
        echo(json.dumps(report | ({"experts": streaming.report()} if streaming else {}), indent=2))
    else:
        _print(label, made, machine, memory is None, on_gpu, streaming)


def _what(model: str) -> tuple[str, Any, Any]:
    """Name, architecture and number formats of `model`, installed or not."""
    from localoss.hub import registry
    from quant.format.config import read_config
    from quant.format.layout import MANIFEST
    from quant.format.manifest import Dtypes, read_manifest

    known = registry.known_models().get(registry.canonical_name(model))
    try:
        folder = registry.find_model(model)
    except ModelError:
        if known is None or known.config is None:
            raise
        return f"{known.name} (not installed)", known.config, Dtypes()
    if not (folder / MANIFEST).exists() and (folder / "config.json").exists():
        label = f"{folder.name} (as `localoss quantize` would make it)"
        return label, read_config(folder / "config.json"), Dtypes()
    return model, read_config(folder / "config.json"), read_manifest(folder).dtypes


def _streaming(
    model: str, plan: "Plan", machine: "Machine", asked: int | None, measures: bool
) -> "Streaming | None":
    """`plan` with a cache of experts, if it would get one. measures: read the disk's speed first."""
    from localoss import settings
    from localoss.hub.registry import find_model
    from localoss.plan import disk
    from localoss.plan.experts import Streaming, with_cache
    from localoss.plan.memory import FITS

    try:
        folder = find_model(model)
    except ModelError:
        folder = settings.home()
    speed = disk.measure(folder) if measures else disk.known(folder)
    fits = plan.verdict(machine.limit_bytes) == FITS
    if asked == 0 or (fits and not asked):
        return None
    cached = with_cache(plan, machine.limit_bytes if asked else machine.cache_limit_bytes, asked)
    return Streaming(cached, speed) if cached else None


def _change(label: str, plan: "Plan", machine: "Machine") -> None:
    """Let the user change `plan`, and print what was taken. Raises: UsageError without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("-i needs a terminal; leave it out, or give --json")
    from localoss.cli.plan_live import LivePlan, show

    limit = machine.limit_bytes
    live = LivePlan(plan, limit, lambda p, columns: _bar(p, limit, min(_BAR_COLUMNS, columns)))
    echo(f"{label}\n")
    if show(live):
        echo(live.options)


def _report(
    label: str, plan: "Plan", machine: "Machine", is_this_machine: bool, on_gpu: "Ways | None"
) -> dict[str, Any]:
    from localoss.cli import plan_gpu
    from localoss.plan.speed import estimate

    limit = machine.limit_bytes
    report = {
        "model": label,
        "context_tokens": plan.context_tokens,
        "kv_dtype": plan.kv_dtype,
        "conversations": plan.slots,
        "dtypes": asdict(plan.dtypes),
        "weights_bytes": plan.weights,
        "own_bytes": plan.own,
        "total_bytes": plan.total_bytes,
        "machine": {
            "is_this_machine": is_this_machine,
            "in_cgroup": machine.in_cgroup,
            "total_bytes": machine.total_bytes,
            "available_bytes": machine.available_bytes,
        },
        "limit_bytes": limit,
        "verdict": plan.verdict(limit),
        "longest_context_tokens": plan.longest_context(limit),
        "changes": plan.changes(limit, machine.idle_limit_bytes),
    }
    if speed := estimate(plan, limit):
        report["speed"] = asdict(speed) | {"is_estimate": True}
    if on_gpu:
        report["gpu"] = plan_gpu.report(on_gpu, limit)
    return report


def _print(
    label: str,
    plan: "Plan",
    machine: "Machine",
    is_this_machine: bool,
    on_gpu: "Ways | None",
    streaming: "Streaming | None",
) -> None:
    from rich.console import Console

    from localoss.cli import plan_gpu
    from localoss.plan.experts import with_cache
    from localoss.plan.memory import gigabytes
    from localoss.plan.speed import estimate

    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal  # a pipe gets a sentence in one line
    several = f", {plan.slots} conversations" if plan.slots > 1 else ""
    head = f"{label} · context {plan.context_tokens:,} tokens{several} · KV cache {plan.kv_dtype}"
    console.print(f"{printable(head)}\n", markup=False)
    limit = machine.limit_bytes
    shown = streaming.plan if streaming else plan
    console.print(_coloured(_bar(shown, limit, min(_BAR_COLUMNS, console.width - 1))), end="\n\n")
    _print_parts(console, shown)
    where = "This machine" if is_this_machine else "Such a machine"
    where = "This control group" if machine.in_cgroup else where
    free = f", {gigabytes(machine.available_bytes)} free" if is_this_machine else ""
    console.print(f"{where} has {gigabytes(machine.total_bytes)}{free}; a model may take {gigabytes(limit)}.")
    verdict = plan.verdict(limit)
    if streaming:
        console.print("\n".join(streaming.lines()), markup=False)
    else:
        console.print(
            _VERDICTS[verdict].format(
                left=gigabytes(limit - plan.total_bytes),
                missing=gigabytes(min(plan.total_bytes - limit, plan.weights_bytes)),
                least=gigabytes(plan.least_bytes),
            )
        )
    if speed := estimate(plan, limit):
        console.print(_SPEED.format(speed=speed, source=_SOURCES[speed.source]))
    if not is_this_machine:
        used = replace(machine, available_bytes=max(machine.total_bytes - _USED_BYTES, 0))
        left, then = used.limit_bytes, _WHEN_USED[plan.verdict(used.limit_bytes)]
        if streaming and (cached := with_cache(plan, used.cache_limit_bytes)):
            rate = replace(streaming, plan=cached).tokens_per_s
            then = f"{cached.expert_slots:,} experts stay in memory: {rate:.2g} tokens/s"
        console.print(
            f"That is an empty machine. A system with a browser holds some {gigabytes(_USED_BYTES)}; "
            f"a model may take {gigabytes(left)} then, and {then}."
        )
    longest = plan.longest_context(limit)
    if longest:
        console.print(f"The longest context that fits: {longest:,} tokens.")
    for change in plan.changes(limit, machine.idle_limit_bytes):
        console.print(f"To make it fit: {change}", markup=False)
    if on_gpu:
        plan_gpu.show(console, on_gpu, plan.context_tokens, limit)


def _coloured(bar: str) -> "Text":
    """The bar with a colour for each kind of part; what is free and the scale stay as they are."""
    from rich.text import Text

    text = Text(bar, overflow="fold")
    for letters, style in ((r"█+", "cyan"), (r"▓+", "blue"), (r"▒+", "magenta"), (r"#+", "yellow")):
        text.highlight_regex(letters, style)
    return text


def _bar(plan: "Plan", limit_bytes: int, columns: int = _BAR_COLUMNS) -> str:
    """The parts side by side, weights before what is the process's own, and where the limit is."""
    scale = columns / max(plan.total_bytes, limit_bytes, 1)
    bar, end = "", 0
    parts = [(_LETTERS[name], size) for name, size in plan.weights.items()]
    for letter, size in [*parts, (_OWN_LETTER, plan.own_bytes), (_FREE_LETTER, limit_bytes)]:
        end = max(end, limit_bytes) if letter == _FREE_LETTER else end + size
        bar += letter * (round(end * scale) - len(bar))
    mark = min(round(limit_bytes * scale), columns)
    label = f"^ {limit_bytes / 1e9:.1f} GB"
    at = max(mark - 1, 0)
    if at + len(label) > columns:  # to the left of its mark where it would wrap
        label = f"{limit_bytes / 1e9:.1f} GB ^"
        at = max(mark - len(label), 0)
    return f"{bar}\n{' ' * at}{label}"


def _print_parts(console: "Console", plan: "Plan") -> None:
    from rich import box
    from rich.table import Table

    dtypes, config = asdict(plan.dtypes), plan.config
    notes = {
        **dtypes,
        "KV cache, full layers": f"{config.layers - sum(config.is_sliding)} layers",
        "KV cache, sliding layers": f"{sum(config.is_sliding)} layers",
        "snapshots": "of sliding layers, to go back to",
        "program": "Python, compiled code",
    }
    if plan.expert_slots:
        notes["experts"] += f", {plan.expert_slots:,} of {config.layers * config.experts:,}"
        notes["embedding"] += ", its scales"
    table = Table("", "part", "", box=box.SIMPLE_HEAD)
    table.add_column("MB", justify="right")
    for name, size in {**plan.weights, **plan.own}.items():
        letter = _LETTERS.get(name, _OWN_LETTER)
        table.add_row(letter, name, notes.get(name, ""), f"{size / 1e6:,.1f}")
    table.add_section()
    table.add_row("", "in all", "", f"{plan.total_bytes / 1e6:,.1f}")
    console.print(table)
