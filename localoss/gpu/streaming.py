"""Experts that lie in this machine's memory, brought to the GPU for a long prompt, layer by layer.

A prompt's tokens choose nearly all of a layer's experts. From some length on it takes less time to copy these
over the bus, and have the GPU multiply, than to have the cores do it: where, follows from three times that
are measured when a model is loaded.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from numpy.typing import NDArray

from localoss.errors import Cancelled
from localoss.gpu.device import Device, Dispatch
from localoss.gpu.weights import ExpertPart
from localoss.plan.gpu_sizes import TWO_LANES, streamed_experts

clock: Callable[[], float] = time.perf_counter


class Times(NamedTuple):
    """Of one layer, in seconds: copying its experts to the GPU, and each token of a prompt on either side."""

    copy_s: float
    gpu_token_s: float
    cores_token_s: float

    @property
    def from_tokens(self) -> int | None:
        """From how many tokens on the GPU is faster, copying included; None for never.

        The GPU's has its attention in it: while the cores compute, it does that of another half.
        """
        gain_s = self.cores_token_s - self.gpu_token_s
        return max(math.ceil(self.copy_s / gain_s), TWO_LANES) if gain_s > 0 else None


class ExpertStream:
    """Two buffers of the GPU that experts go through, some at a time: while it computes with those in one,
    the next ones are copied to the other.
    """

    def __init__(self, device: Device, experts: Sequence[NDArray[Any]]):
        """experts: of each layer that has them in memory, (E, bytes of one) u8."""
        self._device, self._experts = device, experts
        count, run_bytes = (int(size) for size in experts[0].shape)
        self.at_once = at_once = streamed_experts(count, run_bytes)
        buffers = [device.buffer(at_once * run_bytes) for _ in range(2)]
        self._ranges = [(first, min(first + at_once, count)) for first in range(0, count, at_once)]
        self.parts = [
            ExpertPart(buffers[number % 2], device.uniform(*its)) for number, its in enumerate(self._ranges)
        ]
        self._filled: tuple[int, int] | None = None  # layer and part that was copied last
        self.from_tokens: int | None = None  # of a pass that experts are brought for; None for never

    def takes(self, tokens: int) -> bool:
        """Whether experts are brought for a pass of so many tokens."""
        return self.from_tokens is not None and tokens >= self.from_tokens

    def run(
        self,
        layer: int,
        before: Sequence[Dispatch],
        of_part: Callable[[ExpertPart], list[Dispatch]],
        cancelled: Callable[[], bool],
    ) -> None:
        """Run `before`, and then of_part(part) of each part of a layer's experts.

        Raises: Cancelled between two parts.
        """
        if self._filled != (layer, 0):
            self._fill(layer, 0)
        for number, part in enumerate(self.parts):
            if cancelled():
                raise Cancelled("stopped")
            work = [*(before if number == 0 else ()), *of_part(part)]
            recording = self._device.record(work, self._device.anything)
            self._device.submit(recording, partial(self._fill_after, layer, number))

    def copy_s(self) -> float:
        """How long copying a layer's experts takes, by a part: while one is written, the one before it goes
        over the bus.
        """
        device, nothing = self._device, self._device.anything
        part_s = seconds_of(lambda: device.submit(device.record([], nothing), self._fill_first))
        device.wait()
        first, end = self._ranges[0]
        return part_s * self._ranges[-1][1] / (end - first)

    def _fill_first(self) -> None:
        self._fill(0, 0)

    def _fill_after(self, layer: int, number: int) -> None:
        """Copy what comes after that part, if anything does: while the GPU computes."""
        if number + 1 < len(self.parts):
            self._fill(layer, number + 1)
        elif layer + 1 < len(self._experts):
            self._fill(layer + 1, 0)

    def _fill(self, layer: int, number: int) -> None:
        first, end = self._ranges[number]
        self._device.write(self.parts[number].runs, self._experts[layer][first:end])
        self._filled = (layer, number)


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of a run after a first one, which may have to compile, or to read from the disk."""
    run()
    start = clock()
    run()
    return clock() - start
