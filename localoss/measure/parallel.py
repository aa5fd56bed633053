"""How fast several sequences are decoded side by side, beside one alone."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from localoss.engine.engine import Engine
from localoss.engine.sequence import Sequence as Conversation
from localoss.engine.slot import Slot
from localoss.options import SamplingParams


@dataclass(frozen=True)
class SideBySide:
    """Decoding of so many sequences, each after its own prompt.

    tokens_per_s: of all together, the median of the turns. speedup: over one sequence in the same turn, the
    median; 1 for one. step_s: from a token of a sequence to its next: p50, p95, p99 of all steps.
    """

    sequences: int
    tokens_per_s: float
    speedup: float
    step_s: tuple[float, float, float]


def run_side_by_side(
    engine: Engine, counts: Sequence[int], prompt_tokens: int, gen_tokens: int, turns: int
) -> list[SideBySide]:
    """Decode `gen_tokens` greedy tokens of 1 and of each of `counts` sequences, in `turns` turns of them all.

    Needs as many slots, and a context of prompt_tokens + gen_tokens + 1.
    """
    random = np.random.default_rng(0)
    low, high = min(1000, engine.config.vocab // 2), engine.config.vocab - engine.config.vocab // 100
    counts = sorted({1, *counts})
    prompts = [random.integers(low, high, prompt_tokens).tolist() for _ in range(counts[-1])]
    conversations = [engine.sequence() for _ in prompts]
    for conversation, prompt in zip(conversations, prompts, strict=True):
        engine.prefill(conversation, prompt)
    steps: dict[int, list[list[float]]] = {count: [] for count in counts}
    for _ in range(turns):
        for count in counts:
            steps[count].append(_steps_s(engine, conversations[:count], prompts[:count], gen_tokens))
    speeds = {count: [count * len(one) / sum(one) for one in steps[count]] for count in counts}
    return [
        SideBySide(
            count,
            statistics.median(speeds[count]),
            statistics.median(of / one for of, one in zip(speeds[count], speeds[1], strict=True)),
            percentiles([step for one in steps[count] for step in one]),
        )
        for count in counts
    ]


def _steps_s(
    engine: Engine, conversations: list[Conversation], prompts: list[list[int]], tokens: int
) -> list[float]:
    """Seconds of each of `tokens` steps, after the one that runs the prompts' last tokens."""
    batch, params = engine.batch(), SamplingParams(temperature=0, stop_ids=())
    for conversation, prompt in zip(conversations, prompts, strict=True):
        batch.add(Slot(conversation, prompt, params))
    batch.step()
    times = [time.perf_counter()]
    for _ in range(tokens):
        batch.step()
        times.append(time.perf_counter())
    return np.diff(times).tolist()


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 50th, 95th and 99th of `values`."""
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return float(p50), float(p95), float(p99)
