"""Choosing a token among V logits in about a millisecond: a few passes over them, sorting only near a cut.

Tokens are ordered by falling weight, equal weights by rising id; top-k and top-p keep a prefix of that order.
"""

import numpy as np
from numba import carray

from localoss.kernels.simd import (
    add,
    exp,
    inner,
    jit,
    load_f32x8,
    max_lanes,
    maximum,
    mul,
    splat_f32,
    store_f32x8,
    sub,
    sum_lanes,
    to_pointer,
    zero,
)

_BINS = 2048  # a weight in (0, 1] falls in the bin of its float32's upper bits: 8 bins to a power of 2
_SPAN = 256  # weights that are summed together before sums of sums
_LEAST = 1.7e-38  # a little over e**-87, which simd.exp gives for everything further down


@inner
def _bin(weight_bits):
    return weight_bits >> 20


@jit
def load(work, logits):
    """Copy logits (V,) f32 to the front of work, and give ln Σ exp(logits): one pass less over them.

    Arrays; work (V rounded up to 8,) f32, of which what lies behind V is -inf. Sums of a span in f32, of
    spans in f64.
    """
    source, target = logits.ctypes.data, work.ctypes.data
    top = splat_f32(-np.inf)
    in_eights = len(logits) // 8 * 8
    for i in range(in_eights, len(logits)):  # a slice's assignment takes Numba a second to compile
        work[i] = logits[i]
    for i in range(0, in_eights, 8):
        here = load_f32x8(source + 4 * i)
        store_f32x8(target + 4 * i, here)
        top = maximum(top, here)
    if in_eights < len(work):
        top = maximum(top, load_f32x8(target + 4 * in_eights))
    largest = max_lanes(top)
    shift, total = splat_f32(largest), np.float64(0.0)
    for first in range(0, len(work), _SPAN):
        span = zero()
        for i in range(first, min(first + _SPAN, len(work)), 8):
            span = add(span, exp(sub(load_f32x8(target + 4 * i), shift)))
        total += np.float64(sum_lanes(span))
    return np.float64(largest) + np.log(total)


@jit
def rule_out(work, mask, vocab):
    """Write -inf to work (≥ V,) f32, an array, where mask (V,) u8 is zero; mask is an address, since one that
    can't be written to would be of another type.
    """
    allowed = carray(to_pointer(mask), vocab, np.uint8)
    for i in range(vocab):
        work[i] = work[i] if allowed[i] else np.float32(-np.inf)


@jit
def best(logits):
    """The id of the largest logit, the lowest of equals: span by span, then within one."""
    at, in_eights = logits.ctypes.data, len(logits) // 8 * 8
    top, where = np.float32(-np.inf), 0
    for first in range(0, in_eights, _SPAN):
        span = load_f32x8(at + 4 * first)
        for i in range(first + 8, min(first + _SPAN, in_eights), 8):
            span = maximum(span, load_f32x8(at + 4 * i))
        here = max_lanes(span)
        if here > top:
            top, where = here, first
    for i in range(in_eights, len(logits)):
        if logits[i] > top:
            top, where = logits[i], i
    while where < len(logits) - 1 and logits[where] != top:
        where += 1
    return where


@jit
def penalize(logits, drawn, read, frequency, presence, repetition):
    """Lower the logits of tokens that were drawn or read.

    logits (≥ V,) f32 array. drawn (V,) i32: how often each was. read (V,) u8: whether it was in the prompt.
    """
    for i in range(len(drawn)):
        if drawn[i] or read[i]:
            logit = logits[i]
            logit = logit / repetition if logit > 0 else logit * repetition
            if drawn[i]:
                logit -= frequency * drawn[i] + presence
            logits[i] = logit


@jit
def add_bias(logits, ids, bias):
    """Add bias (n,) f32 to the logits, a f32 array, of ids (n,) i64 within it; others are left out."""
    for i in range(len(ids)):
        if 0 <= ids[i] < len(logits):
            logits[ids[i]] += bias[i]


@jit
def to_weights(weights, logits, temperature):
    """Write exp((logits - max) / temperature) to weights, 0 for what is as good as none.

    (V,) f32 arrays, V a multiple of 8.
    """
    largest = logits[best(logits)]
    shift, factor = splat_f32(largest), splat_f32(1.0 / temperature)
    source, target = logits.ctypes.data, weights.ctypes.data
    for i in range(0, 4 * len(logits), 32):
        store_f32x8(target + i, exp(mul(sub(load_f32x8(source + i), shift), factor)))
    for i in range(len(logits)):
        # Zeros need no sorting: the many that a mask or a low temperature leaves. And NaN has no bin.
        if not weights[i] >= _LEAST:
            weights[i] = 0.0


@inner
def _sift(heap, n, weights, at):
    """Bring the token at place `at` of a heap of `n` tokens to where it belongs: the heaviest is the root.

    A heap, not argsort: Numba takes a second to compile that.
    """
    token = heap[at]
    while 2 * at + 1 < n:
        child = 2 * at + 1
        if child + 1 < n and _comes_before(weights, heap[child + 1], heap[child]):
            child += 1
        if _comes_before(weights, token, heap[child]):
            break
        heap[at], at = heap[child], child
    heap[at] = token


@inner
def _comes_before(weights, a, b):
    return weights[a] > weights[b] or (weights[a] == weights[b] and a < b)


@jit
def keep_prefix(weights, most, mass):
    """Zero all but the shortest prefix, of at most `most` tokens, whose weights add up to `mass`; give their
    sum.

    weights (V,) f32 array. Sums in f64.
    """
    bits = weights.view(np.uint32)
    counts, masses = np.zeros(_BINS, np.int64), np.zeros(_BINS, np.float64)
    for i in range(len(weights)):
        counts[_bin(bits[i])] += 1
        masses[_bin(bits[i])] += weights[i]
    kept, total, cut = 0, 0.0, _BINS - 1
    while cut > 0 and kept + counts[cut] < most and total + masses[cut] < mass:
        kept, total, cut = kept + counts[cut], total + masses[cut], cut - 1

    inside = np.empty(counts[cut], np.int64)  # the tokens of the bin with the cut, the first one at the root
    n = 0
    for i in range(len(weights)):
        if _bin(bits[i]) < cut:
            weights[i] = 0.0
        elif _bin(bits[i]) == cut and weights[i] > 0:
            inside[n] = i
            n += 1
    for at in range(n // 2 - 1, -1, -1):
        _sift(inside, n, weights, at)
    while n > 0 and kept < most and total < mass:
        kept, total, n = kept + 1, total + weights[inside[0]], n - 1
        inside[0] = inside[n]
        _sift(inside, n, weights, 0)
    for i in range(n):
        weights[inside[i]] = 0.0
    return total


@jit
def drop_below(weights, least):
    """Zero the weights below `least`, and give the sum of the others. weights (V,) f32 array. Sums in f64."""
    total = 0.0
    for i in range(len(weights)):
        if weights[i] < least:
            weights[i] = 0.0
        total += weights[i]
    return total


@jit
def draw(weights, uniform):
    """The token at which the running sum of weights passes `uniform`, in [0, 1), of the whole; f64 sums."""
    spans = (len(weights) + _SPAN - 1) // _SPAN
    sums = np.zeros(spans, np.float64)
    for s in range(spans):
        for weight in weights[s * _SPAN : (s + 1) * _SPAN]:
            sums[s] += weight
    left = uniform * sums.sum()
    s = 0
    while s < spans - 1 and left >= sums[s]:
        left -= sums[s]
        s += 1
    chosen = -1
    for i in range(s * _SPAN, min((s + 1) * _SPAN, len(weights))):
        if weights[i] > 0:
            chosen = i
            if left < weights[i]:
                return chosen
            left -= weights[i]
    if chosen >= 0:
        return chosen  # rounding used the span up: its last token
    return best(weights)
