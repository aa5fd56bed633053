"""What a cluster is expected to do: tokens per second and time to the first token, form by form.

A decoded token reads its weights once, so memory decides; a prompt's tokens share them, so cores decide. What
Ray and the network add to each machine that a token visits is measured: docs/cluster.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from localoss.cluster.machines import Peer
from localoss.cluster.placement import Room, Share, place
from localoss.errors import UsageError
from localoss.plan.disk import ASSUMED_BYTES_PER_S, DiskSpeed
from localoss.plan.experts import Streaming, with_cache
from localoss.plan.machine import Machine
from localoss.plan.memory import FITS, Plan, choose_slots
from quant.format.config import ModelConfig
from quant.format.sizes import class_bytes

PROMPT_TOKENS = 512
CHUNK_TOKENS = 128  # of a prompt, which one machine runs while the next one has the chunk before
# A call of an actor and its answer, and what Ray takes for each byte that lies in its object store meanwhile,
# all without the network's own time; docs/cluster.md has the measurement.
CALL_S, STORED_S_PER_BYTE = 0.0015, 3.3e-9
_IN_CALL_BYTES = 100_000  # of an array; a larger one goes from store to store
_STORED_LATENCIES = 4  # one way each, until a store has asked who has an array and got it
_SHARE = 0.85  # of the memory's bandwidth that decoding reaches
_LAYER_S = 0.003 / 24  # what calling a layer's kernels takes whatever their size
# Products of a core and second while a prompt is read: half of what docs/performance.md has of a core with
# AVX-512, for a laptop's.
_PRODUCTS_PER_S = 75e9


@dataclass(frozen=True)
class Forecast:
    """One form. machines: that take part. answers: side by side, of all machines. tokens_per_s: of them all
    together. one_tokens_per_s: of an answer that is alone. first_token_s: of a prompt of PROMPT_TOKENS.
    from_disk: the share of the experts of a token that come from disks.
    """

    form: str
    machines: int
    answers: int
    tokens_per_s: float
    one_tokens_per_s: float
    first_token_s: float
    from_disk: float = 0.0


def call_s(peer: Peer, hidden: int, tokens: int, ways: int = 2) -> float:
    """What calling layers on another machine adds for so many tokens.

    ways: how often their residual stream crosses the network. A token's goes there and comes back, with the
    call and its answer; a chunk's goes on from machine to machine.
    """
    return CALL_S + 2 * peer.latency_s + ways * way_s(peer, hidden, tokens)


def way_s(peer: Peer, hidden: int, tokens: int) -> float:
    """What so many tokens' residual stream takes from machine to machine, without the call's own time."""
    size = tokens * hidden * 4
    if size <= _IN_CALL_BYTES:
        return size / peer.network
    return size / peer.network + STORED_S_PER_BYTE * size + _STORED_LATENCIES * peer.latency_s


def _hop_s(share: Share, peers: Sequence[Peer], hidden: int, tokens: int, ways: int = 2) -> float:
    """As call_s; the layers on the machine that asks are called by Ray, too, but over no network."""
    return call_s(peers[share.room], hidden, tokens, ways) if share.room else CALL_S


def forecasts(plan: Plan, peers: Sequence[Peer]) -> list[Forecast]:
    """What each form gives that can be run at all on these machines, all of them empty."""
    found = [*_whole(plan, peers)]
    if len(peers) > 1 and (spread := _spread(plan, peers)):
        found.append(spread)
    return found


def _whole(plan: Plan, peers: Sequence[Peer]) -> list[Forecast]:
    """Batches and serving: each machine has all layers, and is asked for whole answers."""
    kinds: dict[Peer, int] = {}
    for peer in peers:
        kinds[peer] = kinds.get(peer, 0) + 1
    machines = answers = 0
    together, ones, prompts, from_disk = 0.0, [], [], []
    for peer, count in kinds.items():
        limits = Machine(peer.memory_bytes, peer.memory_bytes)
        its = choose_slots(plan, limits.limit_bytes, plan.context_tokens)
        if its.verdict(limits.limit_bytes) != FITS:
            cached = with_cache(replace(plan, slots=1), limits.cache_limit_bytes)
            if cached is None:
                continue
            its = cached
        step_s = _token_s(its, peer, its.slots) + _vocabulary_s(plan, peer)
        machines, answers = machines + count, answers + count * its.slots
        together += count * its.slots / step_s
        ones.append(_token_s(its, peer, 1) + _vocabulary_s(plan, peer))
        prompts.append(_prompt_s(its, peer, PROMPT_TOKENS) + ones[-1])
        from_disk.append(_from_disk(its))
    if not machines:
        return []
    worst = Forecast(
        "batch", machines, answers, together, 1 / max(ones), max(prompts), max(from_disk, default=0.0)
    )
    return [worst, replace(worst, form="serve")]


def _spread(plan: Plan, peers: Sequence[Peer]) -> Forecast | None:
    """One model whose layers are shared out; the first machine asks, and has the vocabulary."""
    shares = shares_of(plan, peers)
    if shares is None:
        return None
    hidden, head = plan.config.hidden, peers[0]
    one = sum(_token_s(share.plan, peers[share.room], 1) for share in shares) + _vocabulary_s(plan, head)
    one += sum(_hop_s(share, peers, hidden, 1) for share in shares)
    # As many groups of answers as machines go round, so that none of these waits.
    groups = min(len(shares), plan.slots)
    each = -(-plan.slots // groups)
    stages = [
        _token_s(share.plan, peers[share.room], each) + _hop_s(share, peers, hidden, each) for share in shares
    ]
    step_s = sum(stages) + (groups - 1) * max(stages) + _vocabulary_s(plan, head)
    first_s = prompt_s(shares, peers, hidden, PROMPT_TOKENS) + one
    from_disk = max(_from_disk(share.plan) for share in shares)
    return Forecast("spread", len(shares), plan.slots, plan.slots / step_s, 1 / one, first_s, from_disk)


def shares_of(plan: Plan, peers: Sequence[Peer]) -> list[Share] | None:
    """Who runs which layers; None if they don't fit together. The first machine keeps the vocabulary, too."""
    rooms = []
    for number, peer in enumerate(peers):
        machine = Machine(peer.memory_bytes, peer.memory_bytes)
        taken = 0 if number else vocabulary_bytes(plan)
        limits = max(machine.limit_bytes - taken, 0), max(machine.cache_limit_bytes - taken, 0)
        rooms.append(Room(f"machine {number + 1}", *limits, peer.bandwidth))
    try:
        return place(plan, rooms)
    except UsageError:
        return None


def prompt_s(shares: Sequence[Share], peers: Sequence[Peer], hidden: int, tokens: int) -> float:
    """How long a prompt takes through all machines, chunk after chunk, each one a machine behind the last."""
    here = min(tokens, CHUNK_TOKENS)
    chunks = -(-tokens // here)
    stages = [
        _prompt_s(share.plan, peers[share.room], here) + _hop_s(share, peers, hidden, here, ways=1)
        for share in shares
    ]
    back_s = way_s(peers[shares[-1].room], hidden, here) if shares[-1].room else 0.0
    return sum(stages) + (chunks - 1) * max(stages) + back_s


def vocabulary_bytes(plan: Plan) -> int:
    """Of embedding and unembedding, which stay where the conversation is."""
    parts = class_bytes(plan.config, plan.dtypes)
    return parts["embedding"] + parts["unembedding"]


def _vocabulary_s(plan: Plan, peer: Peer) -> float:
    return class_bytes(plan.config, plan.dtypes)["unembedding"] / (_SHARE * peer.bandwidth)


def _token_s(plan: Plan, peer: Peer, sequences: int) -> float:
    """A step of so many sequences through the layers of `plan`: an expert that several want is read once."""
    config = plan.config
    parts = class_bytes(config, plan.dtypes)
    share = 1 - (1 - config.active_experts / config.experts) ** sequences
    dense = parts["attention"] + parts["routers and norms"]
    memory_s = (dense + parts["experts"] * share) / (_SHARE * peer.bandwidth)
    return memory_s + config.layers * _LAYER_S + _disk_s(plan, sequences)


def _disk_s(plan: Plan, tokens: int) -> float:
    """What reading experts takes for so many tokens, at what a laptop's disk gives."""
    if not plan.expert_slots:
        return 0.0
    streaming = Streaming(plan, DiskSpeed(ASSUMED_BYTES_PER_S))
    if tokens > plan.slots:  # a prompt's, which wants nearly all of them, one after the other
        missing = 1 - plan.expert_slots / streaming.experts
        return streaming.prompt_s(tokens) * min(1.0, 2 * missing)  # what comes in pushes out what comes next
    return tokens * streaming.token_bytes / ASSUMED_BYTES_PER_S


def _from_disk(plan: Plan) -> float:
    if not plan.expert_slots:
        return 0.0
    return 1 - Streaming(plan, DiskSpeed(ASSUMED_BYTES_PER_S)).hit_rate


def _prompt_s(plan: Plan, peer: Peer, tokens: int) -> float:
    """So many tokens of a prompt through the layers of `plan`: products, unless reading takes longer."""
    products_s = tokens * layer_products(plan.config) / (peer.cores * _PRODUCTS_PER_S)
    weights_s = _token_s(plan, peer, min(tokens, 64)) - _disk_s(plan, min(tokens, 64))
    return max(products_s, weights_s) + (_disk_s(plan, tokens) if plan.expert_slots else 0)


def layer_products(config: ModelConfig) -> int:
    """Multiplications of a token in all layers, attention to other tokens left out."""
    expert = 3 * config.hidden * config.intermediate
    dense = config.hidden * (config.qkv_rows + config.q_rows + config.experts)
    return config.layers * (dense + config.active_experts * expert)


def rounded(value: float) -> str:
    """Three digits: more would pretend."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{round(value, digits):,.{max(digits, 0)}f}"
