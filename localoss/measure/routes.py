"""A log of the experts that the router chose: on it caches of any size and rule can be tried."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localoss.engine.engine import Engine
from localoss.errors import UsageError
from localoss.model.cpu_layers import CpuLayers

HEADER = "phase,step,layer,slot,expert,turn"
_PROMPT, _DECODING = 0, 1


class RouteLog:
    """Lines of CSV, one for each choice: phase 0 of a prompt or 1 of a decoded token, step (tokens are
    counted from 0), layer, slot (0 for the expert of the largest weight), expert, and turn, which counts
    prompts.
    """

    def __init__(self, path: Path) -> None:
        """Raises: UsageError."""
        try:
            self._file = open(path, "w", encoding="ascii", newline="\n")  # noqa: SIM115 - closed by close
        except OSError as error:
            raise UsageError(f"--routes {path}: cannot be written ({error.strerror})") from None
        self._file.write(f"{HEADER}\n")
        self._next = self._pass_tokens = 0  # steps before this pass, and tokens seen of it
        self._turn, self._was_prompt = -1, False

    def note(self, layer: int, first: int, ids: NDArray[np.int32]) -> None:
        """See CpuLayers.routed."""
        if layer == 0 and first == 0:
            self._next += self._pass_tokens
            self._pass_tokens = 0
            is_prompt = len(ids) > 1
            self._turn += is_prompt and not self._was_prompt
            self._was_prompt = is_prompt
        self._pass_tokens = max(self._pass_tokens, first + len(ids))
        phase, turn = _PROMPT if self._was_prompt else _DECODING, max(self._turn, 0)
        for row, chosen in enumerate(ids.tolist()):
            step = self._next + first + row
            self._file.writelines(f"{phase},{step},{layer},{a},{e},{turn}\n" for a, e in enumerate(chosen))

    def close(self) -> None:
        self._file.close()


@contextmanager
def logged_routes(engine: Engine, path: Path | None) -> Iterator[None]:
    """Meanwhile, write the router's choices to `path`, if there is one. Raises: UsageError."""
    if path is None:
        yield
        return
    stacks = [stack for stack in engine.model.stacks if isinstance(stack, CpuLayers)]
    if len(stacks) < len(engine.model.stacks):
        raise UsageError("--routes logs what the CPU chose; run all layers on it")
    log = RouteLog(path)
    try:
        for stack in stacks:
            stack.routed = log.note
        yield
    finally:
        for stack in stacks:
            stack.routed = None
        log.close()
