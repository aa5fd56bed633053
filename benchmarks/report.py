"""RESULTS.md: the table of targets, with every single value behind it."""

import os
from pathlib import Path
from typing import Any

from measure import Measurement
from rows import Results, Row

# What is shown of each run, where it has it: heading, fields, factor.
COLUMNS = [
    ("load, s", ("load_s",), 1.0),
    ("prefill, tokens/s", ("prefill_tokens_per_s",), 1.0),
    ("decode, tokens/s", ("decode_tokens_per_s",), 1.0),
    ("read bandwidth, GB/s", ("read_bandwidth_bytes_per_s", "median_bytes_per_s"), 1e-9),
    ("first output, s", ("first_output_s",), 1.0),
    ("peak memory, GB", ("max_rss_bytes",), 1e-9),
]

HOW = """## How this is measured
`python benchmarks/compare.py --help` says it. Each value comes from a fresh process. Ours and llama.cpp's
take turns, with the same number of threads; the table has medians and ratios of medians. Files are read into
the page cache before each run. Prefill and decode are timed after every page of the weights has been touched
once, as llama.cpp's repacking does while it loads; "start to first token" is timed from the process's start.
The read bandwidth is that of a plain loop of vector loads over the same weights, in the same sitting.

The weights are random: a checkpoint in the published layout and at the published sizes, with MXFP4 codes and
scales and bfloat16 weights drawn at random, costs what the real one costs. `localoss quantize CHECKPOINT OUT`
makes the model, `--attention int4 --unembedding int4` the second one; the small one has the first 4 layers.
llama.cpp runs the same weights from a GGUF file, the experts' MXFP4 unchanged and all else as Q8_0, through
PyPI's xllamacpp; what other peers are their commands say. Each row stands beside the best of them."""


def write(
    path: Path, table: list[Row], results: Results, facts: dict[str, Any], can: dict[str, Measurement]
) -> None:
    """Write the report over the file at `path`."""
    parts = ["# localoss against llama.cpp, and against what the memory allows", _facts(facts, results, can)]
    parts += [_table(table, results), _singles(results, can), HOW]
    part = path.with_suffix(".part")
    part.write_text("\n\n".join(parts) + "\n", "utf-8")
    os.replace(part, path)


def _facts(facts: dict[str, Any], results: Results, can: dict[str, Measurement]) -> str:
    machine, sizes = facts["machine"], facts["sizes"]
    dates = sorted(day[:10] for name in can for day in results.values(name, "taken"))
    simd = sorted({name for measured in can for name in results.values(measured, "simd")})
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    commits = sorted({found for name in can for found in results.values(name, "commit")})
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.1f} GB, "
        f"{machine['system']}; instruction set {', '.join(simd) or 'not known yet'}.",
        f"{' to '.join(sorted({dates[0], dates[-1]})) if dates else 'Nothing measured yet'}; {versions}; "
        f"commit {', '.join(commits) or 'unknown'}.",
    ]
    if sizes["prompt"] < 512:
        lines.append("**A trial with few tokens: no result.**")
    return "\n".join(lines)


def _table(table: list[Row], results: Results) -> str:
    lines = ["| what | localoss | beside it | ratio | target | met |", "|---|---|---|---|---|---|"]
    notes = []
    for row in table:
        missing = [name for name in row.needs if not results.has(name)]
        if missing:
            lines.append(f"| {row.what} | not measured: {', '.join(missing)} | | | {row.target} | |")
            continue
        verdict = row.judge(results)
        met = "yes" if verdict.met else "**no**"
        ratio = f"{verdict.ratio:.2f}" if verdict.ratio >= 0.1 else f"{verdict.ratio:.1e}"
        lines.append(f"| {row.what} | {verdict.ours} | {verdict.beside} | {ratio} | {row.target} | {met} |")
        if verdict.note:
            notes.append(f"- {row.what}: {verdict.note}.")
    return "\n".join(lines) + ("\n\n" + "\n".join(notes) if notes else "")


def _singles(results: Results, can: dict[str, Measurement]) -> str:
    headings = [heading for heading, _, _ in COLUMNS]
    lines = ["## Single values", f"| run | {' | '.join(headings)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name in can:
        cells = []
        for _, fields, factor in COLUMNS:
            values = [value for field in fields for value in results.values(name, field)]
            cells.append(", ".join(f"{factor * value:.2f}" for value in values))
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    commands = [f"{name}: {measurement.shown}" for name, measurement in can.items() if results.has(name)]
    return "\n".join([*lines, "", "```", *commands, "```"])
