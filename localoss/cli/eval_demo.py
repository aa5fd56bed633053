"""`localoss eval demo`: what the demo model can do, and what each number format costs it."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localoss.cli.progress import size_text
from localoss.cli.terminal import StatusLine, echo

if TYPE_CHECKING:
    from localoss.demo.scoring import FormatScore

_SKILLS = {
    "sums": "sums and differences",
    "comparing": "comparing and sorting",
    "about": "questions about localoss",
    "asked": "the same, worded by people",
    "calls": "function calls",
    "results": "answers from results",
    "other": "what it cannot do, said",
}


def evaluate_demo(cases: int, threads: int | None, as_json: bool) -> None:
    """Print the table for all number formats, each scored on `cases` held-out cases a skill."""
    from localoss.demo.scoring import score_formats

    line = StatusLine()
    try:
        formats = score_formats(cases, threads, line.show)
    finally:
        line.clear()
    if as_json:
        report = {"cases": cases, "formats": {name: _json(result) for name, result in formats.items()}}
        echo(json.dumps(report, indent=2))
        return
    _print_table(formats)
    echo(
        f"\n{cases} held-out cases of each skill. Columns: number format of the experts + of the rest.\n"
        "Perplexity and KL divergence from bf16 (nats) are those of right replies."
    )


def _json(result: "FormatScore") -> dict[str, Any]:
    report = asdict(result)
    del report["scores"]
    return report | {"perplexity": result.scores.perplexity, **_divergence(result)}


def _divergence(result: "FormatScore") -> dict[str, float]:
    """What compares with bf16; empty for bf16 itself."""
    scores = result.scores
    if not len(scores.kl):
        return {}
    return {"mean_kl": scores.mean_kl, "p99_kl": scores.p99_kl, "top1_agreement": scores.top1_agreement}


def _print_table(formats: dict[str, "FormatScore"]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("", box=box.MARKDOWN)
    for name in formats:
        table.add_column(name, justify="right")
    columns = [_column(result) for result in formats.values()]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    Console(highlight=False).print(table)


def _column(result: "FormatScore") -> dict[str, str]:
    """What a format's column shows, by row."""
    from localoss.demo.scoring import WARM_SKILL

    column = {"size": size_text(result.model_bytes)}
    for skill, share in result.accuracy.items():
        column[f"{_SKILLS.get(skill, skill)}, right"] = f"{share:.1%}"
    column[f"{_SKILLS[WARM_SKILL]} at temperature 1"] = f"{result.warm_accuracy:.1%}"
    well_formed = sum(result.well_formed.values()) / len(result.well_formed)
    column["well-formed at temperature 1, of all"] = f"{well_formed:.1%}"
    lengths = " / ".join(f"{tokens:.0f}" for tokens in result.analysis_tokens.values())
    column["thinking, tokens: " + " / ".join(result.analysis_tokens)] = lengths
    column["perplexity"] = f"{result.scores.perplexity:.4f}"
    divergence = _divergence(result)
    column["KL divergence, mean"] = f"{divergence['mean_kl']:.5f}" if divergence else "–"
    column["KL divergence, 99th percentile"] = f"{divergence['p99_kl']:.5f}" if divergence else "–"
    column["same likeliest token"] = f"{divergence['top1_agreement']:.2%}" if divergence else "–"
    return column
