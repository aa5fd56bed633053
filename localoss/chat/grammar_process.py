"""The process that follows grammars, as its parent sees it (grammar_child.py is the program).

It is started when it is needed, and again when it ended over a schema that took too much.
"""

import itertools
import json
import struct
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from localoss.chat.child import Child, end_when_idle
from localoss.chat.harmony import RETURN, TEXT_TOKENS, VOCABULARY_FOLDER, VOCABULARY_TOKENS
from localoss.errors import Cancelled, UsageError

CPU_S = 2.0  # of one request
_HEAD = struct.Struct("<Bd")
_PROGRAM = Path(__file__).with_name("grammar_child.py")


class RefusedError(UsageError):
    """A schema that can't be followed, or that took more than it may. cpu_s: how long it took to find out."""

    def __init__(self, message: str, cpu_s: float) -> None:
        super().__init__(message)
        self.cpu_s = cpu_s


class Answer(NamedTuple):
    """What a request gave. generation: of the process that gave it. cpu_s: what it took."""

    content: bytes
    generation: int
    cpu_s: float


class GrammarProcess:
    """Compiles schemas and follows them; any thread may ask it, one at a time.

    idle_s: how long after the last request it ends; None for not before its program. cpu_s: processor time
    that one request may take.
    """

    def __init__(self, idle_s: float | None = None, cpu_s: float = CPU_S) -> None:
        self._idle_s, self._cpu_s, self._asked_s = idle_s, cpu_s, 0.0
        self._process: Child | None = None
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._dropped: list[int] = []
        self._interrupted: Child | None = None
        self._generation = 0  # how often it was started: bodies of an earlier one are gone

    def new_body(self) -> int:
        """A number for a message that follows a grammar."""
        return next(self._numbers)

    def drop(self, body: int) -> None:
        """Nobody needs `body` any more. May be called by the garbage collector, so it takes no lock."""
        self._dropped.append(body)

    def ask(
        self, request: dict[str, Any], generation: int | None = None, check: Callable[[], None] | None = None
    ) -> Answer | None:
        """The answer to a request. check: raises if it isn't wanted any more once it is its turn.

        None if the process isn't of `generation`, and so knows nothing of what that one was told.
        Raises: RefusedError; UsageError if there is no llguidance, or no process to be had; Cancelled if it
        was closed over it.
        """
        with self._lock:
            if generation is not None and (self._process is None or generation != self._generation):
                return None
            if self._process is None:
                if check:
                    check()
                self._start()
            if check:
                check()
            dropped, self._dropped = self._dropped, []
            process = self._process
            assert process
            content = process.exchange(json.dumps(request | {"drop": dropped}).encode())
            if not content:
                self._end()
            answered_by, self._asked_s = self._generation, time.monotonic()
        if content is None and process is self._interrupted:
            if request["do"] == "compile":
                raise Cancelled("the process that follows JSON schemas was ended")
            return None if generation is not None else self.ask(request)
        if content is None:
            told = "the JSON schema is too complex: it took more time or memory than one may"
            raise RefusedError(told, self._cpu_s)
        is_refused, cpu_s = _HEAD.unpack_from(content)
        content = content[_HEAD.size :]
        if is_refused:
            raise RefusedError(f"the JSON schema {content.decode('utf-8', 'replace')}", cpu_s)
        return Answer(content, answered_by, cpu_s)

    def interrupt(self) -> None:
        """End what is being compiled, whose asker gets Cancelled; messages go on in the next process."""
        if process := self._process:
            self._interrupted = process
            process.kill()  # whoever waits for its answer finds it ended

    def close(self) -> None:
        """End the process; the next request starts another."""
        self.interrupt()
        with self._lock:
            self._end()

    def _start(self) -> None:
        """Raises: UsageError if it can't be started."""
        if find_spec("llguidance") is None:
            raise UsageError("JSON schemas need llguidance: pip install 'localoss[tools]'")
        vocabulary = VOCABULARY_FOLDER / "o200k_base.tiktoken"
        numbers = map(str, (TEXT_TOKENS, VOCABULARY_TOKENS, RETURN, self._cpu_s))
        try:
            self._process = Child([sys.executable, "-P", str(_PROGRAM), str(vocabulary), *numbers])
        except OSError as error:
            raise UsageError(
                f"JSON schemas need a process of their own, which can't be started ({error.strerror})"
            ) from None
        self._generation, self._asked_s = self._generation + 1, time.monotonic()
        process = self._process
        if (idle_s := self._idle_s) is not None:
            end_when_idle(self._lock, lambda: self._asked_s + idle_s, self._end)
        if process.read() is None:
            self._end()
            if process is self._interrupted:
                raise Cancelled("the process that follows JSON schemas was ended")
            raise UsageError("JSON schemas need a process of their own, which ended as it started")

    def _end(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
