"""Fixtures that several test files share."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from support import checkpoints
from support.gpu_fixtures import gpu_adapter  # noqa: F401 - a fixture

from quant.convert import convert
from quant.format.manifest import Dtypes

if TYPE_CHECKING:
    from support.pseudo_terminal import Terminal

# A busy machine draws slowly: that says nothing about the code.
hypothesis_settings.register_profile("any machine", suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long proofs run only when asked for: `make soak`."""
    if not os.environ.get("LOCALOSS_SOAK"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="LOCALOSS_SOAK is not set"))


def pytest_collection_finish() -> None:
    """What all the imports have left stays: no collection need look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a checkpoint of support/checkpoints.py, by name; written once, to be read only."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder_of(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else checkpoints.write_named(name, folder)

    return folder_of


@pytest.fixture(scope="session")
def model(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the model directory of a checkpoint, by name and number formats (Dtypes' arguments); read only."""
    root = tmp_path_factory.mktemp("models")

    def folder_of(name: str, **dtypes: str) -> Path:
        folder = root / "-".join([name, *(f"{kind}-{dtype}" for kind, dtype in sorted(dtypes.items()))])
        if not folder.exists():
            convert(checkpoint(name), folder, Dtypes(**dtypes))
        return folder

    return folder_of


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Callable[..., "Terminal"]]:
    """Start a chat on a scripted engine at a pseudo-terminal, at its first prompt."""
    from support.pseudo_terminal import scripted_chat  # not on Windows

    started = []

    def start(*arguments: str, **script: Any) -> "Terminal":
        terminal = scripted_chat(tmp_path, *arguments, **script)
        started.append(terminal)
        terminal.wait_for_prompt()
        return terminal

    yield start
    for terminal in started:
        terminal.close()
