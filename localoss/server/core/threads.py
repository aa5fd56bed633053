"""Threads for what would hold up the event loop: tokenizing, compiling schemas, the stored responses."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

from localoss.chat import grammar
from localoss.chat.grammar import Budget
from localoss.errors import Cancelled
from localoss.server.core.errors import ApiError

# Always the same few: for every new thread openai-harmony makes itself new caches and keeps them for good.
_THREADS = 4

P = ParamSpec("P")
T = TypeVar("T")

_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="beside")
# Of their own, since one request's schemas may take seconds, and others' prompts wait to be tokenized.
_compilers = ThreadPoolExecutor(2, thread_name_prefix="compile")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """function(*args, **kwargs) on another thread than the event loop's. Raises: what it raises."""
    return await asyncio.get_running_loop().run_in_executor(_pool, lambda: function(*args, **kwargs))


async def compiling(function: Callable[..., T], *args: Any) -> T:
    """function(*args, budget), which compiles schemas, on a thread. It ends soon if nobody waits for it.

    Raises: what it raises; ApiError once the server is going down.
    """
    gone = threading.Event()
    _compiling.add(gone)
    budget = Budget(is_gone=gone.is_set)
    try:
        return await asyncio.get_running_loop().run_in_executor(_compilers, lambda: function(*args, budget))
    except Cancelled:
        raise ApiError("the server is shutting down", status=503, kind="server_error") from None
    finally:
        gone.set()


_compiling: "WeakSet[threading.Event]" = WeakSet()  # each is set when its schemas need no more compiling


def stop_compiling() -> None:
    """End what compiles, and answer its clients that the server is going down."""
    for gone in list(_compiling):
        gone.set()
    grammar.interrupt()
