"""The kernels of a layer in their order. Calling them one by one from Python cost a decoded token 4 % more.

What threads share is called by address, see sharing.py: packed arguments have just the types that are listed
there, hence the casts.
Parameters named after buffers are addresses, unless their description says "array". `work` and `buffers` are
plain tuples in the order of Work and ExpertBuffers: a caller passes tuple(Work(...)), since a named one would
have every kernel compiled for a type of its own.
"""

from typing import NamedTuple

import numpy as np
from numba import carray

from localoss.kernels import activations, experts
from localoss.kernels.activations import quantize, rms_norm, sort_by_expert
from localoss.kernels.activations import route as choose_experts
from localoss.kernels.attention import attention
from localoss.kernels.experts import list_active
from localoss.kernels.kv_store import rotate_and_store
from localoss.kernels.low_rank import DOWN, GATE_UP, expand_for_experts, reduce_for_experts
from localoss.kernels.low_rank import add_low_rank as add_low_rank
from localoss.kernels.matmul import matmul, take_panels
from localoss.kernels.products import BF16, OFFSETS
from localoss.kernels.sharing import SHARE, worker
from localoss.kernels.simd import inner, jit, to_pointer


class Routines(NamedTuple):
    """Addresses of what the kernels here have threads do, and of what shares it among them."""

    share: int
    norm: int
    quantize: int
    multiply: int
    gather: int
    gate_up: int
    down: int
    add_experts: int


ROUTINES = {
    "share": SHARE,
    "norm": worker(activations.norm_tokens),
    "quantize": worker(activations.quantize_blocks),
    "multiply": worker(take_panels),
    "gather": worker(activations.gather_blocks),
    "gate_up": worker(experts.gate_up_in_threads),
    "down": worker(experts.down_in_threads),
    "add_experts": worker(activations.add_experts_of_tokens),
}


def routines(exact: bool) -> Routines:
    """Their addresses. exact: whether experts' activations stay float32; else nothing is gathered."""
    left_out = () if exact else ("gather",)
    found = {name: 0 if name in left_out else one.address for name, one in ROUTINES.items()}
    return Routines(**found)


class Work(NamedTuple):
    """What every product takes."""

    routines: tuple[int, ...]  # Routines

    workers: tuple[int, int, int, int]  # see matmul.py
    exact: bool  # activations stay float32
    blocks: int  # address of a product's input (D/32, T, 32) f32
    codes: int  # address of the same, quantized
    scales: int  # address of its scales
    in_order: int  # address of (T,) i32: 0, 1, 2, …


class ExpertBuffers(NamedTuple):
    """Addresses of what the two phases of a mixture of experts write, T the most tokens of a pass."""

    experts: int  # E, a number
    active_experts: int  # A, a number
    logits: int  # (T, E rounded up to 8) f32: the router's
    ids: int  # (T, A) i32: each token's experts
    weights: int  # (T, A) f32: of these
    starts: int  # (E + 1,) i64: see activations.sort_by_expert
    sources: int  # (T * A,) i32: the token of each (token, expert) pair, sorted by expert
    places: int  # (T, A) i32: where each token's pairs are among these
    active: int  # (E,) i32: the experts that have tokens
    gathered: int  # the experts' input in float32
    h: int  # what gate_up writes
    h_scales: int  # its scales
    y: int  # what down writes


@jit
def multiply(out, tiles, tokens, adding, work):
    """out (tokens, rows) f32 = W @ blocks + bias, or out += … if `adding`; blocks (D/32, tokens, 32) f32."""
    its, workers, exact, blocks, codes, scales, in_order = Work(*work)
    run = Routines(*its)
    kind, columns = tiles[0], tiles[5]
    exact, x = exact or kind == BF16, blocks
    if not exact:
        x = codes
        rows = carray(to_pointer(in_order), tokens, np.int32)
        offset, at = np.int64(OFFSETS[kind]), (run.share, run.quantize)
        quantize(codes, scales, blocks, rows, tokens, columns, offset, workers[0], at)
    matmul(out, tiles, (exact, x, scales), tokens, adding, workers, (run.share, run.multiply))


@inner
def _norm(x, norm, columns, tokens, work):
    """work's blocks = norm(x); x (tokens, columns) f32."""
    own, (weight, eps) = Work(*work), norm
    run = Routines(*own.routines)
    rms_norm(own.blocks, x, weight, tokens, columns, eps, own.workers[0], (run.share, run.norm))


@jit
def norm_and_multiply(out, x, weight, eps, tiles, tokens, work):
    """out (tokens, rows) f32 = W @ norm(x) + bias; x (tokens, D) f32, weight (D,) f32."""
    _norm(x, (weight, eps), 32 * tiles[5], tokens, work)
    multiply(out, tiles, tokens, np.bool_(False), work)


@jit
def attend(out, out_first, qkv, cache, angles, offsets, sinks, position, window, scratch, counter, run):
    """Rotate and store the new positions of one sequence, then attend.

    run: attention.routines of the cache's type. All else: see attention.py and kv_store.py, whose cos and sin
    are `angles`.
    """
    cos, sin = angles
    threads, heads = len(scratch), len(sinks)
    rotate_and_store(qkv, cache, cos, sin, offsets, position, heads, threads, (run[0], run[1]))
    at = (run[0], run[2], run[3])
    attention(out, out_first, qkv, cache, offsets, sinks, position, window, scratch, counter, at)


@inner
def _choices(own, tokens):
    """Arrays over what `own`, ExpertBuffers, says of who goes where: ids, weights, places, starts, active."""
    pairs = (tokens, own.active_experts)
    return (
        carray(to_pointer(own.ids), pairs, np.int32),
        carray(to_pointer(own.weights), pairs, np.float32),
        carray(to_pointer(own.places), pairs, np.int32),
        carray(to_pointer(own.starts), own.experts + 1, np.int64),
        carray(to_pointer(own.active), own.experts, np.int32),
    )


@jit
def score_experts(x, norm, router, buffers, tokens, work):
    """The router's logits without their bias: the first half of `route`; adapters add theirs after it."""
    weight, eps = norm
    norm_and_multiply(ExpertBuffers(*buffers).logits, x, weight, eps, router, tokens, work)


@jit
def choose(groups, router_bias, buffers, tokens):
    """Choose each token's experts by logits in so many row groups: the second half of `route`."""
    own = ExpertBuffers(*buffers)
    ids, weights, _, _, _ = _choices(own, tokens)
    logits = carray(to_pointer(own.logits), (tokens, 8 * groups), np.float32)
    choose_experts(ids, weights, logits, router_bias)
    return sort_choices(buffers, tokens)


@jit
def sort_choices(buffers, tokens):
    """Order what is chosen by expert, as run_experts wants it. Gives how many experts have tokens."""
    own = ExpertBuffers(*buffers)
    ids, _, places, starts, active = _choices(own, tokens)
    sort_by_expert(starts, carray(to_pointer(own.sources), ids.size, np.int32), places, ids)
    return list_active(active, starts)


@jit
def take_choices(x, norm, columns, buffers, tokens, work):
    """As `route`, of x (tokens, columns) whose experts and their weights are in the buffers already."""
    _norm(x, norm, columns, tokens, work)
    return sort_choices(buffers, tokens)


@jit
def route(x, norm, router, router_bias, buffers, tokens, work):
    """Choose each token's experts: the first phase of a mixture of experts. Gives how many have tokens.

    x (tokens, D) f32. norm (weight (D,) f32, eps). router: tiles. router_bias array (E,) f32. buffers: see
    ExpertBuffers; all from logits to active is written. norm(x) is left in work's blocks for run_experts.
    """
    score_experts(x, norm, router, buffers, tokens, work)
    return choose(router[4], router_bias, buffers, tokens)


@jit
def run_experts(x, both, buffers, which, tokens, work, factors):
    """x (tokens, D) f32 += Σ weight * expert(norm(x)) over the experts that `route` chose: the second phase.

    both: gate_up and down as tiles of offsets, runs array (E,) i64 of which those of the experts in turn
    are read, SwiGLU's alpha and limit. buffers: see ExpertBuffers. work: as `route` left it. which (first,
    end, count): the experts in turn are active[first:end] of `count`. Where they come in several calls, in
    any order, the last one adds them all up, so that no order changes a bit. factors: those of adapters, see
    low_rank.py; None for none.
    """
    gate_up_tiles, down_tiles, runs, alpha, limit = both
    first, end, count = which
    own = ExpertBuffers(*buffers)
    its, workers, exact, blocks, codes, scales, _ = Work(*work)
    run = Routines(*its)
    _, weights, places, starts, active = _choices(own, tokens)
    chosen = active[first:end]

    exact = exact or gate_up_tiles[0] == BF16
    pairs = carray(to_pointer(own.sources), weights.size, np.int32)
    columns, inputs = gate_up_tiles[5], codes
    if exact:
        inputs = own.gathered
    if first == 0:
        if exact:
            at = (run.share, run.gather)
            activations.gather(own.gathered, blocks, pairs, tokens, columns, workers[0], at)
        else:
            offset, at = np.int64(OFFSETS[gate_up_tiles[0]]), (run.share, run.quantize)
            quantize(codes, scales, blocks, pairs, tokens, columns, offset, workers[0], at)
    between = (exact, own.h, own.h_scales)
    x_places, kind = (exact, inputs, scales), gate_up_tiles[0]
    down_at = (run.share, run.down)
    if factors is None:
        at = (run.share, run.gate_up)
        experts.gate_up(between, gate_up_tiles, runs, x_places, starts, chosen, alpha, limit, workers, at)
        experts.down(own.y, down_tiles, runs, between, starts, chosen, workers, down_at)
    else:
        none = np.int64(0)
        normed = (np.bool_(True), blocks, none, none, columns, np.int64(tokens), none)
        reduce_for_experts(np.int64(GATE_UP), factors, normed, pairs, starts, chosen)
        added = (factors, pairs)
        experts.gate_up_with_adapters(
            between, gate_up_tiles, runs, x_places, starts, chosen, alpha, limit, workers, added
        )
        activated = (exact, own.h, own.h, own.h_scales, down_tiles[5], len(pairs), np.int64(OFFSETS[kind]))
        reduce_for_experts(np.int64(DOWN), factors, activated, pairs, starts, chosen)
        experts.down(own.y, down_tiles, runs, between, starts, chosen, workers, down_at)
        expand_for_experts(own.y, down_tiles[4], factors, pairs, starts, chosen)
    if end == count:
        at = (run.share, run.add_experts)
        activations.add_experts(x, own.y, places, weights, 32 * columns, workers[0], at)
