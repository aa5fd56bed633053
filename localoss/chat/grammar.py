"""JSON schemas as masks over the next token, by llguidance; they hold inside one message only.

llguidance is part of `pip install 'localoss[tools]'` and 'localoss[server]'. It runs in a process of its own
(grammar_child.py), which ends if a schema takes too much time or memory; messages that followed another one
go on in the next.
"""

import atexit
import contextlib
import hashlib
import json
import queue
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from localoss.chat.grammar_process import Answer, GrammarProcess, RefusedError
from localoss.chat.harmony import TEXT_TOKENS
from localoss.errors import Cancelled, UsageError

ANY_OBJECT: dict[str, Any] = {"type": "object"}
_MAX_SCHEMA_CHARS = 500_000
# llguidance takes time with the square of these: 5,000 properties take 2.4 s, a constant of 400,000
# characters minutes.
_MAX_PROPERTIES, _MAX_LITERAL_CHARS = 5000, 20_000
_MAX_VALUES = 100_000
_LONG_S = 0.5  # of compiling: others' messages shall wait for no second one
_CHECKER_IDLE_S = 60.0  # it takes 140 MB

T = TypeVar("T")

_process = GrammarProcess()  # follows grammars
_checker = _process  # compiles new schemas: another one once one of them took long, or ended it


@atexit.register
def _close() -> None:
    for process in {_process, _checker}:
        process.close()


@dataclass
class Budget:
    """What compiling all the schemas of one request may take of a processor.

    is_gone: whether nobody waits any more.
    """

    left_s: float = 5.0
    is_gone: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Raises: UsageError once it is spent, Cancelled if nobody waits."""
        if self.is_gone():
            raise Cancelled("the client went away")
        if self.left_s <= 0:
            raise UsageError("the JSON schemas take too long to compile: give fewer, or simpler ones")


class Grammar:
    """A JSON schema, compiled.

    strict: every keyword must be followed. Otherwise those that llguidance doesn't know are left out, and
    what they ask for isn't promised. Raises: UsageError for a schema that is invalid, can't be followed or
    takes too long; Cancelled.
    """

    def __init__(self, schema: dict[str, Any], strict: bool = True, budget: Budget | None = None) -> None:
        _check_size(schema)
        try:
            self._text = json.dumps(schema, allow_nan=False)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the JSON schema is no JSON: {error}") from None
        if len(self._text) > _MAX_SCHEMA_CHARS:
            raise UsageError(
                f"the JSON schema has {len(self._text):,} characters; at most {_MAX_SCHEMA_CHARS:,} are taken"
            )
        self._strict = strict
        budget = budget or Budget()
        budget.check()
        refusal, cpu_s = _refusal(self._text, strict, budget)
        budget.left_s -= cpu_s
        if refusal:
            raise UsageError(refusal)

    @property
    def sent(self) -> dict[str, Any]:
        """What makes the same grammar elsewhere: schema and strict."""
        return {"schema": json.loads(self._text), "strict": self._strict}

    def begin(self, vocab_tokens: int) -> "Body":
        """Masks for a new message."""
        return Body(self._text, self._strict, vocab_tokens)


class _Asker:
    """Asks the process on a thread of its own, so that a model's pass runs meanwhile."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[tuple[Future[bool], Callable[[], bool]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, ask: Callable[[], bool]) -> "Future[bool]":
        """What `ask` gives, or raises, once it is its turn."""
        future: Future[bool] = Future()
        self._wanted.put((future, ask))
        if self._thread is None or not self._thread.is_alive():  # a forked process has none of its parent's
            self._thread = threading.Thread(target=self._run, name="masks", daemon=True)
            self._thread.start()
        return future

    def _run(self) -> None:
        while True:
            future, ask = self._wanted.get()
            try:
                future.set_result(ask())
            except Exception as error:
                future.set_exception(error)
            del future, ask  # a body that is let go of shall not stay until the next one asks


_asker = _Asker()


class Body:
    """Follows the tokens of one message that a grammar holds."""

    def __init__(self, schema: str, strict: bool, vocab_tokens: int) -> None:
        self._schema, self._strict = schema, strict
        self._number, self._generation = _process.new_body(), -1
        self._tokens: list[int] = []  # so far
        self._sent = 0  # of them
        self._mask = np.zeros(vocab_tokens, np.uint8)
        weakref.finalize(self, _process.drop, self._number).atexit = False
        self._is_complete = _asker.begin(self._look)  # once that is known, _mask is that of _tokens' end

    def mask(self, ending: int) -> npt.NDArray[np.uint8]:
        """Allowed ids as ones, (vocab_tokens,) u8; `ending` is among them once the JSON is complete.

        Raises: UsageError if the grammar became too complex to follow.
        """
        is_complete = self._is_complete.result()
        self._mask[TEXT_TOKENS:] = 0
        self._mask[ending] = is_complete
        return self._mask

    def has_mask(self, within_s: float) -> bool:
        """Whether `mask` needs no waiting, after waiting for it so long at most."""
        return bool(wait([self._is_complete], within_s).done)

    def advance(self, token: int) -> None:
        """Raises: ValueError for a token that the grammar doesn't allow."""
        self._is_complete.result()
        if not 0 <= token < TEXT_TOKENS or not self._mask[token]:
            raise ValueError(f"token {token} cannot stand here")
        self._tokens.append(token)
        self._is_complete = _asker.begin(self._look)

    def _look(self) -> bool:
        """Learn which tokens may come next; whether the JSON is complete."""
        answer = self._ask("mask", self._tokens[self._sent :], self._generation)
        if answer is None:  # a new message, or one whose process ended over another
            answer = self._ask("begin", self._tokens, None, schema=self._schema, strict=self._strict)
        assert answer
        mask, self._generation = answer.content, answer.generation
        self._sent = len(self._tokens)
        bits = np.frombuffer(mask, np.uint8, offset=1)
        self._mask[:TEXT_TOKENS] = np.unpackbits(bits, count=TEXT_TOKENS, bitorder="little")
        return bool(mask[0])

    def _ask(self, what: str, tokens: list[int], generation: int | None, **schema: Any) -> Answer | None:
        return _process.ask({"do": what, "body": self._number, "tokens": tokens, **schema}, generation)


class Remembered(Generic[T]):
    """What was found out about texts, which may be long: the latest `capacity`. Any thread may use it."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._found: OrderedDict[bytes, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, *text: str) -> T | None:
        key = self._key(text)
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, value: T, *text: str) -> None:
        with self._lock:
            self._found[self._key(text)] = value
            while len(self._found) > self._capacity:
                self._found.popitem(last=False)

    def _key(self, text: tuple[str, ...]) -> bytes:
        return hashlib.sha256(repr(text).encode("utf-8", "replace")).digest()


_refusals: Remembered[str] = Remembered(4096)  # why a schema can't be followed, or nothing


def warm_up() -> None:
    """Start what follows schemas before the first one comes; where it can't be, the first one says so."""
    with contextlib.suppress(UsageError, Cancelled):
        Grammar(ANY_OBJECT, strict=False)


def interrupt() -> None:
    """End what is being compiled: whoever waits for it gets Cancelled."""
    for process in {_process, _checker}:
        process.interrupt()


def _refusal(schema: str, strict: bool, budget: Budget) -> tuple[str, float]:
    """Why a schema can't be followed, or nothing, and the processor time it took to find out.

    Remembered, so that what takes too long does so once.
    """
    found, cpu_s = _refusals.get(schema, str(strict)), 0.0
    if found is None:
        found = ""
        try:
            request = {"do": "compile", "schema": schema, "strict": strict}
            if answer := _checker.ask(request, check=budget.check):
                cpu_s = answer.cpu_s
            if _checker is not _process:
                _asker.begin(lambda: bool(_process.ask(request)))  # the first message finds it there
        except RefusedError as error:
            found, cpu_s = str(error), error.cpu_s
        if cpu_s > _LONG_S:
            _check_apart()
        _refusals.put(found, schema, str(strict))
    return found, cpu_s


def _check_apart() -> None:
    """From now on have new schemas compiled by a process of their own, which ends where none come."""
    global _checker
    if _checker is _process:
        _checker = GrammarProcess(idle_s=_CHECKER_IDLE_S)


def _check_size(schema: Any) -> None:
    """Raises: UsageError for a schema that would take long however simple it is."""
    properties = 0
    for count, (key, value) in enumerate(_entries(schema)):
        if key in ("properties", "patternProperties", "required") and isinstance(value, Mapping | list):
            properties += len(value)
        longest = max(len(value) if isinstance(value, str) and key not in _PROSE else 0, len(key))
        if longest > _MAX_LITERAL_CHARS:
            raise UsageError(
                f"the JSON schema has a text of {longest:,} characters; "
                f"at most {_MAX_LITERAL_CHARS:,} are taken"
            )
        if properties > 2 * _MAX_PROPERTIES:  # each may be required, too
            raise UsageError(f"the JSON schema has more than {_MAX_PROPERTIES:,} properties")
        if count > _MAX_VALUES:
            raise UsageError(f"the JSON schema has more than {_MAX_VALUES:,} values")


_PROSE = ("description", "title", "$comment", "default", "examples")


def _entries(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value within `schema`; a list's values with the list's key."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, Mapping):
            waiting += ((str(name), inner) for name, inner in value.items())
        elif isinstance(value, list | tuple):
            waiting += ((key, inner) for inner in value)
