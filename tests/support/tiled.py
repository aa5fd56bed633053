"""Random weights in tiles and activations in blocks, as kernels read them, each with its values."""

from dataclasses import dataclass

import numpy as np

from localoss.kernels import layer
from localoss.kernels.products import BF16, KINDS, OFFSETS
from quant.format.tiles import scales_to_tiles, to_tiles
from support import naive

CODES = {"mxfp4": (0, 16), "int4": (-8, 8), "int8": (-127, 128), "bf16": (0, 1 << 16)}
# Every way to multiply: by int8 activations, or exactly; bf16 only exactly.
WAYS = [("mxfp4", False), ("int4", False), ("int8", False)]
WAYS += [("mxfp4", True), ("int4", True), ("int8", True), ("bf16", True)]


def address(array):
    """Where `array` lies; 0 for none."""
    return 0 if array is None else array.ctypes.data


def at(name):
    """Where kernels find what shares their work among threads, and what a thread does of it."""
    return layer.ROUTINES["share"].address, layer.ROUTINES[name].address


@dataclass(frozen=True)
class Weights:
    """A matrix in tiles: codes (R/8, C/32, bytes), scales (R/8, C/32, 8), and values (R, C) f64."""

    kind: int
    codes: np.ndarray
    scales: np.ndarray | None
    values: np.ndarray

    def tiles(self, bias=None):
        """As matmul takes them."""
        groups, blocks, _ = self.codes.shape
        return self.kind, address(self.codes), address(self.scales), address(bias), groups, blocks


def weights_of(dtype, codes, scales=None):
    """Tiles of codes (R, C) and scales (R, C/32): E8M0 bytes for mxfp4, f16 for integers."""
    if dtype == "mxfp4":
        values = naive.FP4[codes] * np.repeat(np.exp2(scales.astype(np.float64) - 127), 32, axis=1)
    elif dtype == "bf16":
        values = naive.decode_bf16(codes)
    else:
        values = naive.decode_groups(codes, scales)
    tiled = None if scales is None else scales_to_tiles(scales)
    return Weights(KINDS[dtype], to_tiles(codes, dtype), tiled, values)


def random_weights(dtype, rows, columns, seed):
    rng = np.random.RandomState(seed)
    if dtype == "bf16":
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        return weights_of(dtype, (values.view(np.uint32) >> 16).astype(np.uint16))
    codes = rng.randint(*CODES[dtype], (rows, columns)).astype(np.uint8 if dtype == "mxfp4" else np.int8)
    if dtype == "mxfp4":
        scales = rng.randint(118, 131, (rows, columns // 32)).astype(np.uint8)
    else:
        scales = (rng.standard_normal((rows, columns // 32)) / 50).astype(np.float16)
        scales[rng.random_sample(scales.shape) < 0.1] = 0
    return weights_of(dtype, codes, scales)


_LIMITS = {
    "mxfp4": (15, 7, np.uint8(127)),
    "int4": (-8, 7, np.float16(1)),
    "int8": (-127, 127, np.float16(1)),
}


def limits_of(dtype):
    """Weights of one block whose products are as large as they get, and codes (17, 32) of activations so."""
    rng = np.random.RandomState(0)
    lowest, highest, one = _LIMITS[dtype]
    kind = np.uint8 if dtype == "mxfp4" else np.int8
    rows = [np.full(32, lowest), np.full(32, highest), np.tile([lowest, highest], 16), np.zeros(32)]
    rows += [np.repeat([lowest, highest], 16), *rng.choice([lowest, highest], (19, 32))]
    codes = [np.full(32, -127), np.full(32, 127), np.tile([-127, 127], 16), np.zeros(32)]
    codes += [np.repeat([127, -127], 16), *rng.choice([-127, 127], (12, 32))]
    return weights_of(dtype, np.array(rows).astype(kind), np.full((24, 1), one)), np.array(codes, np.int64)


@dataclass(frozen=True)
class Activations:
    """What a product reads, (C/32, T, 32) f32 if exact, else int8 and scales (C/32, T); and values (T, C)."""

    exact: bool
    blocks: np.ndarray
    scales: np.ndarray | None
    values: np.ndarray

    @property
    def inputs(self):
        """As matmul takes them."""
        return self.exact, address(self.blocks), address(self.scales)


def activations_of(kind, codes, scales):
    """int8 codes (T, C) within ±127, scales (T, C/32) f32."""
    blocks = to_blocks(codes) + OFFSETS[kind]  # modulo 256
    values = naive.decode_groups(codes, scales)
    return Activations(False, blocks.astype(np.int8), np.ascontiguousarray(scales.T), values)


def exact_activations(x):
    """x (T, C) f32."""
    return Activations(True, to_blocks(x), None, x.astype(np.float64))


def random_activations(kind, exact, tokens, columns, seed):
    rng = np.random.RandomState(seed)
    if exact or kind == BF16:
        return exact_activations(rng.standard_normal((tokens, columns)).astype(np.float32))
    codes = rng.randint(-127, 128, (tokens, columns))
    scales = rng.random_sample((tokens, columns // 32)).astype(np.float32) / 40
    return activations_of(kind, codes, scales)


def to_blocks(x):
    """(T, C) to (C/32, T, 32), the order in which products read."""
    return np.ascontiguousarray(x.reshape(len(x), -1, 32).transpose(1, 0, 2))


def from_blocks(blocks):
    return blocks.transpose(1, 0, 2).reshape(blocks.shape[1], -1)


def assert_product(out, x, weights, rest=0.0):
    """out (T, R) is x @ weights.T + rest, but for what accumulating in f32 costs."""
    if x.exact:
        expected, size = x.values @ weights.values.T, np.abs(x.values) @ np.abs(weights.values).T
    else:  # within a block, integers are exact
        x_blocks, w_blocks = (v.reshape(len(v), v.shape[1] // 32, 32) for v in (x.values, weights.values))
        terms = np.einsum("tbi,rbi->trb", x_blocks, w_blocks, optimize=True)
        expected, size = terms.sum(axis=2), np.abs(terms).sum(axis=2)
    assert (np.abs(out - expected - rest) <= 1e-6 * (size + np.abs(rest)) + 1e-30).all()
