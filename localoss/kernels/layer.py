"""The kernels of a layer in their order. Calling them one by one from Python cost a decoded token 4 % more.

`work` is (workers, exact, blocks, codes, scales, in_order): the workers of matmul.py; whether activations
stay float32; the addresses of a product's input, block by block, and of the same quantized; an array (T,) of
0, 1, 2, … A literal or an unsigned argument would compile what is called once more: hence the casts.
Parameters named after buffers are addresses, unless their description says "array".
"""

import numpy as np

from localoss.kernels.activations import add_experts, gather, quantize, rms_norm, route, sort_by_expert
from localoss.kernels.attention import attention, rotate_and_store
from localoss.kernels.experts import down, gate_up, list_active
from localoss.kernels.matmul import matmul
from localoss.kernels.products import BF16, OFFSETS
from localoss.kernels.simd import jit


@jit
def multiply(out, tiles, tokens, adding, work):
    """out (tokens, rows) f32 = W @ blocks + bias, or out += … if `adding`; blocks (D/32, tokens, 32) f32."""
    workers, exact, blocks, codes, scales, in_order = work
    kind, columns = tiles[0], tiles[5]
    exact, x = exact or kind == BF16, blocks
    if not exact:
        x = codes
        quantize(codes, scales, blocks, in_order[:tokens], tokens, columns, OFFSETS[kind])
    matmul(out, tiles, (exact, x, scales), tokens, adding, workers)


@jit
def norm_and_multiply(out, x, weight, eps, tiles, tokens, work):
    """out (tokens, rows) f32 = W @ norm(x) + bias; x (tokens, D) f32, weight (D,) f32."""
    rms_norm(work[2], x, weight, tokens, 32 * tiles[5], eps)
    multiply(out, tiles, tokens, np.bool_(False), work)


@jit
def attend(out, out_first, qkv, cache, cos, sin, sinks, position, window, scratch, counter):
    """Rotate and store the new positions of one sequence, then attend. Parameters: see attention.py."""
    rotate_and_store(qkv, cache, cos, sin, position, len(sinks))
    attention(out, out_first, qkv, cache, sinks, position, window, scratch, counter)


@jit
def mixture_of_experts(x, norm, router, router_bias, experts, buffers, tokens, work):
    """x (tokens, D) f32 += Σ weight * expert(norm(x)) over each token's active experts.

    norm (weight (D,) f32, eps). router: tiles. router_bias array (E,) f32. experts: gate_up and down as tiles
    of offsets, runs array (E,) i64, SwiGLU's alpha and limit. buffers: arrays of activations.route and
    sort_by_expert, and addresses of what the two products read and write.
    """
    weight, eps = norm
    gate_up_tiles, down_tiles, runs, alpha, limit = experts
    logits, all_ids, all_weights, starts, sources, all_places, active, gathered, h, h_scales, y = buffers
    workers, exact, blocks, codes, scales, _ = work
    ids, weights, places = all_ids[:tokens], all_weights[:tokens], all_places[:tokens]

    exact = exact or gate_up_tiles[0] == BF16
    norm_and_multiply(np.int64(logits.ctypes.data), x, weight, eps, router, tokens, work)
    route(ids, weights, logits, router_bias)
    sort_by_expert(starts, sources, places, ids)
    chosen = active[: list_active(active, starts)]

    pairs, columns, inputs = sources[: ids.size], gate_up_tiles[5], gathered
    if exact:
        gather(gathered, blocks, pairs, tokens, columns)
    else:
        inputs = codes
        quantize(codes, scales, blocks, pairs, tokens, columns, OFFSETS[gate_up_tiles[0]])
    between = (exact, h, h_scales)
    gate_up(between, gate_up_tiles, runs, (exact, inputs, scales), starts, chosen, alpha, limit, workers)
    down(y, down_tiles, runs, between, starts, chosen, workers)
    add_experts(x, y, places, weights, 32 * columns)
