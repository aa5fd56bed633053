"""What is large is read in a process of its own: parsed, checked, rendered and tokenized.

All of that holds Python's lock, up to 60 ms at a time, and every token that is generated needs it. The
process has a low priority, so what computes answers goes first; apart_child.py is its program.
"""

import asyncio
import atexit
import functools
import pickle
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from localoss.chat.child import Child, end_when_idle
from localoss.errors import Cancelled
from localoss.server.core.errors import ApiError, too_much

LARGE = 64 * 1024  # bytes or characters: what is larger is read here
_IDLE_S = 600.0  # agents send 100 kB each time, and people think between two of them
_PATIENCE_S = 1.0  # so long it goes on with what nobody waits for: its start takes as much
_PROGRAM = "import sys; sys.path[:] = {path!r}; from localoss.server.core.apart_child import main; main()"

P = ParamSpec("P")
T = TypeVar("T")


class _Call:
    """What somebody waits for, until they are gone."""

    is_gone = False


class Apart:
    """Calls functions in a process, one at a time; it is started when it is needed, and after its end."""

    def __init__(self, idle_s: float = _IDLE_S) -> None:
        """idle_s: how long after the last call it ends."""
        self._idle_s, self._asked_s = idle_s, 0.0
        self._child: Child | None = None
        self._lock = threading.Lock()  # for a call
        self._running: _Call | None = None
        self._is_killed = False
        self._killing = threading.Lock()  # so that it isn't another call's process that is ended

    def call(self, waiting: _Call, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """function(*args, **kwargs), which a pickle can name. Raises: what it raises; ApiError if it took too
        much, or there is no process; Cancelled if nobody waits for it when it is its turn.
        """
        request = pickle.dumps((function, args, kwargs), pickle.HIGHEST_PROTOCOL)
        with self._lock:
            if waiting.is_gone:
                raise Cancelled("nobody waits for it")
            child = self._child = self._child or self._started()
            with self._killing:
                self._running = waiting
            answer = child.exchange(request)
            with self._killing:
                self._running = None
                if answer is None or self._is_killed:
                    self._end()
            self._asked_s = time.monotonic()
        if answer is None:
            raise too_much()
        is_error, content = pickle.loads(answer)
        if is_error:
            raise content
        result: T = content
        return result

    def leave(self, waiting: _Call) -> None:
        """End the process if it is still busy with what nobody waits for."""
        with self._killing:
            if self._running is waiting and self._child:
                self._is_killed = True
                self._child.kill()

    def close(self) -> None:
        """End the process, whatever it does; the next call starts another."""
        with self._killing:
            if self._child:
                self._is_killed = True
                self._child.kill()
        with self._lock, self._killing:
            self._end()

    def _started(self) -> Child:
        """Raises: ApiError if it can't be."""
        child = None
        try:
            child = Child([sys.executable, "-c", _PROGRAM.format(path=sys.path)])
            if child.read() is None:
                child.close()
                raise OSError
        except OSError:
            raise ApiError(
                "the process that reads large requests can't be started; send less at once",
                status=503,
                kind="server_error",
            ) from None
        self._asked_s = time.monotonic()
        end_when_idle(self._lock, lambda: self._asked_s + self._idle_s, self._end)
        return child

    def _end(self) -> None:
        self._is_killed = False
        if self._child:
            self._child.close()
            self._child = None


_apart = Apart()
_callers = ThreadPoolExecutor(1, thread_name_prefix="large")
atexit.register(_apart.close)


async def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """function(*args, **kwargs) in the process for what is large. Raises: as Apart.call."""
    loop, waiting = asyncio.get_running_loop(), _Call()
    call = functools.partial(_apart.call, waiting, function, *args, **kwargs)
    try:
        return await loop.run_in_executor(_callers, call)
    except asyncio.CancelledError:
        waiting.is_gone = True
        loop.call_later(_PATIENCE_S, _apart.leave, waiting)
        raise


def stop_reading() -> None:
    """End what is being read, as the server goes down."""
    _apart.close()
