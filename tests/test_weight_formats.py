"""The registry of number formats: what is derived from it, and that an entry's functions belong together."""

import ast
from pathlib import Path

import numpy as np
import pytest

from localoss.cli import number_formats
from localoss.kernels import matmul, products
from quant.format.manifest import CHOICES, Dtypes
from quant.format.tiles import scales_to_tiles, to_tiles
from quant.format.weight_formats import BY_KERNEL_KIND, TILE_COLUMNS, TILE_ROWS, WEIGHT_FORMATS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("form", WEIGHT_FORMATS.values(), ids=WEIGHT_FORMATS)
def test_jitted_tiles_are_those_of_the_definition(form):
    weights = np.random.RandomState(5).standard_normal((24, 96)).astype(np.float32)
    codes, scales = form.encode(weights, None)
    tiles, tiled_scales = form.tile(weights, None)
    assert tiles.tobytes() == to_tiles(codes, form.name).tobytes()
    assert tiles.shape == (24 // TILE_ROWS, 96 // TILE_COLUMNS, form.tile_bytes)
    assert (scales is None) == (tiled_scales is None) == (not form.has_scales)
    if form.has_scales:
        assert tiled_scales.tobytes() == scales_to_tiles(scales).tobytes()
        assert scales.dtype == form.scale_numpy and scales.itemsize == form.scale_bytes
    spread = {4: 0.4, 8: 0.01, 16: 0.004}[form.bits] * np.abs(weights).max()
    assert np.abs(form.decode_f32(codes, scales) - weights).max() < spread
    if form.encode_rows:
        rows, row_scales = form.encode_rows(weights)
        assert rows.tobytes() == codes.tobytes()
        assert (row_scales is None) or row_scales.tobytes() == scales.tobytes()


def test_moments_change_what_is_calibrated_and_nothing_else():
    weights = np.random.RandomState(6).standard_normal((8, 64)).astype(np.float32)
    moments = np.linspace(0.01, 5, 64, dtype=np.float32)
    for form in WEIGHT_FORMATS.values():
        plain, weighed = form.tile(weights, None)[1], form.tile(weights, moments)[1]
        changed = plain is not None and plain.tobytes() != weighed.tobytes()
        assert changed == form.calibrated, form.name


def test_kernels_and_choices_follow_the_registry():
    assert [form.kernel_kind for form in BY_KERNEL_KIND] == list(range(len(WEIGHT_FORMATS)))
    assert (products.MXFP4, products.INT4, products.INT8, products.BF16) == (0, 1, 2, 3)
    assert matmul.TILE_BYTES == (128, 128, 256, 512) and matmul.SCALES_BYTES == (8, 16, 16, 0)
    assert Dtypes() == Dtypes("int8", "int8", "int8", "mxfp4")  # what users get without an option
    assert CHOICES["embedding"] == ("int8", "bf16")
    for name in CHOICES["embedding"]:
        assert WEIGHT_FORMATS[name].encode_rows is not None


def test_the_options_offer_what_the_registry_allows():
    """cli/number_formats writes them again: `localoss --help` does without NumPy, which it needs."""
    offered = {
        "attention": number_formats.MatrixDtype,
        "embedding": number_formats.EmbeddingDtype,
        "unembedding": number_formats.MatrixDtype,
        "experts": number_formats.ExpertDtype,
    }
    for name, enum in offered.items():
        assert {choice.value for choice in enum} == set(CHOICES[name]), name


def test_no_module_compares_a_format_with_its_name():
    """`dtype == "int8"` is a table of its own, which the next format would miss: ask the registry."""
    names = set(WEIGHT_FORMATS) - {"int8"}  # which is a KV cache's and the activations' format, too
    for folder in ("localoss", "quant"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Compare):
                    constants = [c for c in ast.walk(node) if isinstance(c, ast.Constant)]
                    found = [c.value for c in constants if isinstance(c.value, str) and c.value in names]
                    allowed = path.name == "config.py" and found == ["mxfp4"]  # a published quant_method
                    assert not found or allowed, f"{path}:{node.lineno}"
