"""The kernels of a layer in their order. Calling them one by one from Python cost a decoded token 4 % more.

A literal or an unsigned argument would compile what is called once more: hence the casts.
Parameters named after buffers are addresses, unless their description says "array". `work` and `buffers` are
plain tuples in the order of Work and ExpertBuffers: a caller passes tuple(Work(...)), since a named one would
have every kernel compiled for a type of its own.
"""

from typing import Any, NamedTuple

import numpy as np

from localoss.kernels.activations import add_experts, gather, quantize, rms_norm, sort_by_expert
from localoss.kernels.activations import route as choose_experts
from localoss.kernels.attention import attention
from localoss.kernels.experts import down, gate_up, list_active
from localoss.kernels.kv_store import rotate_and_store
from localoss.kernels.matmul import matmul
from localoss.kernels.products import BF16, OFFSETS
from localoss.kernels.simd import jit


class Work(NamedTuple):
    """What every product takes."""

    workers: tuple[int, int, int]  # see matmul.py
    exact: bool  # activations stay float32
    blocks: int  # address of a product's input (D/32, T, 32) f32
    codes: int  # address of the same, quantized
    scales: int  # address of its scales
    in_order: Any  # array (T,) i32 of 0, 1, 2, …


class ExpertBuffers(NamedTuple):
    """What the two phases of a mixture of experts write, T the most tokens of a pass and A active experts."""

    logits: Any  # array (T, E) f32: the router's
    ids: Any  # array (T, A) i32: each token's experts
    weights: Any  # array (T, A) f32: of these
    starts: Any  # array (E + 1,) i64: see activations.sort_by_expert
    sources: Any  # array (T * A,) i32: the token of each (token, expert) pair, sorted by expert
    places: Any  # array (T, A) i32: where each token's pairs are among these
    active: Any  # array (E,) i32: the experts that have tokens
    gathered: int  # address of the experts' input in float32
    h: int  # address of what gate_up writes
    h_scales: int  # address of its scales
    y: int  # address of what down writes


@jit
def multiply(out, tiles, tokens, adding, work):
    """out (tokens, rows) f32 = W @ blocks + bias, or out += … if `adding`; blocks (D/32, tokens, 32) f32."""
    workers, exact, blocks, codes, scales, in_order = Work(*work)
    kind, columns = tiles[0], tiles[5]
    exact, x = exact or kind == BF16, blocks
    if not exact:
        x = codes
        quantize(codes, scales, blocks, in_order[:tokens], tokens, columns, OFFSETS[kind])
    matmul(out, tiles, (exact, x, scales), tokens, adding, workers)


@jit
def norm_and_multiply(out, x, weight, eps, tiles, tokens, work):
    """out (tokens, rows) f32 = W @ norm(x) + bias; x (tokens, D) f32, weight (D,) f32."""
    rms_norm(Work(*work).blocks, x, weight, tokens, 32 * tiles[5], eps)
    multiply(out, tiles, tokens, np.bool_(False), work)


@jit
def attend(out, out_first, qkv, cache, angles, offsets, sinks, position, window, scratch, counter):
    """Rotate and store the new positions of one sequence, then attend.

    Parameters: see attention.py and kv_store.py, whose cos and sin are `angles`.
    """
    rotate_and_store(qkv, cache, *angles, offsets, position, len(sinks))
    attention(out, out_first, qkv, cache, offsets, sinks, position, window, scratch, counter)


@jit
def route(x, norm, router, router_bias, buffers, tokens, work):
    """Choose each token's experts: the first phase of a mixture of experts. Gives how many have tokens.

    x (tokens, D) f32. norm (weight (D,) f32, eps). router: tiles. router_bias array (E,) f32. buffers: see
    ExpertBuffers; all from logits to active is written. norm(x) is left in work's blocks for run_experts.
    """
    weight, eps = norm
    own = ExpertBuffers(*buffers)
    ids = own.ids[:tokens]
    norm_and_multiply(np.int64(own.logits.ctypes.data), x, weight, eps, router, tokens, work)
    choose_experts(ids, own.weights[:tokens], own.logits, router_bias)
    sort_by_expert(own.starts, own.sources, own.places[:tokens], ids)
    return list_active(own.active, own.starts)


@jit
def run_experts(x, experts, buffers, which, tokens, work):
    """x (tokens, D) f32 += Σ weight * expert(norm(x)) over the experts that `route` chose: the second phase.

    experts: gate_up and down as tiles of offsets, runs array (E,) i64 of which those of the experts in turn
    are read, SwiGLU's alpha and limit. buffers: see ExpertBuffers. work: as `route` left it. which (first,
    end, count): the experts in turn are active[first:end] of `count`. Where they come in several calls, in
    any order, the last one adds them all up, so that no order changes a bit.
    """
    gate_up_tiles, down_tiles, runs, alpha, limit = experts
    first, end, count = which
    own = ExpertBuffers(*buffers)
    workers, exact, blocks, codes, scales, _ = Work(*work)
    weights, places, chosen = own.weights[:tokens], own.places[:tokens], own.active[first:end]

    exact = exact or gate_up_tiles[0] == BF16
    pairs, columns, inputs = own.sources[: weights.size], gate_up_tiles[5], codes
    if exact:
        inputs = own.gathered
    if first == 0:
        if exact:
            gather(own.gathered, blocks, pairs, tokens, columns)
        else:
            quantize(codes, scales, blocks, pairs, tokens, columns, OFFSETS[gate_up_tiles[0]])
    between = (exact, own.h, own.h_scales)
    gate_up(between, gate_up_tiles, runs, (exact, inputs, scales), own.starts, chosen, alpha, limit, workers)
    down(own.y, down_tiles, runs, between, own.starts, chosen, workers)
    if end == count:
        add_experts(x, own.y, places, weights, 32 * columns)
