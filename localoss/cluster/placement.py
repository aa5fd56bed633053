"""Which layers go to which machine."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from localoss.errors import UsageError
from localoss.plan.experts import with_cache
from localoss.plan.memory import FITS, Plan, gigabytes
from quant.format.config import ModelConfig

_ENOUGH = 8  # machines: more only where memory needs them, for each is another way to go for every token


@dataclass(frozen=True)
class Room:
    """What a machine has for layers. limit_bytes: that a model may take, and cache_limit_bytes with experts
    on the disk. speed: beside the others'.
    """

    name: str
    limit_bytes: int
    cache_limit_bytes: int = 0
    speed: float = 1.0


@dataclass(frozen=True)
class Share:
    """Layers from `first` on that the machine number `room` runs, and what they take there."""

    room: int
    first: int
    plan: Plan

    @property
    def count(self) -> int:
        return self.plan.config.layers

    @property
    def streams(self) -> bool:
        """Whether some experts stay on its disk."""
        return bool(self.plan.expert_slots)


def part_of(config: ModelConfig, first: int, count: int) -> ModelConfig:
    """A model of these layers alone, with next to no vocabulary: what plans of it are made from."""
    sliding = config.is_sliding[first : first + count]
    return replace(config, layers=count, is_sliding=sliding, vocab=8)


def part_plan(plan: Plan, first: int, count: int) -> Plan:
    """What a machine that runs these layers takes."""
    return replace(plan, config=part_of(plan.config, first, count))


def place(plan: Plan, rooms: Sequence[Room]) -> list[Share]:
    """Each machine's layers, so that one takes as long as another as far as memory allows; machines that
    aren't needed are left out. Where memory doesn't hold all of them, machines keep some experts on disks.

    plan: of the whole model. The order of `rooms` stays. Raises: UsageError if it can't run on them.
    """
    layers = plan.config.layers
    known: dict[tuple[int, int], int] = {}
    for room in rooms:
        key = room.limit_bytes, room.cache_limit_bytes
        known[key] = known.get(key) or _most_layers(plan, room)
    most = [known[room.limit_bytes, room.cache_limit_bytes] for room in rooms]
    if sum(most) >= layers:
        held = list(itertools.accumulate(most))
        count = max(_ENOUGH, 1 + next(index for index, holds in enumerate(held) if holds >= layers))
        rooms, most = rooms[:count], most[:count]
        counts = _dealt(layers, most, [room.speed for room in rooms])
    else:  # what is read from a disk costs most: nobody should read more than others
        counts = _dealt(layers, [layers] * len(rooms), [max(room.limit_bytes, 1) for room in rooms])
    shares, first = [], 0
    for number, (room, count) in enumerate(zip(rooms, counts, strict=True)):
        if count:
            its = part_plan(plan, first, count)
            if its.verdict(room.limit_bytes) != FITS:
                its = with_cache(its, room.cache_limit_bytes) or _refuse(plan, rooms, most)
            shares.append(Share(number, first, its))
            first += count
    return shares


def _refuse(plan: Plan, rooms: Sequence[Room], most: Sequence[int]) -> Plan:
    layers = plan.config.layers
    needed = gigabytes(part_plan(plan, 0, layers).weights_bytes)
    many = "1 machine has" if len(rooms) == 1 else f"{len(rooms)} machines have"
    raise UsageError(
        f"{many} room for {sum(most)} of {layers} layers, {needed} in all, and too "
        "little to read the others from their disks; add a machine, free memory, or take a smaller --context"
    )


def _most_layers(plan: Plan, room: Room) -> int:
    """How many layers fit wherever they begin: two neighbours differ in their KV caches."""
    layers, low, high = plan.config.layers, 0, plan.config.layers
    while low < high:
        count = (low + high + 1) // 2
        starts = {0, min(1, layers - count)}
        if all(part_plan(plan, first, count).total_bytes <= room.limit_bytes for first in starts):
            low = count
        else:
            high = count - 1
    return low


def _dealt(layers: int, most: Sequence[int], speeds: Sequence[float]) -> list[int]:
    """`layers` dealt out one by one, each to whom it makes least late; none gets more than its most."""
    counts = [0] * len(most)
    for _ in range(layers):
        free = [index for index, count in enumerate(counts) if count < most[index]]
        counts[min(free, key=lambda index: ((counts[index] + 1) / speeds[index], index))] += 1
    return counts
