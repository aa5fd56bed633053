"""What the demo model learns from, written by seeded generators, and the cases that are kept from it.

>>> case = held_out("sums", 1, seed=0)[0]
>>> case.is_right(turn.messages)  # of the turn that goes on after case.messages under case.setup

Which case is held out is decided by a hash of what it asks, so no seed can bring one into training.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from localoss.demo.dialogues import about, calls, numbers, other
from localoss.demo.dialogues.case import Case, Make, after

__all__ = ["SKILLS", "Case", "held_out", "training"]

# What is measured, each with a bar; several may come from one generator.
SKILLS: dict[str, Make] = {
    "sums": numbers.sums,
    "comparing": numbers.comparing,
    "about": about.about,
    "asked": about.asked,
    "calls": lambda rng: calls.until_call(calls.calls(rng)),
    "results": lambda rng: calls.from_result(calls.calls(rng)),
    "other": other.other,
}
# What training is made of: generators, and their shares in each of its parts. What is hard comes to be more.
_LESSONS: tuple[tuple[Make, float, float, float, float, float, float], ...] = (
    (numbers.sums, 0.24, 0.23, 0.22, 0.22, 0.22, 0.20),
    (numbers.comparing, 0.15, 0.29, 0.17, 0.36, 0.20, 0.36),
    (numbers.comparison, 0.0, 0.0, 0.27, 0.0, 0.0, 0.0),
    (about.about, 0.22, 0.16, 0.13, 0.12, 0.16, 0.12),
    (about.example, 0.03, 0.02, 0.01, 0.01, 0.01, 0.01),
    (calls.calls, 0.24, 0.26, 0.17, 0.25, 0.37, 0.28),
    (other.other, 0.12, 0.04, 0.03, 0.04, 0.04, 0.03),
)
_EARLIER = (about.about, about.about, numbers.sums, numbers.comparing, other.other)


def held_out(skill: str, count: int, seed: int) -> list[Case]:
    """`count` cases that training never sees, the same for the same seed. Raises: KeyError for no skill."""
    rng = random.Random(f"held out {skill} {seed}")
    return [_draw(rng, SKILLS[skill], held=True) for _ in range(count)]


def training(seed: int | str, part: int = 0) -> Iterator[Case]:
    """Dialogues to learn from, without end, the same for the same seed. part: 0 to 5, of the training."""
    rng = random.Random(f"training {seed}")
    makes, *shares = zip(*_LESSONS, strict=True)
    while True:
        (make,) = rng.choices(makes, shares[part])
        yield _draw(rng, make, held=False)


def _draw(rng: random.Random, make: Make, held: bool) -> Case:
    return _until(lambda: _in_conversation(rng, make(rng)), held)


def _until(draw: Callable[[], Case], held: bool) -> Case:
    while True:
        case = draw()
        if case.held_out == held:
            return case


def _in_conversation(rng: random.Random, case: Case) -> Case:
    """Now and then a later turn, under instructions, or with functions that it doesn't need."""
    if case.skill not in ("calls", "results"):
        if rng.random() < 0.3:
            earlier = [
                _until(lambda: rng.choice(_EARLIER)(rng), held=False) for _ in range(rng.choice((1, 1, 2)))
            ]
            case = after(earlier, case)
        if rng.random() < 0.05:
            case = calls.offered(rng, case)
    if rng.random() < 0.05:
        case = replace(case, setup=replace(case.setup, instructions=rng.choice(_INSTRUCTIONS)))
    return case


_INSTRUCTIONS = (
    "Be brief.",
    "You are a helpful assistant.",
    "Answer in English.",
    "Be polite.",
    "Answer in one line.",
)
