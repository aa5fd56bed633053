"""The oracle itself: naive.py against `transformers`' stored logits, its parts against worked examples."""

import numpy as np
import pytest
from support import checkpoints, naive
from support.golden_files import NAMES, read_golden


@pytest.mark.parametrize("name", [*NAMES, "far"])
def test_checkpoint_is_the_one_that_golden_logits_were_made_from(name, checkpoint):
    assert checkpoints.checkpoint_sha256(checkpoint(name)) == read_golden(name).checkpoint_sha256


@pytest.mark.parametrize("name", NAMES)
def test_naive_forward_agrees_with_transformers(name, checkpoint):
    golden = read_golden(name)
    logits = naive.forward(naive.Model(checkpoint(name)), golden.tokens)[golden.positions]
    assert 0.8 < golden.logits.std() < 1.2
    assert np.abs(logits - golden.logits).max() <= 5e-5


def test_mxfp4_worked_by_hand():
    # 0xE2: column 0 has code 2 = 1.0, column 1 has code 14 = -4.0; scale 128 is 2^1.
    blocks, scales = np.zeros((1, 1, 16), np.uint8), np.array([[128]], np.uint8)
    blocks[0, 0, 0], blocks[0, 0, 15] = 0xE2, 0x70
    weights = naive.decode_mxfp4(blocks, scales)
    assert weights.shape == (1, 32)
    assert weights[0, [0, 1, 2, 30, 31]].tolist() == [2.0, -8.0, 0.0, 0.0, 12.0]
    x = np.arange(32.0)
    assert naive.matvec_mxfp4(x, blocks, scales).tolist() == [-8.0 + 31 * 12]


def test_groups_round_to_the_nearest_step_and_zeros_stay_zeros():
    weights = np.zeros((2, 64))
    weights[0, :3] = [127.0, -63.4, 0.6]
    codes, scales = naive.encode_int8(weights)
    assert codes[0, :3].tolist() == [127, -63, 1]
    assert scales.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert naive.matvec_groups(np.ones(64), codes, scales).tolist() == [65.0, 0.0]


def test_int4_takes_the_largest_weight_to_minus_8_whatever_its_sign():
    weights = np.zeros((1, 64))
    weights[0, :3], weights[0, 32:34] = [4.0, -3.9, 1.1], [-8.0, 7.0]
    codes, scales = naive.encode_int4(weights)
    assert scales.tolist() == [[-0.5, 1.0]]
    assert codes[0, :3].tolist() == [-8, 7, -2]  # 7.8 has no code
    assert codes[0, 32:34].tolist() == [-8, 7]


def test_bf16_is_the_upper_half_of_a_float32():
    assert naive.decode_bf16(np.array([0x3F80, 0xC040], np.uint16)).tolist() == [1.0, -3.0]


def test_attention_with_a_sink_worked_by_hand():
    keys, values = np.zeros((3, 4)), np.diag([1.0, 2.0, 3.0, 4.0])[:3]
    # Four equal scores, one of them the sink, which has no value: each key weighs a quarter.
    assert naive.attend(np.ones(4), keys, values, 0.0).tolist() == [0.25, 0.5, 0.75, 0.0]


def test_window_counts_the_token_itself():
    q, k = np.zeros((4, 1, 2)), np.zeros((4, 1, 2))
    v = np.arange(4.0)[:, None, None] * np.ones(2)
    no_sink = np.array([-np.inf])
    assert naive.attention(q, k, v, no_sink, window=2)[:, 0, 0].tolist() == [0.0, 0.5, 1.5, 2.5]
    assert naive.attention(q, k, v, no_sink, window=None)[3, 0, 0] == 1.5


def test_router_softmax_is_over_the_chosen_experts_only():
    expert_ids, weights = naive.route(np.log([1.0, 6.0, 2.0, 3.0]), active=2)
    assert expert_ids.tolist() == [1, 3]
    np.testing.assert_allclose(weights, [2 / 3, 1 / 3])


def test_swiglu_clamps_the_gate_above_only_and_up_on_both_sides():
    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    gate_up = np.array([9.0, 9.0, -9.0, -9.0, 1.0, 0.5])  # gate, up, three times
    expected = [7 * sigmoid(1.702 * 7) * 8, -9 * sigmoid(-1.702 * 9) * -6, sigmoid(1.702) * 1.5]
    np.testing.assert_allclose(naive.swiglu(gate_up), expected)


def test_published_rope_frequencies():
    # The published config; the paper's formula worked for the first, a middle and the last pair.
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"]) | {"head_dim": 64}
    inv_freq, concentration = naive.yarn(config)
    assert concentration == pytest.approx(1.3465735902799727)
    assert inv_freq[0] == 1.0
    assert inv_freq[31] == pytest.approx(150000 ** (-62 / 64) / 32, rel=1e-6)
    assert inv_freq[8] == pytest.approx(150000 ** (-16 / 64), rel=1e-6)  # turns 33 times in 4,096: kept


def test_rope_at_a_far_position_uses_the_float32_angle():
    x = np.zeros((1, 1, 2))
    x[0, 0, 0] = 1.0
    inv_freq = np.array([0.6887], np.float32)
    rotated = naive.rope(x, np.array([131071]), inv_freq, 1.0)[0, 0]
    angle = float(np.float32(131071) * inv_freq[0])
    np.testing.assert_allclose(rotated, [np.cos(angle), np.sin(angle)], atol=1e-12)
