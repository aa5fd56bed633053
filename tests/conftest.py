"""Fixtures that several test files share."""

from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a checkpoint of tests/checkpoints.py, by name; written once, to be read only."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder_of(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else checkpoints.write_named(name, folder)

    return folder_of
