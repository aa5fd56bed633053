"""Number formats and tiles: against values worked by hand, against loops, and the fast against the clear."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quant.errors import QuantError
from quant.format import jit_loops as fast
from quant.format.numbers import (
    FP4_VALUES,
    INT4,
    INT8,
    _quantize,
    _round_to_fp4,
    bf16_to_f32,
    decode_int,
    decode_mxfp4,
    encode_int4,
    encode_int8,
    encode_mxfp4,
    f32_to_bf16,
    group_extremes,
    in_groups,
    int4_scales,
    int8_scales,
    mxfp4_scales,
    pack_blocks,
    unpack_blocks,
)
from quant.format.tiles import from_tiles, scales_from_tiles, scales_to_tiles, to_tiles

ROWS, COLUMNS = 24, 160  # 3 × 5 tiles


def random_weights(seed, rows=ROWS, columns=COLUMNS):
    return np.random.RandomState(seed).standard_normal((rows, columns)).astype(np.float32)


def random_codes(dtype):
    low, high, kind = {
        "mxfp4": (0, 16, np.uint8),
        "int4": (-8, 8, np.int8),
        "int8": (-127, 128, np.int8),
        "bf16": (0, 65536, np.uint16),
    }[dtype]
    return np.random.RandomState(5).randint(low, high, (ROWS, COLUMNS)).astype(kind)


# bfloat16


def test_every_bf16_survives_the_way_through_f32():
    bits = np.arange(65536).astype(np.uint16)
    values = bf16_to_f32(bits)
    back = f32_to_bf16(values)
    nan = np.isnan(values)
    assert nan.sum() == 2 * 127
    np.testing.assert_array_equal(back[~nan], bits[~nan])
    assert np.isnan(bf16_to_f32(back[nan])).all()


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (0x3F808000, 0x3F80),  # halfway, even below
        (0x3F818000, 0x3F82),  # halfway, even above
        (0x3F808001, 0x3F81),
        (0x3F807FFF, 0x3F80),
        (0x7F7FFFFF, 0x7F80),  # the largest float32 becomes infinity
        (0xFFFFFFFF, 0xFFFF),  # NaN, where rounding would carry into the sign
        (0x7F800001, 0x7FC0),  # NaN, where cutting off would leave infinity
    ],
)
def test_f32_to_bf16_rounds_to_nearest_even(value, bits):
    assert f32_to_bf16(np.array([value], np.uint32).view(np.float32))[0] == bits


# MXFP4


def test_decode_mxfp4_of_a_block_worked_by_hand():
    blocks = np.zeros((1, 1, 16), np.uint8)
    blocks[0, 0, :3] = [0x21, 0x9F, 0x70]  # columns 0..5: .5, 1, -6, -.5, 0, 6
    weights = decode_mxfp4(unpack_blocks(blocks), np.array([[129]], np.uint8))  # 2**2
    np.testing.assert_array_equal(weights[0, :6], [2, 4, -24, -2, 0, 24])
    assert not weights[0, 6:].any()


def test_encode_mxfp4_of_a_block_worked_by_hand():
    weights = np.zeros((1, 32), np.float32)
    weights[0, :8] = [7, -5, 2.5, 0.25, 0.75, 3.5, -1.75, 1.25]  # 7 beyond 6, then ties
    codes, scales = encode_mxfp4(weights)
    assert scales.tolist() == [[127]]
    np.testing.assert_array_equal(decode_mxfp4(codes, scales)[0, :8], [6, -4, 2, 0, 1, 4, -2, 1])


def test_encode_mxfp4_takes_back_what_it_decoded():
    codes = random_codes("mxfp4")
    codes[:, ::32] = 7  # a 6 in each block fixes its scale
    scales = np.random.RandomState(1).randint(1, 250, (ROWS, COLUMNS // 32)).astype(np.uint8)
    codes_back, scales_back = encode_mxfp4(decode_mxfp4(codes, scales))
    np.testing.assert_array_equal(codes_back, codes)
    np.testing.assert_array_equal(scales_back, scales)


def test_encode_mxfp4_finds_the_nearest_value():
    weights = random_weights(2)
    codes, scales = encode_mxfp4(weights)
    found = np.abs(decode_mxfp4(codes, scales) - weights)
    unit = np.repeat(2.0 ** (scales.astype(np.float64) - 127), 32, axis=1)
    nearest = np.abs(FP4_VALUES[:, None, None] * unit - weights).min(axis=0)
    np.testing.assert_allclose(found, nearest, rtol=0, atol=1e-6)


def test_mxfp4_of_zeros_is_zero():
    codes, scales = encode_mxfp4(np.zeros((8, 64), np.float32))
    assert not codes.any() and not scales.any()


def test_an_mxfp4_scale_that_is_nan_is_refused():
    with pytest.raises(QuantError, match="255"):
        decode_mxfp4(np.zeros((1, 32), np.uint8), np.array([[255]], np.uint8))


def test_published_blocks_hold_the_even_column_in_the_low_nibble():
    blocks = np.random.RandomState(3).randint(0, 256, (7, 3, 16)).astype(np.uint8)
    codes = unpack_blocks(blocks)
    for row in range(7):
        for column in range(96):
            byte = blocks[row, column // 32, column % 32 // 2]
            assert codes[row, column] == (byte >> 4 if column % 2 else byte & 15)
    np.testing.assert_array_equal(pack_blocks(codes), blocks)


# int8 and int4


def by_rule(weights, form):
    """Codes and scales without the search: the rule's scale for each group."""
    rule = int8_scales if form is INT8 else int4_scales
    scales = rule(group_extremes(weights))
    return _quantize(in_groups(weights), scales, form).reshape(weights.shape).astype(np.int8), scales


def test_int8_of_a_group_worked_by_hand():
    weights = np.zeros((1, 32), np.float32)
    weights[0, :5] = [-127, 126.4, 0.5, 1.5, -2.5]  # scale 1: ties go to even
    codes, scales = by_rule(weights, INT8)
    assert scales.tolist() == [[1.0]]
    assert codes[0, :5].tolist() == [-127, 126, 0, 2, -2]


def test_int4_of_a_group_worked_by_hand():
    weights = np.zeros((1, 32), np.float32)
    weights[0, :4] = [16, -15.8, 3, -5]  # the extreme becomes -8, so the scale is -2
    codes, scales = by_rule(weights, INT4)
    assert scales.tolist() == [[-2.0]]
    assert codes[0, :4].tolist() == [-8, 7, -2, 2]


GROUPS = hnp.arrays(
    np.float32, (2, 64), elements=st.floats(-8e6, 8e6, width=32, allow_subnormal=True)
) | hnp.arrays(np.float32, (2, 64), elements=st.floats(-(2.0**-9), 2.0**-9, width=32))


@given(GROUPS)
def test_int8_errs_by_half_a_step_at_most(weights):
    codes, scales = by_rule(weights, INT8)
    assert np.abs(codes.astype(int)).max() <= 127
    steps = np.repeat(np.abs(scales.astype(np.float64)), 32, axis=1)
    errors = np.abs(codes * steps - weights)
    # The scale is a float16: 127 steps may fall short of the largest weight by 127 * 2**-11 of a step.
    assert (errors <= steps * 0.5 + np.abs(weights) * 2.0**-11).all()
    groups_of_zero = ~weights.reshape(2, 2, 32).any(axis=2)
    assert ((scales == 0) == groups_of_zero).all() and not np.signbit(scales).any()


@given(GROUPS.map(lambda weights: weights / 16))
def test_int4_errs_by_half_a_step_except_opposite_the_extreme(weights):
    codes, scales = by_rule(weights, INT4)
    steps = np.repeat(np.abs(scales.astype(np.float64)), 32, axis=1)
    errors = np.abs(codes * np.repeat(scales.astype(np.float64), 32, axis=1) - weights)
    assert codes.min() >= -8 and codes.max() <= 7
    assert (errors[codes < 7] <= (steps * 0.5 + np.abs(weights) * 2.0**-11)[codes < 7]).all()
    assert (errors <= steps * 1.01 + np.abs(weights) * 2.0**-11).all()


def group_errors(weights, decoded):
    """Squared error of each group in float64."""
    return np.square(np.float64(decoded) - weights).reshape(len(weights), -1, 32).sum(axis=2)


@settings(max_examples=200, deadline=None)
@given(GROUPS | st.integers(0, 2**32 - 1).map(lambda seed: random_weights(seed, 2, 64)))
def test_the_search_makes_no_group_worse(weights):
    for form, encode, divisor in ((INT8, encode_int8, 1), (INT4, encode_int4, 16)):
        scaled = weights / np.float32(divisor)
        errors = group_errors(scaled, decode_int(*encode(scaled)))
        assert (errors <= group_errors(scaled, decode_int(*by_rule(scaled, form)))).all()
    errors = group_errors(weights, decode_mxfp4(*encode_mxfp4(weights)))
    assert (errors <= group_errors(weights, decode_mxfp4(*mxfp4_by_rule(weights)))).all()


def mxfp4_by_rule(weights):
    scales = mxfp4_scales(group_extremes(weights))
    units = np.exp2(scales.astype(np.float64) - 127).repeat(32, axis=1)
    return _round_to_fp4(np.abs(weights) / units) | (np.signbit(weights).astype(np.uint8) << 3), scales


@pytest.mark.parametrize(("name", "most"), [("mxfp4", 0.98), ("int4", 0.96), ("int8", 0.97)])
def test_what_the_search_gains(name, most):
    """RMS error against that of the rule's scales, on normal weights."""
    weights = random_weights(9, 64, 2880)
    searched = {
        "mxfp4": lambda: decode_mxfp4(*encode_mxfp4(weights)),
        "int4": lambda: decode_int(*encode_int4(weights)),
        "int8": lambda: decode_int(*encode_int8(weights)),
    }[name]()
    ruled = {
        "mxfp4": lambda: decode_mxfp4(*mxfp4_by_rule(weights)),
        "int4": lambda: decode_int(*by_rule(weights, INT4)),
        "int8": lambda: decode_int(*by_rule(weights, INT8)),
    }[name]()
    gain = np.sqrt(group_errors(weights, searched).sum() / group_errors(weights, ruled).sum())
    assert 0.9 < gain <= most


def test_mxfp4_takes_the_larger_scale_where_it_errs_less():
    weights = np.full((1, 32), 7.9, np.float32)  # by the rule 6, with the next scale 8
    codes, scales = encode_mxfp4(weights)
    assert scales.tolist() == [[128]] and (decode_mxfp4(codes, scales) == 8).all()


def test_scales_in_float16s_subnormals_do_not_cut_weights_off():
    weights = np.full((1, 32), 1.4 * 2.0**-24 * 127, np.float32)  # to nearest, the scale would be 2**-24
    for encode in (encode_int8, encode_int4):
        np.testing.assert_allclose(decode_int(*encode(weights)), weights, rtol=0.1)
    codes, scales = encode_int8(np.full((1, 32), 1e-7, np.float32))
    np.testing.assert_allclose(decode_int(codes, scales), 1e-7, atol=2.0**-25)


def test_decode_int_multiplies_each_group_with_its_own_scale():
    codes = np.repeat(np.array([[3, -4]], np.int8), 32, axis=1)
    weights = decode_int(codes, np.array([[0.5, 2]], np.float16))
    np.testing.assert_array_equal(weights[0, [0, 31, 32, 63]], [1.5, 1.5, -8, -8])


@pytest.mark.parametrize("encode", [encode_mxfp4, encode_int8, encode_int4])
def test_weights_that_no_format_holds_are_refused(encode):
    for bad in (np.nan, np.inf, -np.inf):
        weights = random_weights(4)
        weights[5, 77] = bad
        with pytest.raises(QuantError, match="NaN or infinity"):
            encode(weights)
    with pytest.raises(QuantError, match="48 columns"):
        encode(np.zeros((8, 48), np.float32))


@pytest.mark.parametrize(("encode", "value"), [(encode_int8, 1e7), (encode_int4, -1e6)])
def test_weights_beyond_float16s_range_are_refused(encode, value):
    with pytest.raises(QuantError, match="keep them as bf16"):
        encode(np.full((8, 32), value, np.float32))


# Tiles


def naive_tile_byte(codes, dtype, group, block, position):
    """Byte `position` of a tile, as docs/format.md says it."""
    row, column = 8 * group, 32 * block
    if dtype in ("mxfp4", "int4"):
        j, r, i = position // 32, position % 32 // 4, position % 4
        low, high = codes[row + r, column + 8 * j + i], codes[row + r, column + 8 * j + 4 + i]
        return (int(low) & 15) | (int(high) & 15) << 4
    if dtype == "int8":
        q, r, i = position // 32, position % 32 // 4, position % 4
        return int(codes[row + r, column + 4 * q + i]) & 255
    unit = position // 2
    p, r, i = unit // 16, unit % 16 // 2, unit % 2
    return int(codes[row + r, column + 2 * p + i]) >> (8 * (position % 2)) & 255


@pytest.mark.parametrize("dtype", ["mxfp4", "int4", "int8", "bf16"])
def test_tiles_have_the_documented_order(dtype):
    codes = random_codes(dtype)
    tiles = to_tiles(codes, dtype)
    for group in range(3):
        for block in range(5):
            expected = [
                naive_tile_byte(codes, dtype, group, block, position) for position in range(tiles.shape[2])
            ]
            assert tiles[group, block].tolist() == expected
    back = from_tiles(tiles, dtype)
    assert back.dtype == codes.dtype
    np.testing.assert_array_equal(back, codes)


def test_a_tiles_scales_lie_together():
    scales = np.arange(15 * 8).reshape(24, 5)
    tiles = scales_to_tiles(scales)
    assert tiles[2, 3].tolist() == [scales[16 + row, 3] for row in range(8)]
    np.testing.assert_array_equal(scales_from_tiles(tiles), scales)


def test_weights_that_do_not_fill_tiles_are_refused():
    for rows, columns in ((12, 64), (16, 40)):
        with pytest.raises(QuantError, match="do not fill tiles"):
            to_tiles(np.zeros((rows, columns), np.uint8), "mxfp4")


# Fast against clear, bit for bit


def same_bits(fast_array, clear_array):
    assert fast_array.dtype == clear_array.dtype and fast_array.shape == clear_array.shape
    assert fast_array.tobytes() == clear_array.tobytes()


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except QuantError as error:
        return str(error)


ANY_BITS = hnp.arrays(np.uint16, (16, 96), elements=st.integers(0, 65535))
LIKELY_BITS = st.integers(0, 2**32 - 1).map(
    lambda seed: f32_to_bf16(
        random_weights(seed, 16, 96) * np.float32(10.0) ** np.random.RandomState(seed).randint(-10, 5)
    )
)
SPARSE_BITS = hnp.arrays(
    np.uint16, (16, 96), elements=st.integers(0, 65535), fill=st.sampled_from([0, 0x8000])
)


@settings(max_examples=150, deadline=None)
@given(LIKELY_BITS | SPARSE_BITS | ANY_BITS)
def test_fast_encoders_equal_the_reference(bits):
    weights = bf16_to_f32(bits)
    for dtype, encode, fast_encode in (
        ("int8", encode_int8, fast.tile_int8),
        ("int4", encode_int4, fast.tile_int4),
    ):
        clear, quick = outcome(encode, weights), outcome(fast_encode, bits)
        if isinstance(clear, str):
            assert quick == clear
            continue
        same_bits(quick[0], to_tiles(clear[0], dtype))
        same_bits(quick[1], scales_to_tiles(clear[1]))
        if dtype == "int8":
            rows = fast.encode_int8_rows(bits)
            same_bits(rows[0], clear[0])
            same_bits(rows[1], clear[1])
    clear, quick = outcome(encode_mxfp4, weights), outcome(fast.encode_mxfp4_blocks, bits)
    if isinstance(clear, str):
        assert quick == clear
    else:
        same_bits(quick[0], pack_blocks(clear[0]))
        same_bits(quick[1], clear[1])
    same_bits(fast.tile_bf16(bits), to_tiles(bits, "bf16"))


def test_rows_that_are_searched_together_equal_the_reference():
    """Three groups a row: 21 rows lie in one, twice, and 6 are left. A column's moments are its own."""
    weights = bf16_to_f32(f32_to_bf16(random_weights(5, 48, 96)))
    bits, moments = f32_to_bf16(weights), np.exp(random_weights(6, 1, 96)[0])
    for moments_or_none in (None, moments):
        codes, scales = encode_int4(weights, moments_or_none)
        tiles, tiled = fast.tile_int4(bits, moments_or_none)
        same_bits(tiles, to_tiles(codes, "int4"))
        same_bits(tiled, scales_to_tiles(scales))
    same_bits(fast.encode_int8_rows(bits)[1], encode_int8(weights)[1])
    same_bits(fast.encode_mxfp4_blocks(bits)[1], encode_mxfp4(weights)[1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_fast_permutation_equals_the_reference(groups, columns, seed):
    blocks = np.random.RandomState(seed).randint(0, 256, (8 * groups, columns, 16)).astype(np.uint8)
    out = np.empty((groups, columns, 128), np.uint8)
    fast.tile_mxfp4(blocks, out)
    same_bits(out, to_tiles(unpack_blocks(blocks), "mxfp4"))
    same_bits(pack_blocks(from_tiles(out, "mxfp4")), blocks)


def test_fast_paths_refuse_what_does_not_fill_tiles():
    for encode in (fast.tile_int8, fast.tile_int4, fast.tile_bf16):
        with pytest.raises(QuantError, match="do not fill tiles"):
            encode(np.zeros((12, 64), np.uint16))
    with pytest.raises(QuantError, match="48 columns"):
        fast.encode_int8_rows(np.zeros((8, 48), np.uint16))
