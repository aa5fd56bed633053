"""A forward pass on the GPU: its rows, in one piece or in two halves, and what is submitted for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from localoss.gpu.device import Dispatch, Reading
from localoss.gpu.lane import Lane, Part
from localoss.model.stack import Rows

F32Array = NDArray[np.float32]

X, LOGITS, NOTHING = "x", "logits", "nothing"  # what is read at the end of a pass


class Stage(NamedTuple):
    """What is submitted at once; `layer`, if any, is whose experts the cores then run with what was read."""

    work: list[Dispatch]
    reading: list[Reading]
    layer: int | None = None


@dataclass
class Half:
    """A pass, or one of the two halves of one: rows x (T, D), and the lane that they go through.

    end: what is read at last, one of X, LOGITS, NOTHING.
    """

    x: F32Array
    lane: Lane
    parts: list[Part]
    end: str
    stages: Iterator[Stage] = field(default_factory=lambda: iter(()))


def cut(rows: Sequence[Rows], begin: int, end: int) -> Iterator[Rows]:
    """Of `rows`, one after another from row 0 on, those from `begin` to `end`, counted from `begin`."""
    for part in rows:
        first, last = max(part.first, begin), min(part.first + part.tokens, end)
        if first < last:
            skipped = first - part.first
            angles = part.cos[skipped:][: last - first], part.sin[skipped:][: last - first]
            yield Rows(first - begin, last - first, part.position + skipped, *angles, part.cache)
