"""What uses an instruction set's own operations, as Numba compiles it: the innermost loops, and little else.

All that calls these loops is the same on each set and takes most of the time to compile: test_variants.py
runs this file on every set, and the tests of the whole kernels on each in `make soak`.
"""

import numpy as np
import pytest
from support.tiled import (
    WAYS,
    activations_of,
    address,
    assert_product,
    limits_of,
    random_activations,
    random_weights,
    weights_of,
)

from localoss.kernels import activations, attention, isa
from localoss.kernels.products import OFFSETS, add_row_group
from localoss.kernels.simd import jit, load_f32x8, store_f32x8
from localoss.plan.sizes import KEY_LANES, KEYS_AT_ONCE, TILE_SCRATCH_BYTES

# What Python can call of what kernels alone call.


@jit
def one_row_group(*own):
    add_row_group(*own)


@jit
def one_block(*own):
    activations._quantize_block_of_all(*own)


@jit
def one_score(*own):
    attention._score_keys(*own)


@jit
def one_result(*own):
    attention._add_values(*own)


def multiply(weights, x):
    """x @ weights.T (T, R), a row group after the other."""
    tokens = len(x.values)
    groups, blocks, _ = weights.codes.shape
    sums, scratch = np.zeros((groups, tokens, 8), np.float32), np.empty(TILE_SCRATCH_BYTES, np.uint8)
    exact, values, scales = x.inputs
    for g in range(groups):
        its_scales = 0 if weights.scales is None else address(weights.scales[g:])
        one_row_group(
            *(weights.kind, exact, address(sums[g:]), address(weights.codes[g:]), its_scales),
            *(values, scales, tokens, tokens, blocks, address(scratch)),
        )
    return sums.swapaxes(0, 1).reshape(tokens, -1)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(("dtype", "exact"), WAYS)
def test_row_groups(dtype, exact, tokens):
    weights = random_weights(dtype, 152, 160, seed=tokens)
    x = random_activations(weights.kind, exact, tokens, 160, seed=1)
    assert_product(multiply(weights, x), x, weights)


@pytest.mark.parametrize("dtype", ["mxfp4", "int4", "int8"])
def test_integers_are_exact_at_their_limits(dtype):
    weights, codes = limits_of(dtype)
    x = activations_of(weights.kind, codes, np.ones((len(codes), 1), np.float32))
    np.testing.assert_array_equal(multiply(weights, x), x.values @ weights.values.T)
    for t in range(len(codes)):  # one token alone takes another way
        alone = activations_of(weights.kind, codes[t : t + 1], np.ones((1, 1), np.float32))
        np.testing.assert_array_equal(multiply(weights, alone), alone.values @ weights.values.T)


@pytest.mark.parametrize(
    "exponents", [(120, 134), (120, 135), (1, 15), (2, 16), (239, 253), (118, 124), (130, 130)]
)
def test_many_tokens_have_the_bits_of_each_alone(exponents):
    """Whether or not a row's exponents are near enough to each other to be multiplied to its integers."""
    rng = np.random.RandomState(7)
    scales = rng.randint(exponents[0], exponents[1] + 1, (24, 6)).astype(np.uint8)
    scales[:, 0], scales[:, 1] = exponents
    codes = rng.choice([7, 15, *range(16)], (24, 192)).astype(np.uint8)
    weights = weights_of("mxfp4", codes, scales)
    steps = rng.randint(-127, 128, (9, 192))
    factors = (rng.random_sample((9, 6)) + 0.5).astype(np.float32) * np.float32(2.0**-10)
    together = multiply(weights, activations_of(weights.kind, steps, factors))
    for t in range(9):
        alone = multiply(weights, activations_of(weights.kind, steps[t : t + 1], factors[t : t + 1]))
        np.testing.assert_array_equal(together[t : t + 1].view(np.int32), alone.view(np.int32))


@pytest.mark.parametrize("dtype", ["mxfp4", "int4", "int8"])
def test_what_is_quantized_has_the_offset_that_products_take_off(dtype):
    weights = random_weights(dtype, 8, 32, seed=0)
    values = np.random.RandomState(1).standard_normal((1, 32)).astype(np.float32)
    codes, scales = np.empty((1, 1, 32), np.int8), np.empty((1, 1), np.float32)
    whole = address(codes), address(scales), address(values)
    one_block(*whole, np.zeros(1, np.int32), 0, 1, OFFSETS[weights.kind])
    steps = np.rint(values / scales).astype(np.int64)
    x = activations_of(weights.kind, steps, scales)
    np.testing.assert_array_equal(codes, x.blocks)
    assert_product(multiply(weights, x), x, weights)


@jit
def store(out, values):
    for i in range(0, len(values), 8):
        isa.store_f16(out[i:].ctypes.data, load_f32x8(values[i:].ctypes.data))


@jit
def load(out, halves):
    for i in range(0, len(halves), 8):
        store_f32x8(out[i:].ctypes.data, isa.load_f16(halves[i:].ctypes.data))


def test_float16():
    """Every finite one, every number halfway between two, and their float32 neighbours."""
    halves = np.arange(0x7C00).astype(np.uint16).view(np.float16).astype(np.float32)
    edges = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2])
    numbers = [edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(65519))]
    numbers = np.concatenate(numbers + [-n for n in numbers])
    numbers = np.resize(numbers, -(-len(numbers) // 8) * 8).astype(np.float32)
    stored, loaded = np.empty(len(numbers), np.uint16), np.empty_like(numbers)
    store(stored, numbers)
    np.testing.assert_array_equal(stored, numbers.astype(np.float16).view(np.uint16))
    load(loaded, stored)
    np.testing.assert_array_equal(loaded, numbers.astype(np.float16).astype(np.float32))


def test_attention_products():
    """Scores of cached keys, and sums of values, in tiles as wide as the set's registers, and beside them."""
    rng = np.random.RandomState(0)
    rows, heads, slots, head_dim, slot = 24, 2, 128, 40, 64
    keys = rng.standard_normal((heads, slots, head_dim)).astype(np.float16)
    lanes = keys.reshape(heads, slots // KEY_LANES, KEY_LANES, head_dim).swapaxes(2, 3)
    queries = rng.standard_normal((rows, head_dim)).astype(np.float32)
    scores = np.full((rows, KEYS_AT_ONCE), np.nan, np.float32)
    one_score(scores, queries, np.ascontiguousarray(lanes).view(np.uint16), 1, slot, 32, 0)
    seen = keys[1, slot : slot + 32].astype(np.float64)
    np.testing.assert_allclose(scores[:, :32], queries @ seen.T, rtol=1e-5, atol=1e-5)
    assert np.isnan(scores[:, 32:]).all()
    results = np.ones((rows, head_dim), np.float32)
    one_result(results, scores, keys.view(np.uint16), 1, slot, 32, 0)
    np.testing.assert_allclose(results, 1 + scores[:, :32].astype(np.float64) @ seen, rtol=1e-5, atol=1e-4)
