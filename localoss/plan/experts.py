"""Experts that are read from the disk into a bounded cache: how many fit, and what a token costs then."""

import itertools
from dataclasses import dataclass, replace

from localoss.errors import UsageError
from localoss.plan.disk import DiskSpeed
from localoss.plan.memory import Plan, gigabytes
from localoss.plan.sizes import READERS
from localoss.plan.speed import token_s

# The share of a token's experts that are there already, by the share of all experts that are in memory. From
# a trace of the router's choices made to look like a published one of gpt-oss-120b, and one of 20b's shape
# made alike: docs/120b.md.
_Curve = tuple[tuple[float, float], ...]
_OF_MANY: _Curve = ((0, 0), (0.03, 0.26), (0.065, 0.38), (0.16, 0.68), (0.29, 0.83), (0.43, 0.90), (1, 1))
_OF_FEW: _Curve = ((0, 0), (0.06, 0.4), (0.16, 0.55), (0.25, 0.70), (0.35, 0.82), (0.5, 0.92), (1, 1))
_FEW = 64  # experts of a layer: 20b has 32, 120b 128
_REACHED = 0.85  # of what reading and computing one after the other would give, at the least
_PROMPTS = (512, 4096)


def record_bytes(plan: Plan) -> int:
    """Of one expert of one layer."""
    return replace(plan, expert_slots=1).weights["experts"]


def least_bytes(plan: Plan) -> int:
    """The smallest cache: a token's experts of a layer, and what all readers bring meanwhile."""
    return (plan.config.active_experts + READERS) * record_bytes(plan)


def with_cache(plan: Plan, limit_bytes: int, asked_bytes: int | None = None) -> Plan | None:
    """`plan` with as many experts in memory as fit, or as asked for; None if these are too few to run.

    limit_bytes: what it may take in all. Raises: UsageError if what was asked for is too little or too much.
    """
    record, least = record_bytes(plan), least_bytes(plan)
    room = limit_bytes - replace(plan, expert_slots=1).total_bytes + record
    wanted = room if asked_bytes is None else asked_bytes
    asked = f"--expert-memory is {gigabytes(wanted)}"
    if wanted < least:
        if asked_bytes is None:
            return None
        raise UsageError(f"{asked}; this model needs {gigabytes(least)} at least")
    made = replace(plan, expert_slots=min(wanted // record, plan.config.layers * plan.config.experts))
    if made.total_bytes > limit_bytes and asked_bytes is not None:
        left = gigabytes(max(room, 0))
        raise UsageError(f"{asked}; beside all else there is room for {left}: give less, or leave it out")
    return made


@dataclass(frozen=True)
class Streaming:
    """What a plan with a cache of experts is expected to do with a disk of such a speed."""

    plan: Plan
    disk: DiskSpeed

    @property
    def experts(self) -> int:
        """Of all layers."""
        return self.plan.config.layers * self.plan.config.experts

    @property
    def hit_rate(self) -> float:
        """The share of the experts that a decoded token wants which are there."""
        share = self.plan.expert_slots / self.experts
        curve = _OF_FEW if self.plan.config.experts <= _FEW else _OF_MANY
        for (low, low_rate), (high, high_rate) in itertools.pairwise(curve):
            if share <= high:
                return low_rate + (high_rate - low_rate) * (share - low) / (high - low)
        return 1.0

    @property
    def token_bytes(self) -> int:
        """Read from the disk for a decoded token."""
        wanted = self.plan.config.layers * self.plan.config.active_experts * record_bytes(self.plan)
        return round(wanted * (1 - self.hit_rate))

    @property
    def tokens_per_s(self) -> float:
        """At the beginning of a conversation, at the least."""
        return _REACHED / (self.token_bytes / self.disk.bytes_per_s + token_s(self.plan)[0])

    def prompt_s(self, tokens: int) -> float:
        """What reading takes for a prompt of up to PASS_TOKENS tokens: each expert that any chooses, once."""
        share = self.plan.config.active_experts / self.plan.config.experts
        chosen: float = 1 - (1 - share) ** (tokens / 4)  # a text's choices cluster
        return self.experts * chosen * record_bytes(self.plan) / self.disk.bytes_per_s

    def lines(self) -> list[str]:
        """What `localoss plan` says of it."""
        slots, size = self.plan.expert_slots, gigabytes(self.plan.weights["experts"])
        hits, token = f"{self.hit_rate:.0%}", gigabytes(self.token_bytes)
        fitting = [tokens for tokens in _PROMPTS if tokens <= self.plan.context_tokens]
        prompts = " and ".join(f"{self.prompt_s(tokens):,.0f} s for {tokens:,}" for tokens in fitting)
        reading = f" Reading takes {prompts} tokens of a prompt." if prompts else ""
        return [
            f"Experts from the disk: {slots:,} of {self.experts:,} stay in memory ({size}); the others are "
            "read when a token wants them.",
            f"Expected: {hits} of a token's experts are there, {token} a token are read, "
            f"{self.tokens_per_s:.2g} tokens/s.",
            f"Disk: {self.disk}.{reading}",
        ]

    def report(self) -> dict[str, object]:
        """The same for JSON."""
        return {
            "slots": self.plan.expert_slots,
            "experts": self.experts,
            "memory_bytes": self.plan.weights["experts"],
            "expected_hit_rate": round(self.hit_rate, 3),
            "read_bytes_per_token": self.token_bytes,
            "tokens_per_s": round(self.tokens_per_s, 3),
            "prompt_read_s": {str(tokens): round(self.prompt_s(tokens), 1) for tokens in _PROMPTS},
            "disk": self.disk.report(),
        }


def notice(plan: Plan, disk: DiskSpeed) -> str:
    """The line for a user whose model runs with a cache of experts."""
    streaming = Streaming(plan, disk)
    size, token = gigabytes(plan.weights["experts"]), gigabytes(streaming.token_bytes)
    if plan.expert_slots == streaming.experts:
        return f"all {streaming.experts:,} experts have room in memory ({size}), and are read once wanted"
    return (
        f"{plan.expert_slots:,} of {streaming.experts:,} experts stay in memory ({size}), the others come "
        f"from the disk when they are wanted, some {token} a token"
    )
