"""The environment variables that localoss reads, all of them here."""

import os
from pathlib import Path

from localoss.errors import UsageError

SIMD_NAMES = ("vnni", "avx2", "portable")


def simd() -> str | None:
    """LOCALOSS_SIMD: the instruction set to use; None for the best that the machine has."""
    value = os.environ.get("LOCALOSS_SIMD", "").strip().lower() or None
    if value not in (None, *SIMD_NAMES):
        raise UsageError(f"LOCALOSS_SIMD is {value!r}; use one of {', '.join(SIMD_NAMES)}")
    return value


def home() -> Path:
    """LOCALOSS_HOME, or the user's data folder: where models live."""
    from platformdirs import user_data_path

    value = os.environ.get("LOCALOSS_HOME")
    return Path(value).expanduser() if value else user_data_path("localoss", appauthor=False)


def kernel_cache() -> Path:
    """The user's cache folder for compiled kernels."""
    from platformdirs import user_cache_path

    return user_cache_path("localoss", appauthor=False) / "kernels"
