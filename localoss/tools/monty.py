"""Python by pydantic-monty: no files, no network and no environment, in a worker process."""

import contextlib
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from localoss.chat.agent import Result, Stop
from localoss.errors import LocalossError, UsageError
from localoss.tools.output import Output
from localoss.tools.python_tool import (
    DRIVE,
    INTERNET,
    LIMIT_S,
    NO_OUTPUT,
    RESTARTED,
    after_output,
    showing_last,
)
from localoss.tools.workers import unheard_ctrl_c

if TYPE_CHECKING:
    from pydantic_monty import Monty, MontySession

MEMORY_BYTES = 512_000_000
_BACKSTOP_S = 10.0  # past the limit that the caller enforces
_PROBED = """\
asyncio base64 bisect calendar cmath collections copy csv dataclasses datetime decimal enum fractions \
functools hashlib heapq io itertools json math numbers operator random re statistics string textwrap time \
typing uuid numpy sympy"""
_PROBE = "\n".join(
    f"try:\n    import {name}\n    _found.append('{name}')\nexcept ImportError:\n    pass"
    for name in _PROBED.split()
)


class MontyPython:
    """A worker for a conversation; it is replaced when it crashed or had to be ended."""

    reach = "nothing: no files, no network, no environment"

    def __init__(self) -> None:
        """Raises: UsageError if it isn't installed."""
        try:
            import pydantic_monty
        except ImportError:
            raise UsageError("the python tool needs pydantic-monty: pip install 'localoss[tools]'") from None
        self._monty = pydantic_monty
        self._pool: Monty | None = None
        self._session: MontySession | None = None
        self._modules = self._probe()

    def notes(self) -> tuple[tuple[str, str], ...]:
        there = f" It is a subset of Python 3 without generators; these modules are there: {self._modules}."
        return ((DRIVE, there), (INTERNET, "There are no files and no internet access."))

    def run(self, code: str, stop: Stop) -> Result:
        session, output = self._open(), Output()
        pid = session.worker_pid  # while it runs, it doesn't tell
        try:
            with stop.ending(lambda: _kill(pid)):
                session.feed_run(showing_last(code), print_callback=lambda _stream, text: output.write(text))
        except self._monty.MontyCrashedError:
            self._forget()
            why = (
                f"TimeoutError: it ran longer than {LIMIT_S:.0f} s" if stop.reason == "time" else "it crashed"
            )
            return Result(after_output(output, f"{why}\n{RESTARTED}"), ok=False)
        except self._monty.MontyError as error:
            shown = error.display() if hasattr(error, "display") else str(error)
            if "time limit exceeded" in shown:  # that leaves a session in no known state
                self._forget()
                shown += f"\n{RESTARTED}"
            return Result(after_output(output, shown), ok=False)
        except (OSError, RuntimeError, TimeoutError) as error:
            self._forget()
            return Result(after_output(output, f"python failed: {error}\n{RESTARTED}"), ok=False)
        return Result(str(output) or NO_OUTPUT)

    def close(self) -> None:
        self._forget()

    def _open(self) -> "MontySession":
        if self._session is None:
            try:
                limits = {"max_memory": MEMORY_BYTES, "max_feed_duration_secs": LIMIT_S + _BACKSTOP_S}
                with unheard_ctrl_c():
                    self._pool = self._monty.Monty(binary_path=_binary(), max_processes=1)
                    self._pool.__enter__()
                    session = self._pool.checkout(script_name="python", limits=limits)  # type: ignore[arg-type]
                    session.__enter__()
            except (OSError, RuntimeError, self._monty.MontyError) as error:
                self._forget()
                raise LocalossError(
                    f"python can't be started ({error}); install localoss[tools] again"
                ) from None
            self._session = session
        return self._session

    def _probe(self) -> str:
        """The modules that there are, as the model is told."""
        session = self._open()
        found = session.feed_run(f"_found = []\n{_PROBE}\n_found")
        session.feed_run("_found = None")
        return ", ".join(found)

    def _forget(self) -> None:
        session, pool, self._session, self._pool = self._session, self._pool, None, None
        for context in (session, pool):
            if context is not None:
                with contextlib.suppress(self._monty.MontyError, OSError, RuntimeError):
                    context.__exit__(None, None, None)


def _kill(pid: int | None) -> None:
    import psutil

    if pid:
        with contextlib.suppress(psutil.Error):
            psutil.Process(pid).kill()


def _binary() -> Path | None:
    """The worker's program, wherever pip put it; None leaves it to the library to look for it."""
    try:
        files = importlib.metadata.files("pydantic-monty-runtime") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(file.locate()) for file in files if file.name in ("monty", "monty.exe"))
    return next((path for path in found if path.is_file()), None)
