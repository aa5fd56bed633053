"""Every format there and back, for any shape: tiles, published blocks, ggml's blocks, rounding twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.export_gguf import _ggml
from quant.format import jit_loops as fast
from quant.format.numbers import (
    bf16_to_f32,
    decode_int,
    decode_mxfp4,
    encode_mxfp4,
    f32_to_bf16,
    pack_blocks,
    unpack_blocks,
)
from quant.format.tiles import from_tiles, scales_from_tiles, scales_to_tiles, to_tiles
from quant.sources.gguf_file import dequantize, ggml_mxfp4, published_mxfp4
from quant.sources.model import Coded

CODES = {
    "mxfp4": (0, 16, np.uint8),
    "int4": (-8, 8, np.int8),
    "int8": (-127, 128, np.int8),
    "bf16": (0, 65536, np.uint16),
}
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32 - 1))


def drawn(shape, dtype):
    groups, blocks, seed = shape
    low, high, kind = CODES[dtype]
    return np.random.RandomState(seed).randint(low, high, (8 * groups, 32 * blocks)).astype(kind)


def same(ours, theirs):
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("dtype", CODES)
@settings(max_examples=40, deadline=None)
@given(shape=SHAPES)
def test_tiles_give_codes_and_scales_back(dtype, shape):
    codes = drawn(shape, dtype)
    same(from_tiles(to_tiles(codes, dtype), dtype), codes)
    scales = codes[:, ::32].astype(np.float16)
    same(np.ascontiguousarray(scales_from_tiles(scales_to_tiles(scales))), scales)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES)
def test_mxfp4_through_published_blocks_and_ggml(shape):
    codes = drawn(shape, "mxfp4")
    scales = np.random.RandomState(shape[2] ^ 1).randint(0, 255, (len(codes), shape[1])).astype(np.uint8)
    same(unpack_blocks(pack_blocks(codes)), codes)
    blocks, back = published_mxfp4(ggml_mxfp4(codes, scales), "MXFP4", codes.shape[1])
    same(blocks, pack_blocks(codes))
    same(back, scales)
    tiles = np.empty((shape[0], shape[1], 128), np.uint8)
    fast.tile_mxfp4(blocks, tiles)
    same(fast.untile_mxfp4(tiles), blocks)


@pytest.mark.parametrize(("dtype", "form"), [("int8", "Q8_0"), ("int4", "Q4_0")])
@settings(max_examples=30, deadline=None)
@given(shape=SHAPES)
def test_integers_through_ggml(dtype, form, shape):
    if form != "Q8_0":
        pytest.importorskip("gguf")
    codes = drawn(shape, dtype)
    scales = np.random.RandomState(shape[2]).standard_normal((len(codes), shape[1])).astype(np.float16)
    packed = np.ascontiguousarray(_ggml(Coded(dtype, codes, scales))).reshape(len(codes), -1)
    np.testing.assert_array_equal(dequantize(packed, form, codes.shape[1]), decode_int(codes, scales))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, magnitude=st.integers(-6, 4))
def test_mxfp4_and_bf16_are_rounded_to_themselves(shape, magnitude):
    """Searched scales included: an error of zero is the best. (int8's extreme need not be ±127 any more.)"""
    groups, blocks, seed = shape
    weights = np.random.RandomState(seed).standard_normal((8 * groups, 32 * blocks)) * 10.0**magnitude
    weights = bf16_to_f32(f32_to_bf16(weights.astype(np.float32)))
    once = decode_mxfp4(*encode_mxfp4(weights))
    np.testing.assert_array_equal(decode_mxfp4(*encode_mxfp4(once)), once)
    same(f32_to_bf16(bf16_to_f32(drawn(shape, "bf16") & 0x7F7F)), drawn(shape, "bf16") & 0x7F7F)
