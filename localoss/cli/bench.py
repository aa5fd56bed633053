"""`localoss bench`: how fast a model runs on this machine."""

import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localoss.cli import options
from localoss.cli.loading import load_model
from localoss.cli.terminal import echo, say
from localoss.errors import UsageError
from localoss.options import LoadOptions

if TYPE_CHECKING:
    from rich.console import Console

    from localoss.measure.bench import Benchmark
    from localoss.measure.parallel import SideBySide

_PROFILED_TOKENS = 32
_MOST_PARALLEL = 64
_WIDE = 70  # columns that the whole table takes, about
_SHORT_CONTEXT = 2048  # tokens: up to there the KV cache hardly slows decoding down


@options.takes_load_options
def bench(
    model: options.ModelName,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    gen_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 64,
    depth: Annotated[int, typer.Option(min=0, help="Tokens of context before the prompt.")] = 0,
    repetitions: Annotated[int, typer.Option(min=1, help="How often; speeds are means.")] = 1,
    context: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Context to take memory for; default: what is used.")
    ] = None,
    depths: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Draw the speed after as many tokens of context each."),
    ] = None,
    parallel: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Decode as many sequences side by side, beside one alone."),
    ] = None,
    routes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the experts that the router chose to FILE, as CSV."),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time goes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
    *,
    loading: LoadOptions,
) -> None:
    """Measure prefill and decode speed, beside the bandwidth at which this machine reads the weights.

    In the table, pp512 is a prompt of 512 tokens and tg64 the generation of 64, both after as many tokens of
    context as stand behind the @.
    """
    import time

    from localoss.hub.registry import find_model
    from quant.format.config import read_config

    places, counts = _numbers(depths, "--depths"), _numbers(parallel, "--parallel")
    if counts and not 1 <= counts[0] <= counts[-1] <= _MOST_PARALLEL:
        raise UsageError(f"--parallel takes numbers from 1 to {_MOST_PARALLEL}")
    needed = max([depth, *places]) + prompt_tokens + gen_tokens + 1
    most = read_config(find_model(model, say) / "config.json").context
    if needed > most:
        raise UsageError(f"{needed:,} tokens in all; the model's context is {most:,}: ask for fewer")
    start = time.perf_counter()
    loading = replace(loading, context_tokens=max(needed, context or 0), slots=max([1, *counts]))
    folder, engine = load_model(model, loading)
    load_s = time.perf_counter() - start

    from localoss.measure import profile as profiling
    from localoss.measure.bench import run_benchmark
    from localoss.measure.parallel import run_side_by_side
    from localoss.measure.routes import logged_routes
    from localoss.plan.speed import Measured, keep

    with logged_routes(engine, routes):
        result = run_benchmark(engine, load_s, prompt_tokens, gen_tokens, depth, repetitions)
    if result.gpu is None and result.experts is None and depth + prompt_tokens <= _SHORT_CONTEXT:
        seconds = 1 / result.decode_tokens_per_s
        keep(Measured(result.decode_bytes_per_token, seconds, result.read_bandwidth_bytes_per_s))
    curve = [run_benchmark(engine, load_s, prompt_tokens, gen_tokens, at, repetitions) for at in places]
    together = run_side_by_side(engine, counts, prompt_tokens, gen_tokens, repetitions) if counts else []
    decode, prefill, calling_s = {}, {}, 0.0
    if profile:
        decode = profiling.profile_decode(engine, min(gen_tokens, _PROFILED_TOKENS), depth + prompt_tokens)
        prefill = profiling.profile_prefill(engine, prompt_tokens, depth)
        calling_s = profiling.calling_s(engine)
    if as_json:
        report = {"model": str(folder), **asdict(result)}
        if curve:
            report["depths"] = [asdict(one) for one in curve]
        if together:
            report["parallel"] = [asdict(one) for one in together]
        if profile:
            report |= {"decode_profile_s": decode, "prefill_profile_s": prefill, "calling_s": calling_s}
        echo(json.dumps(report, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    _print_speeds(console, folder.name, result)
    if curve:
        console.print(_curve(curve, console.width))
    if together:
        _print_together(console, together)
    if profile:
        _print_profile(console, f"A token after {depth + prompt_tokens:,}, kernel by kernel", decode)
        console.print(f"Calling kernels that have nothing to do takes {1000 * calling_s:.2f} ms a token.\n")
        _print_profile(console, f"A prompt of {prompt_tokens:,} after {depth:,}", prefill)


def _numbers(text: str | None, option: str) -> list[int]:
    """The numbers in `option`, sorted. Raises: UsageError."""
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if text is not None and (not words or not all(word.isascii() and word.isdigit() for word in words)):
        example = "of tokens, as 0,1024,4096" if option == "--depths" else "of sequences, as 1,2,4,8"
        raise UsageError(f"{option} is {text!r}; give numbers {example}")
    return sorted({int(word) for word in words})


def _curve(results: "list[Benchmark]", columns: int) -> str:
    """A bar for each depth, as long as decoding after so many tokens is fast."""
    most = max(one.decode_tokens_per_s for one in results)
    room = max(min(columns, 80) - 32, 8)
    lines = ["depth    prefill     decode tokens/s"]
    for one in results:
        bar = "█" * max(round(room * one.decode_tokens_per_s / most), 1)
        lines.append(
            f"{one.depth:>6,}  {one.prefill_tokens_per_s:>8.1f}  {one.decode_tokens_per_s:>9.2f}  {bar}"
        )
    return "\n".join(lines) + "\n"


def _print_together(console: "Console", results: "list[SideBySide]") -> None:
    """A row for each number of sequences."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.MARKDOWN)
    for name in ("sequences", "tokens/s in all", "over one", "each", "step p50", "p95", "p99 ms"):
        table.add_column(name, justify="right", overflow="fold")  # a number that is cut says nothing
    for one in results:
        steps = [f"{1000 * seconds:.1f}" for seconds in one.step_s]
        each = f"{one.tokens_per_s / one.sequences:.2f}"
        table.add_row(str(one.sequences), f"{one.tokens_per_s:.2f}", f"{one.speedup:.2f} ×", each, *steps)
    console.print(table)


def _print_speeds(console: "Console", model: str, result: "Benchmark") -> None:
    """A table as llama-bench has it, and what bounds the speeds."""
    from rich import box
    from rich.table import Table

    machine = [model, f"{result.weights_bytes / 1e9:.2f} GB", str(result.threads), result.simd]
    names = ["model", "size", "threads", "simd"]
    if console.width < _WIDE:  # what each row would say again stands once above
        console.print(" · ".join(f"{name} {value}" for name, value in zip(names, machine, strict=True)))
        names = machine = []
    table = Table(*names, "test", box=box.MARKDOWN)
    table.add_column("tokens/s", justify="right")
    for name, tokens, depth, speeds in [
        ("pp", result.prompt_tokens, result.depth, result.prefill_runs_tokens_per_s),
        ("tg", result.gen_tokens, result.depth + result.prompt_tokens, result.decode_runs_tokens_per_s),
    ]:
        spread = f" ± {statistics.stdev(speeds):.2f}" if len(speeds) > 1 else ""
        test = f"{name}{tokens} @ {depth}" if depth else f"{name}{tokens}"
        table.add_row(*machine, test, f"{statistics.mean(speeds):.2f}{spread}")
    console.print(table)
    read_gb, bandwidth_gb = result.decode_bytes_per_token / 1e9, result.read_bandwidth_bytes_per_s / 1e9
    if result.gpu:
        speed = f"{read_gb * result.decode_tokens_per_s:.1f} GB/s.\n{result.gpu['summary']}"
    elif result.experts:
        summary = result.experts["summary"]
        speed = f"{read_gb * result.decode_tokens_per_s:.1f} GB/s.\n{summary[0].upper()}{summary[1:]}."
    else:
        speed = f"{result.bandwidth_share:.0%} of the {bandwidth_gb:.1f} GB/s that a plain read loop reaches."
    console.print(
        f"Loaded in {result.load_s:.1f} s, read through in {result.touch_s:.1f} s; "
        f"peak memory {result.peak_rss_bytes / 1e9:.2f} GB.\n"
        f"Decode reads {read_gb:.2f} GB a token, at {speed}\n",
        soft_wrap=not console.is_terminal,
    )


def _print_profile(console: "Console", title: str, seconds: dict[str, float]) -> None:
    from rich import box
    from rich.table import Table

    total = sum(seconds.values())
    table = Table(title, box=box.MARKDOWN)
    for name in ("ms", "share"):
        table.add_column(name, justify="right")
    for name, value in [*seconds.items(), ("in all", total)]:
        table.add_row(name, f"{1000 * value:.2f}", f"{value / total:.1%}")
    console.print(table)
