"""How fast a model will decode: its bytes per token, held against what `localoss bench` measured here."""

import contextlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from localoss import settings
from localoss.plan.memory import FITS, Plan
from quant.format.layout import layer_specs
from quant.format.sizes import class_bytes
from quant.format.writer import spec_bytes

FILE = "speed.json"
TYPICAL_BYTES_PER_S = 40e9  # a laptop's with two channels of DDR4-3200 or LPDDR5
# A token of a model that wasn't measured itself: what its bytes take at the share of the bandwidth that
# decoding reaches, and what calling kernels takes whatever their size.
SHARE, CALLS_S = 0.85, 0.003
_ALIKE = 1.5  # a factor of bytes per token within which times are as the bytes
_MOST_ENTRIES = 50


@dataclass(frozen=True)
class Measured:
    """What a bench saw. bytes_per_token: of weights. s_per_token: with little context.

    bandwidth_bytes_per_s: at which a plain loop read the weights.
    """

    bytes_per_token: int
    s_per_token: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True)
class Estimate:
    """tokens_per_s: at the beginning of a conversation, and full_tokens_per_s at the end of its context.

    source: what it rests on: "bench of this model", "bench" of another, or "typical laptop".
    """

    tokens_per_s: float
    full_tokens_per_s: float
    source: str


def decode_bytes(plan: Plan) -> int:
    """Bytes of weights that a token reads: all but the embedding, and of the experts the active ones."""
    weights, config = class_bytes(plan.config, plan.dtypes), plan.config
    experts = weights["experts"] * config.active_experts // config.experts
    layer = layer_specs(config, plan.dtypes.attention, plan.dtypes.experts)
    router = sum(spec_bytes(spec) for name, spec in layer.items() if name.startswith("router"))
    return weights["attention"] + config.layers * router + experts + weights["unembedding"]


def estimate(plan: Plan, limit_bytes: int) -> Estimate | None:
    """How fast `plan` decodes in this much memory; None where the disk decides, or a GPU helps."""
    if plan.verdict(limit_bytes) != FITS or plan.gpu_layers:
        return None
    seconds, bandwidth, source = token_s(plan)
    cache = sum(bytes_ for name, bytes_ in plan.own.items() if name.startswith("KV cache")) // plan.slots
    return Estimate(1 / seconds, 1 / (seconds + cache / (SHARE * bandwidth)), source)


def token_s(plan: Plan) -> tuple[float, float, str]:
    """Seconds of a token with all weights in memory, the bandwidth of these, and where it is from."""
    size = decode_bytes(plan)
    bandwidth, source, seconds = TYPICAL_BYTES_PER_S, "typical laptop", 0.0
    if there := _read():
        nearest = min(there, key=lambda one: abs(math.log(one.bytes_per_token / size)))
        bandwidth, source = nearest.bandwidth_bytes_per_s, "bench"
        if 1 / _ALIKE < nearest.bytes_per_token / size < _ALIKE:
            seconds = nearest.s_per_token * size / nearest.bytes_per_token
            is_same = abs(nearest.bytes_per_token / size - 1) < 0.02
            source = "bench of this model" if is_same else "bench"
    return seconds or size / (SHARE * bandwidth) + CALLS_S, bandwidth, source


def known_bandwidth() -> float:
    """Bytes per second of this machine's memory: what the last bench saw, or a typical laptop's."""
    there = _read()
    return there[0].bandwidth_bytes_per_s if there else TYPICAL_BYTES_PER_S


def keep(measured: Measured) -> None:
    """Remember what a bench saw, for plans; that it can't be is no reason to fail."""
    others = [one for one in _read() if one.bytes_per_token != measured.bytes_per_token]
    path = _path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")
        entries = [asdict(one) for one in [measured, *others][:_MOST_ENTRIES]]
        new.write_text(json.dumps(entries), encoding="utf-8")
        os.replace(new, path)


def _path() -> Path:
    return settings.home() / FILE


def _read() -> list[Measured]:
    """What was kept; nothing of a file that is damaged."""
    try:
        entries = [Measured(**entry) for entry in json.loads(_path().read_bytes())]
        return [one for one in entries if min(asdict(one).values()) > 0]
    except (OSError, ValueError, TypeError):
        return []
