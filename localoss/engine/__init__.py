"""A loaded model and what generates on it."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`from localoss.engine import Engine` goes on working; the module that has it brings Numba."""
    if name == "Engine":
        from localoss.engine.engine import Engine

        return Engine
    raise AttributeError(f"module 'localoss.engine' has no attribute {name!r}")
