"""How fast a model will decode with layers on a GPU: from the bandwidth of both memories, and the bus."""

from typing import NamedTuple

from localoss.plan.gpu_sizes import token_traffic
from localoss.plan.memory import Plan
from localoss.plan.speed import CALLS_S, SHARE, Estimate, decode_bytes, token_s
from quant.format.sizes import class_bytes

CARD_BYTES_PER_S = 272e9  # published for a GeForce RTX 4060, which has 8 GB
# Measured with wgpu, the first on an H200, the second on lavapipe, where nothing crosses a bus: decisions.md.
DISPATCH_S = 4.5e-6
HAND_OVER_S = 0.4e-3  # a submit of 0.1 ms, and the smallest read-back, 0.25 to 0.5 ms


class Shares(NamedTuple):
    """Bytes of weights that a token reads on the GPU, and in this machine's memory."""

    on_gpu: int
    in_memory: int


def shares(plan: Plan) -> Shares:
    """What of a token's weights is read where."""
    every, config = class_bytes(plan.config, plan.dtypes), plan.config
    experts = every["experts"] // config.layers
    dense = plan.gpu_layers * (plan.layer_bytes - experts)
    chosen = plan.gpu_expert_layers * experts * config.active_experts // config.experts
    unembedding = every["unembedding"] if plan.unembeds_on_gpu else 0
    on_gpu = dense + chosen + unembedding
    return Shares(on_gpu, max(decode_bytes(plan) - on_gpu, 0))


def dispatches(plan: Plan) -> int:
    """Of a token, where an expert's bytes fit one binding: see gpu/lane.py."""
    return 5 * plan.gpu_layers + plan.gpu_expert_layers + (2 if plan.unembeds_on_gpu else 0)


def gpu_estimate(plan: Plan, card_bytes_per_s: float = CARD_BYTES_PER_S) -> Estimate:
    """How fast `plan` decodes, its weights all in memory or on a card of this bandwidth.

    What a token does is one after another: attention on the card, experts on the cores, layer by layer.
    """
    read, config = shares(plan), plan.config
    _, bandwidth, source = token_s(plan)
    elsewhere = plan.gpu_layers - plan.gpu_expert_layers
    cpu_layers = config.layers - plan.gpu_expert_layers
    traffic = token_traffic(config, elsewhere, plan.unembeds_on_gpu)
    seconds = read.on_gpu / card_bytes_per_s + dispatches(plan) * DISPATCH_S + traffic.submits * HAND_OVER_S
    seconds += read.in_memory / (SHARE * bandwidth) + CALLS_S * cpu_layers / config.layers
    on_card = plan.on_gpu["KV cache"] // plan.slots
    cache = plan.kv_cache_bytes // plan.slots
    full = seconds + on_card / card_bytes_per_s + cache / (SHARE * bandwidth)
    return Estimate(1 / seconds, 1 / full, source)
