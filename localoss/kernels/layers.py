"""A pass through several layers in one compiled call.

Python between two kernels finds its objects out of the processor's caches, for the weights went through them:
0.1 ms a layer, in which the memory rests. The kernels of layer.py are called by address here, see calls.py.
"""

from typing import NamedTuple

import numpy as np
from numba import carray, types
from numba.extending import overload

from localoss.kernels.calls import call, call_for_number
from localoss.kernels.simd import inner, jit, to_pointer
from localoss.plan.sizes import CACHE_GROUP, KEY_LANES

# What stands where in a row of the table of layers: addresses, tiles of six numbers each, and a window.
ATTENTION_NORM, QKV, KEY_BIAS, SINKS, OUTPUT = 0, 1, 7, 8, 9
MLP_NORM, ROUTER, ROUTER_BIAS, EXPERT_RUNS, WINDOW, LAYER_FIELDS = 15, 16, 22, 23, 24, 25
# And in a row of the table of sequences: see stack.Rows; angles are addresses, caches that of a table.
FIRST, TOKENS, POSITION, COS, SIN, CACHES, SEQUENCE_FIELDS = 0, 1, 2, 3, 4, 5, 6
CACHE_FIELDS = 6  # in a row of a sequence's table of caches: five addresses, and slots


class EntryPoints(NamedTuple):
    """Addresses of layer.py's kernels as they were compiled for one form of model and cache."""

    norm_and_multiply: int
    attend: int
    multiply: int
    route: int
    run_experts: int


class Shape(NamedTuple):
    """Numbers of a model that arrays are made with."""

    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    blocks: int  # of the context: see rope.Rope.offsets
    block: int
    threads: int
    scratch: int  # floats of each thread


class Places(NamedTuple):
    """Addresses of buffers and tables that are the same in every pass."""

    qkv: int
    qkv_bytes: int  # from row to row, a number
    out: int
    first_angles: int
    within: int
    scratch: int
    counter: int


def _cache_arrays(keys, at, slots, shape):
    """A layer's cache as attention.py has it; array `keys` says of what type its numbers are."""


@overload(_cache_arrays)
def _overload_cache_arrays(keys, at, slots, shape):
    dtype = getattr(np, keys.dtype.name)
    is_coded = keys.dtype == types.int8

    def arrays(keys, at, slots, shape):
        heads, dim = shape.kv_heads, shape.head_dim
        coded = slots if is_coded else 0
        groups = (dim + CACHE_GROUP - 1) // CACHE_GROUP
        lanes = coded // KEY_LANES
        return (
            carray(to_pointer(at[0]), (heads, slots // KEY_LANES, dim, KEY_LANES), dtype),
            carray(to_pointer(at[1]), (heads, slots, dim), dtype),
            carray(to_pointer(at[2]), (heads, lanes, dim // 4, KEY_LANES), np.uint8),
            carray(to_pointer(at[3]), (heads, lanes, groups, KEY_LANES), np.uint8),
            carray(to_pointer(at[4]), (heads, coded, groups), np.uint8),
        )

    return arrays


@inner
def _tiles(row, first):
    return row[first], row[first + 1], row[first + 2], row[first + 3], row[first + 4], row[first + 5]


@inner
def _attend_all(attend, attending, row, index, sequences, keys, shape, places, tokens):
    """Each sequence's attention over its own cache, in layer `index` whose row this is."""
    half, heads = shape.head_dim // 2, shape.kv_heads
    columns = (shape.heads + 2 * heads) * shape.head_dim
    out = carray(to_pointer(places.out), (shape.heads * shape.head_dim // 32, tokens, 32), np.float32)
    offsets = (
        carray(to_pointer(row[KEY_BIAS]), (heads, shape.head_dim), np.float32),
        carray(to_pointer(places.first_angles), (shape.blocks, 2, half), np.float32),
        carray(to_pointer(places.within), (2, half, shape.block), np.float32),
    )
    sinks = carray(to_pointer(row[SINKS]), shape.heads, np.float32)
    scratch = carray(to_pointer(places.scratch), (shape.threads, shape.scratch), np.float32)
    for s in range(len(sequences)):
        own = sequences[s]
        cache = carray(to_pointer(own[CACHES] + 8 * CACHE_FIELDS * index), CACHE_FIELDS, np.int64)
        count = own[TOKENS]
        qkv = carray(to_pointer(places.qkv + places.qkv_bytes * own[FIRST]), (count, columns), np.float32)
        angles = (
            carray(to_pointer(own[COS]), (count, half), np.float32),
            carray(to_pointer(own[SIN]), (count, half), np.float32),
        )
        arrays = _cache_arrays(keys, cache, cache[5], shape)
        window, counter, rows = row[WINDOW], places.counter, (out, own[FIRST], qkv)
        call(
            attend,
            (*rows, arrays, angles, offsets, sinks, own[POSITION], window, scratch, counter, attending),
        )


@jit
def run_layers(
    kernels,
    attending,
    x,
    tokens,
    span,
    layers,
    sequences,
    keys,
    shape,
    places,
    experts,
    numbers,
    buffers,
    work,
):
    """Bring x (tokens, D) f32 through layers span[0] to span[1] - 1, and write the sequences' caches.

    kernels: EntryPoints, shape: Shape, places: Places, as plain tuples. attending: attention.routines.
    layers (L, LAYER_FIELDS), sequences (n, SEQUENCE_FIELDS): i64 arrays. keys: an array of the type of
    caches' numbers. experts: gate_up and down as tiles of offsets. numbers: the norms' eps, SwiGLU's alpha
    and limit. The rest: see layer.py.
    """
    run, its_shape, at = EntryPoints(*kernels), Shape(*shape), Places(*places)
    eps, alpha, limit = numbers
    gate_up, down = experts
    for index in range(span[0], span[1]):
        row = layers[index]
        call(
            run.norm_and_multiply,
            (at.qkv, x, row[ATTENTION_NORM], eps, _tiles(row, QKV), tokens, work),
        )
        _attend_all(run.attend, attending, row, np.int64(index), sequences, keys, its_shape, at, tokens)
        call(run.multiply, (x, _tiles(row, OUTPUT), tokens, np.bool_(True), work))
        bias = carray(to_pointer(row[ROUTER_BIAS]), its_shape.experts, np.float32)
        norm = (row[MLP_NORM], eps)
        count = call_for_number(run.route, (x, norm, _tiles(row, ROUTER), bias, buffers, tokens, work))
        runs = carray(to_pointer(row[EXPERT_RUNS]), its_shape.experts, np.int64)
        its = (gate_up, down, runs, alpha, limit)
        which = (np.int64(0), count, count)
        call(run.run_experts, (x, its, buffers, which, tokens, work, None))
