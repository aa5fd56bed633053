"""Tiles times activations, and the experts, against plain float64 arithmetic on the same numbers.

Products of int8 activations must be right to float32's last bits: their integers are exact on every
instruction set. test_variants.py runs this file on each in `make soak`.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from support import naive
from support.tiled import (
    WAYS,
    activations_of,
    address,
    assert_product,
    at,
    exact_activations,
    from_blocks,
    limits_of,
    random_activations,
    random_weights,
    weights_of,
)

from localoss.kernels import experts, matmul
from localoss.kernels.products import KINDS, OFFSETS
from localoss.plan.sizes import SCRATCH_BYTES
from quant.format.layout import expert_run

THREADS = 2
SCRATCH = np.empty(THREADS * SCRATCH_BYTES, np.uint8)
COUNTER = np.zeros(1, np.int64)
WORKERS = (THREADS, address(SCRATCH), address(COUNTER), matmul.PANELS.address)


def multiply(weights, x, bias=None, into=None):
    """matmul with int8 or exact activations, written over junk or added to `into` (T, R)."""
    tokens, rows = len(x.values), len(weights.values)
    guarded = np.full((tokens + 2, rows), np.nan, np.float32)
    out = guarded[1:-1]
    if into is not None:
        out[:] = into
    matmul.matmul(
        address(out), weights.tiles(bias), x.inputs, tokens, into is not None, WORKERS, at("multiply")
    )
    assert np.isnan(guarded[[0, -1]]).all(), "written outside of the result"
    return out


# Matrices


@pytest.mark.parametrize(("tokens", "groups"), [(1, 11), (3, 19), (64, 8), (65, 1), (130, 13)])
@pytest.mark.parametrize(("dtype", "exact"), WAYS)
def test_matmul(dtype, exact, tokens, groups):
    rng = np.random.RandomState(tokens)
    weights = random_weights(dtype, 8 * groups, 160, seed=groups)
    x = random_activations(weights.kind, exact, tokens, 160, seed=1)
    assert_product(multiply(weights, x), x, weights)
    bias = rng.standard_normal(8 * groups).astype(np.float32)
    assert_product(multiply(weights, x, bias), x, weights, bias)
    into = rng.standard_normal((tokens, 8 * groups)).astype(np.float32)
    assert_product(multiply(weights, x, into=into), x, weights, into)
    added = multiply(weights, x, bias, into)
    assert_product(added, x, weights, into.astype(np.float64) + bias)


@pytest.mark.parametrize(("dtype", "exact"), WAYS)
def test_a_matrix_of_one_tile(dtype, exact):
    weights = random_weights(dtype, 8, 32, seed=0)
    x = random_activations(weights.kind, exact, 1, 32, seed=1)
    assert_product(multiply(weights, x), x, weights)


@pytest.mark.parametrize("dtype", ["mxfp4", "int4", "int8"])
def test_integers_are_exact_at_their_limits(dtype):
    """All products of a tile as large as they get, in every pattern of signs of 16 random ones, and at 0."""
    weights, codes = limits_of(dtype)
    x = activations_of(weights.kind, codes, np.ones((len(codes), 1), np.float32))
    expected = x.values @ weights.values.T
    assert np.abs(expected).max() == 32 * 127 * np.abs(weights.values).max()
    np.testing.assert_array_equal(multiply(weights, x), expected)
    for t in range(len(codes)):  # one token alone takes another way
        x = activations_of(weights.kind, codes[t : t + 1], np.ones((1, 1), np.float32))
        np.testing.assert_array_equal(multiply(weights, x), expected[t : t + 1])


@pytest.mark.parametrize("dtype", ["mxfp4", "int4", "int8", "bf16"])
def test_every_code_is_decoded(dtype):
    """Each value alone in its row, against the format's definition, to the bit."""
    codes = {
        "mxfp4": np.arange(16, dtype=np.uint8),
        "int4": np.arange(-8, 8, dtype=np.int8),
        "int8": np.arange(-128, 128, dtype=np.int16).astype(np.int8),
        "bf16": np.arange(1 << 16).astype(np.uint16),
    }[dtype]
    if dtype == "bf16":
        codes = codes[codes & 0x7F80 != 0x7F80]  # infinities and NaN
    matrix = np.zeros((len(codes), 32), codes.dtype)
    matrix[np.arange(len(codes)), np.arange(len(codes)) * 7 % 32] = codes
    scales = {"mxfp4": np.full((len(codes), 1), 127, np.uint8), "bf16": None}.get(
        dtype, np.ones((len(codes), 1), np.float16)
    )
    weights = weights_of(dtype, matrix, scales)
    out = multiply(weights, exact_activations(np.ones((1, 32), np.float32)))
    np.testing.assert_array_equal(out[0], weights.values.sum(axis=1))


def test_every_finite_float16_scale():
    """Subnormals, both zeros and the largest included."""
    scales = np.arange(1 << 16).astype(np.uint16).view(np.float16)
    scales = scales[np.isfinite(scales)]
    codes = np.zeros((len(scales), 32), np.int8)
    codes[:, 5] = -3
    weights = weights_of("int8", codes, scales[:, None])
    x = np.zeros((1, 32), np.float32)
    x[0, 5] = 1
    out = multiply(weights, exact_activations(x))
    np.testing.assert_array_equal(out[0], -3 * scales.astype(np.float64))


@pytest.mark.parametrize("exact", [False, True])
def test_every_e8m0_scale(exact):
    """1.5 times 2**-126 to 2**127; byte 0, 2**-127, counts as 0."""
    scales = np.arange(256).astype(np.uint8)
    codes = np.zeros((256, 32), np.uint8)
    codes[:, 3] = 3
    weights = weights_of("mxfp4", codes, scales[:, None])
    for factor in (2.0**30, 2.0**-30):
        steps = np.zeros((1, 32), np.int64)
        steps[0, 3] = -100
        if exact:
            x = exact_activations((steps * factor).astype(np.float32))
        else:
            x = activations_of(weights.kind, steps, np.full((1, 1), factor, np.float32))
        out = multiply(weights, x)[0, :255]  # 255 is NaN, which the converter refuses
        expected = -150 * factor * np.exp2(np.arange(255) - 127.0)
        fits = (np.abs(expected) < 2.0**128) & (np.abs(expected) > 2.0**-126)
        fits[0] = False
        assert fits.sum() > 210
        np.testing.assert_array_equal(out[fits], expected[fits])
        assert np.abs(out[0]) <= 150 * 2.0**-97


@pytest.mark.parametrize("dtype", ["mxfp4", "int4", "int8"])
def test_many_tokens_have_the_bits_of_each_alone(dtype):
    """Row groups are taken two at a time where registers have room for them, of which one is left over."""
    weights = random_weights(dtype, 152, 160, seed=3)
    rng = np.random.RandomState(4)
    steps, scales = rng.randint(-127, 128, (11, 160)), rng.random_sample((11, 5)).astype(np.float32) / 40
    x = activations_of(weights.kind, steps, scales)
    together = multiply(weights, x)
    assert_product(together, x, weights)
    for t in range(11):
        alone = multiply(weights, activations_of(weights.kind, steps[t : t + 1], scales[t : t + 1]))
        np.testing.assert_array_equal(alone.view(np.int32), together[t : t + 1].view(np.int32))


@pytest.mark.parametrize("dtype", ["mxfp4", "int4", "int8"])
def test_large_codes_with_tiny_and_huge_scales(dtype):
    rng = np.random.RandomState(3)
    extremes = {"mxfp4": [7, 15], "int4": [-8, 7], "int8": [-127, 127]}[dtype]
    codes = rng.choice(extremes, (24, 96))
    scales = rng.choice([2, 253] if dtype == "mxfp4" else [6e-8, 65504], (24, 3))
    if dtype == "mxfp4":
        weights = weights_of(dtype, codes.astype(np.uint8), scales.astype(np.uint8))
    else:
        weights = weights_of(dtype, codes.astype(np.int8), scales.astype(np.float16))
    steps = rng.choice([-127, 127], (5, 96))
    x = activations_of(weights.kind, steps, np.full((5, 3), 2.0**-30, np.float32))
    assert_product(multiply(weights, x), x, weights)


# Experts

HIDDEN, INTERMEDIATE = 160, 96
PLACES = (1, 0, 130, 3, 0, 65)  # of each expert
STARTS = np.concatenate([[0], np.cumsum(PLACES)]).astype(np.int64)


def expert_weights(dtype):
    """Runs of bytes as quant/format/layout.py lays them out, and each expert's matrices and biases."""
    layout = expert_run(SimpleNamespace(intermediate=INTERMEDIATE, hidden=HIDDEN), dtype)
    memory, made = np.zeros((len(PLACES), layout.size), np.uint8), []
    for e, run in enumerate(memory):
        rng = np.random.RandomState(e)
        gate_up = random_weights(dtype, 2 * INTERMEDIATE, HIDDEN, seed=10 + e)
        down = random_weights(dtype, HIDDEN, INTERMEDIATE, seed=20 + e)
        gate_up_bias = 3 * rng.standard_normal(2 * INTERMEDIATE).astype(np.float32)
        down_bias = rng.standard_normal(HIDDEN).astype(np.float32)
        for offset, array in [
            (layout.gate_up_codes, gate_up.codes),
            (layout.gate_up_scales, gate_up.scales),
            (layout.down_codes, down.codes),
            (layout.down_scales, down.scales),
            (layout.gate_up_bias, gate_up_bias),
            (layout.down_bias, down_bias),
        ]:
            if array is not None:
                run[offset : offset + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).ravel()
        made.append((gate_up, gate_up_bias, down, down_bias))
    kind = KINDS[dtype]
    return SimpleNamespace(
        memory=memory,
        runs=address(memory) + layout.size * np.arange(len(PLACES), dtype=np.int64),
        gate_up=(
            *(kind, layout.gate_up_codes, layout.gate_up_scales, layout.gate_up_bias),
            *(INTERMEDIATE // 4, HIDDEN // 32),
        ),
        down=(
            *(kind, layout.down_codes, layout.down_scales, layout.down_bias),
            *(HIDDEN // 8, INTERMEDIATE // 32),
        ),
        experts=made,
    )


def active_experts():
    active = np.full(len(PLACES), -1, np.int32)
    count = experts.list_active(active, STARTS)
    return active[:count]


def places_of(expert):
    return slice(STARTS[expert], STARTS[expert + 1])


def test_only_experts_with_tokens_are_active():
    assert active_experts().tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize(("dtype", "exact"), WAYS)
def test_gate_up(dtype, exact):
    made, kind, total = expert_weights(dtype), KINDS[dtype], sum(PLACES)
    x = random_activations(kind, exact, total, HIDDEN, seed=1)
    h = np.zeros((INTERMEDIATE // 32, total, 32), np.float32 if exact else np.int8)
    h_scales = np.full((INTERMEDIATE // 32, total), np.nan, np.float32)
    experts.gate_up(
        (exact, address(h), address(h_scales)),
        made.gate_up,
        made.runs,
        x.inputs,
        STARTS,
        active_experts(),
        np.float32(1.702),
        np.float32(7.0),
        WORKERS,
        at("gate_up"),
    )
    clamped = 0
    for e, (weights, bias, _, _) in enumerate(made.experts):
        if not PLACES[e]:
            continue
        mine = x.values[places_of(e)]
        rows = mine @ weights.values.T + bias
        clamped += (np.abs(rows) > 7).sum()
        expected = naive.swiglu(np.maximum(rows, -300))  # exp overflows further down
        # SwiGLU's slope is below 9 in the gate, and at most 7 in up.
        size = (np.abs(mine) @ np.abs(weights.values).T + np.abs(bias)).reshape(len(rows), -1, 2).sum(axis=2)
        allowed = 9e-6 * size + 1e-5 * np.abs(expected)
        if exact:
            got = from_blocks(h)[places_of(e)]
        else:
            codes = (h[:, places_of(e)].astype(np.int64) - OFFSETS[kind] + 128) % 256 - 128
            scales = h_scales.T[places_of(e)]
            assert (np.abs(codes).max(axis=2).T[scales > 0] == 127).all()
            got = naive.decode_groups(from_blocks(codes), scales)
            allowed += 0.5 * np.repeat(scales, 32, axis=1)
        assert (np.abs(got - expected) <= allowed).all()
    assert clamped > 100


@pytest.mark.parametrize(("dtype", "exact"), WAYS)
def test_down(dtype, exact):
    made, kind, total = expert_weights(dtype), KINDS[dtype], sum(PLACES)
    h = random_activations(kind, exact, total, INTERMEDIATE, seed=2)
    y = np.full((total + 2, HIDDEN), np.nan, np.float32)
    experts.down(
        address(y[1:]), made.down, made.runs, h.inputs, STARTS, active_experts(), WORKERS, at("down")
    )
    assert np.isnan(y[[0, -1]]).all(), "written outside of the result"
    for e, (_, _, weights, bias) in enumerate(made.experts):
        part = SimpleNamespace(exact=exact, values=h.values[places_of(e)])
        assert_product(y[1:-1][places_of(e)], part, weights, bias)


@pytest.mark.parametrize("groups", [1, 9])
def test_threads_without_work_are_harmless(groups):
    """More threads than panels, and than Numba runs."""
    weights = random_weights("int8", 8 * groups, 32, seed=0)
    x = random_activations(weights.kind, False, 1, 32, seed=1)
    out, scratch = np.empty((1, 8 * groups), np.float32), np.empty(16 * SCRATCH_BYTES, np.uint8)
    workers = (16, address(scratch), *WORKERS[2:])
    matmul.matmul(address(out), weights.tiles(), x.inputs, 1, False, workers, at("multiply"))
    assert_product(out, x, weights)
