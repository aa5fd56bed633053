"""`localoss bench`: how fast a model runs on this machine."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from localoss.cli.loading import load_model
from localoss.cli.options import ModelName, Threads
from localoss.errors import UsageError

if TYPE_CHECKING:
    from localoss.bench import Benchmark


def bench(
    model: ModelName,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    gen_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 64,
    depth: Annotated[int, typer.Option(min=0, help="Tokens of context before the prompt.")] = 0,
    threads: Threads = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where a decoded token's time goes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Measure prefill and decode speed, beside the bandwidth at which this machine reads the weights.

    Run it twice: the first run after a start of the machine reads the model from disk.
    """
    import time

    from localoss.registry import find_model
    from quant.config import read_config

    context = depth + prompt_tokens + gen_tokens + 1
    most = read_config(find_model(model) / "config.json").context
    if context > most:
        raise UsageError(f"{context:,} tokens in all; the model's context is {most:,}: ask for fewer")
    start = time.perf_counter()
    folder, engine = load_model(model, context_tokens=context, threads=threads)
    load_s = time.perf_counter() - start

    from localoss.bench import profile_decode, run_benchmark

    result = run_benchmark(engine, load_s, prompt_tokens, gen_tokens, depth)
    shares = profile_decode(engine, min(gen_tokens, 32)) if profile else {}
    if as_json:
        report = {"model": str(folder), **asdict(result)}
        typer.echo(json.dumps(report | ({"decode_profile_s": shares} if profile else {}), indent=2))
    else:
        _print_table(str(folder), result, shares)


def _print_table(model: str, result: "Benchmark", shares: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=model, title_justify="left")
    for name in ("test", "tokens/s"):
        table.add_column(name, justify="right" if name == "tokens/s" else "left")
    table.add_row(f"prefill {result.prompt_tokens}", f"{result.prefill_tokens_per_s:.1f}")
    table.add_row(f"decode {result.gen_tokens}", f"{result.decode_tokens_per_s:.2f}")
    console = Console()
    console.print(table)
    read_gb, bandwidth_gb = result.decode_bytes_per_token / 1e9, result.read_bandwidth_bytes_per_s / 1e9
    console.print(
        f"{result.threads} threads, {result.simd}; loaded in {result.load_s:.1f} s; "
        f"peak memory {result.peak_rss_bytes / 1e9:.1f} GB\n"
        f"decode reads {read_gb:.2f} GB a token, at {result.bandwidth_share:.0%} of the {bandwidth_gb:.1f} GB/s "
        "that a plain read loop reaches",
        highlight=False,
    )
    if shares:
        total = sum(shares.values())
        table = Table(title="a decoded token", title_justify="left")
        for name in ("kernel", "ms", "share"):
            table.add_column(name, justify="left" if name == "kernel" else "right")
        for name, seconds in shares.items():
            table.add_row(name, f"{1000 * seconds:.2f}", f"{seconds / total:.0%}")
        console.print(table)
