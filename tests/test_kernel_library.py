"""Kept kernels where Numba's inside is another than the one that they are loaded by."""

from pathlib import Path

import numba
import pytest

from quant.format import kernel_library
from quant.format.kernel_cache import KernelFolder


def doubled(x):
    return 2 * x


@pytest.mark.parametrize("is_known", [True, False])
def test_they_are_loaded(tmp_path, monkeypatch, is_known):
    """Numba's own way then, rather than finding its files damaged and compiling again at each start."""
    if not is_known:
        monkeypatch.setattr(kernel_library, "_KeptLibrary", None)  # calling it is a TypeError
    folder = KernelFolder([Path(__file__)], "tests")
    folder.path = tmp_path
    for hits in (0, 1):
        kept = folder.cached(numba.njit(doubled))
        assert kept(21) == 42 and sum(kept.stats.cache_hits.values()) == hits
