"""Fixtures that several test files share."""

import contextlib
import functools
import gc
import os
import signal
import subprocess
import sys
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

_FOR_FORKS = "LOCALOSS_TESTS_FORK"
gc.disable()  # until all is imported: little of it is garbage
# A shell that starts this in the background has it ignore Ctrl-C, and with it all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine draws slowly: that says nothing about the code.
hypothesis_settings.register_profile("any machine", suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long proofs run only when asked for: `make soak`."""
    if not os.environ.get("LOCALOSS_SOAK"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="LOCALOSS_SOAK is not set"))


def runs_elsewhere(item: pytest.Item) -> bool:
    """Whether `item` forks, and this process, which may have run kernels or be large, isn't made for it."""
    return bool(item.get_closest_marker("forks")) and not os.environ.get(_FOR_FORKS)


@functools.cache
def done_elsewhere(root: Path, names: tuple[str, ...]) -> tuple[bool, str]:
    """Whether all of these tests passed in a process of their own, and what it said."""
    command = [sys.executable, "-m", "pytest", "-q", "-rpfE", "-p", "no:cacheprovider", *names]
    environment = os.environ | {_FOR_FORKS: "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    return done.returncode == 0, done.stdout


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run a file's tests that fork in a small process that has run nothing, none of their fixtures here."""
    if runs_elsewhere(item) and not any(item.iter_markers("skip")):
        its_file = [one for one in item.session.items if one.path == item.path and runs_elsewhere(one)]
        names = [one.nodeid for one in its_file if not any(one.iter_markers("skip"))]
        all_passed, said = done_elsewhere(item.config.rootpath, tuple(names))
        if not all_passed and f"PASSED {item.nodeid}" not in said.splitlines():
            pytest.fail(said[-8000:], pytrace=False)
        item.fixturenames.clear()  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """What ran elsewhere has passed."""
    return True if runs_elsewhere(pyfuncitem) else None


def pytest_collection_finish() -> None:
    """What all the imports have left stays: no collection need look at it again and again."""
    gc.collect()
    gc.freeze()
    # Tests leave a great deal behind that lives for a while: with the usual thresholds it was looked at again
    # and again, for a twentieth of their time.
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _certificates_are_read_once() -> None:
    """The tests make hundreds of HTTP clients, and each would read all of the system's: 25 ms."""
    with contextlib.suppress(ImportError):
        import httpcore2

        httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)


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
