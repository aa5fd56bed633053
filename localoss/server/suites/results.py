"""What evaluations gave: shares with confidence intervals, beside OpenAI's figures, as table and plot."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

EFFORTS = ("low", "medium", "high")
_Z = 1.959964  # of a normal distribution, 95 % of which lie so many deviations around the middle

# Per cent at low, medium and high effort, without tools: gpt-oss model card, arXiv 2508.10925, table 3.
_PUBLISHED = {
    "aime2024": {"20b": (42.1, 80.0, 92.1), "120b": (56.3, 80.4, 95.8)},
    "aime2025": {"20b": (37.1, 72.1, 91.7), "120b": (50.4, 80.0, 92.5)},
    "gpqa_diamond": {"20b": (56.8, 66.0, 71.5), "120b": (67.1, 73.1, 80.1)},
    "healthbench": {"20b": (40.4, 41.8, 42.5), "120b": (53.0, 55.9, 57.6)},
}
_LAYERS = {24: "20b", 36: "120b"}


@dataclass(frozen=True)
class Result:
    """One suite at one effort. score, low, high: shares of 1, the mean and its 95 % confidence interval.

    questions: that were scored. failed: that were not, since an answer failed; they count nowhere.
    published: OpenAI's score, None if there is none. tokens: that were written.
    """

    suite: str
    effort: str
    questions: int
    epochs: int
    score: float
    low: float
    high: float
    failed: int = 0
    tokens: int = 0
    published: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of `scores`, each of one question, between 0 and 1.

    Of yes and no alone it is Wilson's, which is right for few questions and for shares near 0 and 1. Of
    others, such as means over several epochs, it is the normal one by the scatter between questions: answers
    to one question are no independent draws. Source: https://arxiv.org/abs/2411.00640.
    """
    count = len(scores)
    if not count:
        return 0.0, 1.0
    mean = math.fsum(scores) / count
    if all(score in (0, 1) for score in scores):
        weight = 1 + _Z**2 / count
        middle = (mean + _Z**2 / (2 * count)) / weight
        half = _Z / weight * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
        return max(0.0, middle - half), min(1.0, middle + half)
    if count == 1:
        return 0.0, 1.0
    variance = math.fsum((score - mean) ** 2 for score in scores) / (count - 1)
    half = _Z * math.sqrt(variance / count)
    return max(0.0, mean - half), min(1.0, mean + half)


def published(suite: str, effort: str, layers: int) -> float | None:
    """OpenAI's own score of the model with so many layers, a share of 1; None if there is none."""
    figures = _PUBLISHED.get(suite, {}).get(_LAYERS.get(layers, ""))
    return figures[EFFORTS.index(effort)] / 100 if figures and effort in EFFORTS else None


def table(results: Sequence[Result]) -> str:
    """`results` in Markdown, per cent."""
    lines = [
        "| suite | effort | questions | score | 95 % interval | OpenAI's | tokens an answer |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        answers = one.questions * one.epochs
        theirs = "" if one.published is None else f"{100 * one.published:.1f}"
        each = f"{one.tokens / answers:,.0f}" if answers else ""
        counted = f"{one.questions:,}" + (f" × {one.epochs}" if one.epochs > 1 else "")
        counted += f", {one.failed:,} failed" if one.failed else ""
        lines.append(
            f"| {one.suite} | {one.effort} | {counted} | {100 * one.score:.1f} "
            f"| {100 * one.low:.1f}–{100 * one.high:.1f} | {theirs} | {each} |"
        )
    return "\n".join(lines) + "\n"


_WIDTH, _LEFT, _TOP, _ROW, _SCALE = 640, 190, 46, 26, 400


def plot(results: Sequence[Result], title: str) -> str:
    """`results` as an SVG picture: a dot with its interval for each, a ring for OpenAI's figure."""
    bottom = _TOP + _ROW * len(results)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + 34}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{bottom + 34}" fill="#fff"/>',
        f'<text x="12" y="22" font-size="15">{escape(title)}</text>',
    ]
    for percent in range(0, 101, 20):
        x = _LEFT + _SCALE * percent / 100
        parts.append(f'<path d="M{x:.1f} {_TOP - 10}V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{percent} %</text>')
    for row, one in enumerate(results):
        y = _TOP + _ROW * row + 8
        low, x, high = (_LEFT + _SCALE * share for share in (one.low, one.score, one.high))
        parts.append(f'<text x="12" y="{y + 4}">{escape(one.suite)} · {escape(one.effort)}</text>')
        parts.append(f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="#1a73a8" stroke-width="3"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="#1a73a8"/>')
        if one.published is not None:
            theirs = _LEFT + _SCALE * one.published
            ring = 'r="7" fill="none" stroke="#c44" stroke-width="2"'
            parts.append(f'<circle cx="{theirs:.1f}" cy="{y}" {ring}/>')
        parts.append(f'<text x="{_LEFT + _SCALE + 8}" y="{y + 4}">{100 * one.score:.1f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
