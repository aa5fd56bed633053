"""What lies between the products: exp, RMSNorm, quantizing, routing, adding up, against plain NumPy."""

import numpy as np
import pytest
from support import naive
from support.tiled import address, at, from_blocks, to_blocks

from localoss.kernels import activations as kernels
from localoss.kernels.simd import exp, jit, load_f32x8, splat_f32, store_f32x8


@jit
def exp_of(out, x):
    for i in range(0, len(x), 8):
        store_f32x8(out[i:].ctypes.data, exp(load_f32x8(x[i:].ctypes.data)))


@jit
def swiglu_of(out, gate, up, alpha, limit):
    for i in range(0, len(gate), 8):
        g, u = load_f32x8(gate[i:].ctypes.data), load_f32x8(up[i:].ctypes.data)
        store_f32x8(out[i:].ctypes.data, kernels.swiglu(g, u, splat_f32(alpha), splat_f32(limit)))


def random_x(tokens, columns, seed=0):
    return np.random.RandomState(seed).standard_normal((tokens, columns)).astype(np.float32)


# exp


def test_exp_to_two_units_in_the_last_place():
    x = np.concatenate([np.linspace(-87, 88, 100_000), np.linspace(-1e-3, 1e-3, 1000), [0.0] * 8])
    x = x.astype(np.float32)[: len(x) // 8 * 8]
    out = np.empty_like(x)
    exp_of(out, x)
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(out - expected) <= 2 * np.spacing(expected.astype(np.float32))).all()


def test_exp_at_its_ends():
    x = np.array([-np.inf, -1e30, -88, -87, 0, 88, np.nan, np.nan], np.float32)
    out = np.empty_like(x)
    exp_of(out, x)
    least = np.exp(-87.0)
    np.testing.assert_allclose(out[:6], [least, least, least, least, 1, np.exp(88.0)], rtol=1e-6)
    assert np.isnan(out[6:]).all(), "a NaN must not pass for a number"


# RMSNorm


@pytest.mark.parametrize(("tokens", "columns"), [(1, 32), (3, 96), (65, 160)])
def test_rms_norm(tokens, columns):
    x, weight = random_x(tokens, columns), random_x(1, columns, seed=1)[0]
    x[0] *= 1e-4  # where eps counts
    out = np.empty((columns // 32, tokens, 32), np.float32)
    kernels.rms_norm(
        address(out), address(x), address(weight), tokens, columns, np.float32(1e-5), 2, at("norm")
    )
    expected = naive.rmsnorm(x.astype(np.float64), weight.astype(np.float64), 1e-5)
    np.testing.assert_allclose(from_blocks(out), expected, rtol=2e-6, atol=1e-30)


def test_rms_norm_of_zeros_is_zeros():
    x, weight, out = np.zeros((1, 32), np.float32), np.ones(32, np.float32), np.ones(32, np.float32)
    kernels.rms_norm(address(out), address(x), address(weight), 1, 32, np.float32(1e-5), 2, at("norm"))
    assert (out == 0).all()


# Quantizing


@pytest.mark.parametrize("offset", [0, 128])
@pytest.mark.parametrize(("tokens", "places", "columns"), [(1, 1, 32), (3, 7, 96), (65, 130, 160)])
def test_quantize(tokens, places, columns, offset):
    rng = np.random.RandomState(tokens)
    x = random_x(tokens, columns) * np.exp(rng.uniform(-30, 30, (tokens, 1))).astype(np.float32)
    x[-1, :32] = 0
    sources = rng.randint(0, tokens, places).astype(np.int32)
    sources[0] = tokens - 1
    blocks = to_blocks(x)
    codes = np.empty((columns // 32, places, 32), np.int8)
    scales = np.empty((columns // 32, places), np.float32)
    own = address(codes), address(scales), address(blocks), sources, tokens, columns // 32, offset
    kernels.quantize(*own, 2, at("quantize"))
    wanted = blocks[:, sources]
    largest = np.abs(wanted).max(axis=2)
    np.testing.assert_allclose(scales, largest / 127, rtol=2e-7)
    steps = (codes.astype(np.int64) - offset + 128) % 256 - 128
    assert (np.abs(steps).max(axis=2)[largest > 0] == 127).all()
    assert (steps[largest == 0] == 0).all()
    # Rounded to the nearest step, but for what float32 loses on the way there.
    error = np.abs(steps * scales.astype(np.float64)[:, :, None] - wanted)
    assert (error <= scales[:, :, None] * (0.5 + 2e-5)).all()


def test_quantize_rounds_ties_to_even():
    x = np.zeros((1, 32), np.float32)
    x[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -3.5]
    codes, scales = np.empty(32, np.int8), np.empty(1, np.float32)
    own = address(codes), address(scales), address(x), np.zeros(1, np.int32), 1, 1, 0
    kernels.quantize(*own, 2, at("quantize"))
    assert codes[:7].tolist() == [127, 0, 2, 2, 0, -4, 0]
    assert scales.tolist() == [1.0]


def test_gather():
    x, sources = random_x(5, 96), np.array([4, 0, 0, 3, 2, 4, 1], np.int32)
    blocks, out = to_blocks(x), np.empty((3, 7, 32), np.float32)
    kernels.gather(address(out), address(blocks), sources, 5, 3, 2, at("gather"))
    np.testing.assert_array_equal(from_blocks(out), x[sources])


# Experts


def test_swiglu():
    rng = np.random.RandomState(0)
    ends = [0, 6.9999, 7, 7.0001, -7, -6.9999, -7.0001, 50, -50, -1e4, 1e4, 3e38]
    gate = np.concatenate([np.repeat(ends, len(ends)), rng.uniform(-12, 12, 8000)]).astype(np.float32)
    up = np.concatenate([np.tile(ends, len(ends)), rng.uniform(-12, 12, 8000)]).astype(np.float32)
    out = np.empty_like(gate)
    swiglu_of(out, gate, up, np.float32(1.702), np.float32(7.0))
    pairs = np.stack([np.maximum(gate, -400), up], axis=1).astype(np.float64).reshape(1, -1)
    np.testing.assert_allclose(out, naive.swiglu(pairs)[0], rtol=3e-6, atol=1e-30)


@pytest.mark.parametrize(("tokens", "experts", "active"), [(1, 5, 5), (70, 13, 4), (9, 130, 1)])
def test_route(tokens, experts, active):
    logits = random_x(tokens, -(-experts // 8) * 8) * 3
    logits[:, experts:] = 1e9  # padding, which nobody may choose
    ids, weights = np.empty((tokens, active), np.int32), np.empty((tokens, active), np.float32)
    bias = random_x(1, experts)[0]
    kernels.route(ids, weights, logits.copy(), bias)
    for t in range(tokens):
        expected_ids, expected_weights = naive.route((logits[t, :experts] + bias).astype(np.float64), active)
        assert ids[t].tolist() == expected_ids.tolist()
        np.testing.assert_allclose(weights[t], expected_weights, rtol=1e-6)


def test_route_takes_the_lower_of_equal_experts():
    logits = np.array([[1, 3, 2, 3, 2, 2, 0, 0]], np.float32)
    ids, weights = np.empty((1, 4), np.int32), np.empty((1, 4), np.float32)
    kernels.route(ids, weights, logits, np.zeros(7, np.float32))
    assert ids.tolist() == [[1, 3, 2, 4]]
    assert weights[0, 0] == weights[0, 1] > weights[0, 2] == weights[0, 3]


def test_route_of_far_apart_logits():
    logits = np.array([[-500, 1000, -1000, 0, 0, 0, 0, 0]], np.float32)
    ids, weights = np.empty((1, 3), np.int32), np.empty((1, 3), np.float32)
    kernels.route(ids, weights, logits, np.zeros(3, np.float32))
    assert ids.tolist() == [[1, 0, 2]]
    assert weights.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(("tokens", "experts", "active"), [(1, 5, 2), (70, 13, 4), (200, 128, 3)])
def test_sort_by_expert(tokens, experts, active):
    rng = np.random.RandomState(experts)
    ids = np.array([rng.permutation(experts)[:active] for _ in range(tokens)], np.int32)
    starts = np.full(experts + 1, -1, np.int64)
    sources, places = np.full(tokens * active, -1, np.int32), np.full((tokens, active), -1, np.int32)
    kernels.sort_by_expert(starts, sources, places, ids)
    pairs = sorted((ids[t, a], t, a) for t in range(tokens) for a in range(active))
    assert sources.tolist() == [t for _, t, _ in pairs]
    assert [places[t, a] for _, t, a in pairs] == list(range(tokens * active))
    assert starts.tolist() == [sum(e < bound for e, _, _ in pairs) for bound in range(experts + 1)]


@pytest.mark.parametrize(("tokens", "columns", "active"), [(1, 32, 1), (66, 96, 4)])
def test_add_experts(tokens, columns, active):
    rng = np.random.RandomState(columns)
    x, y = random_x(tokens, columns), random_x(tokens * active, columns, seed=1)
    places = rng.permutation(tokens * active).astype(np.int32).reshape(tokens, active)
    weights = rng.random_sample((tokens, active)).astype(np.float32)
    expected = x.astype(np.float64)
    for t in range(tokens):
        for a in range(active):
            expected[t] += weights[t, a].astype(np.float64) * y[places[t, a]]
    kernels.add_experts(address(x), address(y), places, weights, columns, 2, at("add_experts"))
    np.testing.assert_allclose(x, expected, atol=2e-6)
