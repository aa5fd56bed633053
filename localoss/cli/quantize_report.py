"""What `localoss quantize` says about a conversion: done, to be done, and what it did to the weights."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localoss.cli.progress import duration_text, size_text

if TYPE_CHECKING:
    from quant.convert import Plan, Summary
    from quant.report import Report

BAR_CHARACTERS = 40


def summary_text(out: Path, summary: "Summary") -> str:
    size = size_text(summary.manifest.total_bytes)
    notes = "".join(f"note: {note}\n" for note in summary.notes)
    if summary.already_there:
        return f"{notes}{out}: this very model is there already, {size}; nothing to do"
    return f"{notes}{out}: {size} in {len(summary.manifest.files)} files, {summary.elapsed_s:.0f} s"


def summary_json(out: Path, summary: "Summary") -> dict[str, Any]:
    manifest = summary.manifest
    return {
        "out": str(out),
        "source": manifest.source.name,
        "dtypes": asdict(manifest.dtypes),
        "files": len(manifest.files),
        "total_bytes": manifest.total_bytes,
        "written_bytes": summary.written_bytes,
        "already_there": summary.already_there,
        "elapsed_s": round(summary.elapsed_s, 3),
        "notes": list(summary.notes),
    }


def plan_text(out: Path, plan: "Plan") -> str:
    lines = [f"{size_text(size):>10}  {name}" for name, size in plan.files.items()]
    lines.append(
        f"{size_text(plan.total_bytes):>10}  in all; {size_text(plan.free_bytes)} are free for {out}"
    )
    if plan.to_write_bytes < plan.total_bytes:
        lines.append(f"{size_text(plan.to_write_bytes):>10}  still to write")
    time = "unknown" if plan.expected_s is None else f"about {duration_text(plan.expected_s)}"
    lines.append(f"expected time: {time} (to read {size_text(plan.read_bytes)})")
    return "\n".join(lines)


def plan_json(out: Path, plan: "Plan") -> dict[str, Any]:
    return {"out": str(out), "total_bytes": plan.total_bytes, **asdict(plan)}


def report_text(report: "Report") -> str:
    """A table of the classes of tensors, and a histogram of the rows' errors."""
    lines = [f"{'':20}  {'format':6}  {'size':>8}  {'bits':>5}  {'rms error':>9}  worst tensor"]
    for entry in report.classes:
        worst = f"{entry.worst_tensor} ({entry.worst_error:.3%})" if entry.worst_error else ""
        error = f"{entry.relative_error:.3%}" if entry.relative_error else "none"
        lines.append(
            f"{entry.name:20}  {entry.dtype:6}  {size_text(entry.bytes):>8}  {entry.bits_per_weight:5.2f}  "
            f"{error:>9}  {worst}".rstrip()
        )
    return "\n".join([*lines, *_histogram(report)])


def report_json(report: "Report") -> dict[str, Any]:
    classes = [asdict(entry) | {"bits_per_weight": entry.bits_per_weight} for entry in report.classes]
    return {"classes": classes, "row_errors": {"edges": report.edges, "rows": report.row_errors}}


def _histogram(report: "Report") -> list[str]:
    most = max(report.row_errors)
    if not most:
        return []
    lines = ["", "rows by their error"]
    for low, high, rows in zip(report.edges, report.edges[1:], report.row_errors, strict=False):
        bar = "█" * -(-rows * BAR_CHARACTERS // most)
        lines.append(f"{low:8.3%} – {high:6.3%}  {bar:{BAR_CHARACTERS}}  {rows:,}")
    return lines
