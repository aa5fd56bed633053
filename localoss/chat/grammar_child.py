"""The process in which llguidance compiles schemas and follows them: a program of its own, run by its path.

Some schemas take minutes or gigabytes however short they are, and no thread can be ended. This process ends
itself when one request takes too much; what comes out of llguidance's panics ends with it, too.

Frames go over standard input and output: four bytes of length, then JSON; a mask comes as bytes. Requests:
{"do": "compile", "schema", "strict"}, {"do": "begin", "body", "schema", "strict", "tokens"}, {"do": "mask",
"body", "tokens"}, each with "drop", bodies that nobody needs any more. Answers begin with a byte: 0, then a
mask or nothing; 1, then an error's text. Between them is the processor time that it took, a double, in s.
"""

import binascii
import contextlib
import faulthandler
import json
import os
import signal
import struct
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_WALL_S, _MEMORY_BYTES = 30.0, 2 << 30  # of one request
_NICENESS = 5
_KEPT = 64  # compiled schemas
# Unbounded whitespace lets a model that is at a loss go on with spaces until its tokens run out.
_WHITESPACE = r"[ \n\t]{0,32}"
_MAX_REASON_CHARS = 300


class _Refused(Exception):
    """A schema that can't be followed, and why."""


class _Follower:
    """Compiled schemas, and the messages that follow them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._compiled: OrderedDict[tuple[str, bool], Any] = OrderedDict()
        self._bodies: dict[int, Any] = {}

    def answer(self, request: dict[str, Any]) -> bytes:
        """What a request gives. Raises: _Refused."""
        for body in request.get("drop", ()):
            self._bodies.pop(body, None)
        if request["do"] == "mask":
            return self._mask(self._bodies[request["body"]], request["tokens"])
        matcher = self._matcher(request["schema"], request["strict"])
        if request["do"] == "compile":
            return b""
        body = self._bodies[request["body"]] = matcher.deep_copy()
        return self._mask(body, request["tokens"])

    def _matcher(self, schema: str, strict: bool) -> Any:
        key = (schema, strict)
        if key not in self._compiled:
            self._compiled[key] = self._compile(schema, strict)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key]

    def _compile(self, schema: str, strict: bool) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        options = {"whitespace_pattern": _WHITESPACE, "lenient": not strict}
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=options)  # type: ignore[arg-type]
        except ValueError as error:
            raise _Refused(f"can't be used: {_one_line(error)}") from None
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise _Refused(f"can't be followed: {_one_line(matcher.get_error())}")
        self._mask(matcher.deep_copy(), [])  # some show only then that they are too complex
        return matcher

    def _mask(self, matcher: Any, tokens: list[int]) -> bytes:
        """Whether the JSON is complete after `tokens`, a byte, and the tokens that may follow, a bit each."""
        for token in tokens:
            if not matcher.consume_token(token):
                raise _Refused(f"token {token} cannot stand here: {_one_line(matcher.get_error())}")
        bits: bytes = matcher.compute_bitmask()
        if matcher.is_error():
            raise _Refused(f"is too complex: {_one_line(matcher.get_error())}")
        return bytes([matcher.is_accepting()]) + bits


def _one_line(error: Any) -> str:
    text = " ".join(str(error).split())
    if "panic" in text or "backtrace" in text:
        return "it is too large"
    return text.partition(" <state>")[0][:_MAX_REASON_CHARS]


def _tokenizer(vocabulary: str, text_tokens: int, all_tokens: int, end: int) -> Any:
    """The vocabulary for llguidance, from the file that comes with localoss; takes a second or two."""
    from llguidance import LLTokenizer

    words = Path(vocabulary).read_bytes().split()
    ranks = dict(zip(map(binascii.a2b_base64, words[::2]), map(int, words[1::2]), strict=True))
    control = {f"<|control_{token}|>": token for token in range(text_tokens, all_tokens)}
    return LLTokenizer.from_tiktoken(  # missing in its stubs
        encoder=ranks,
        special_tokens=control,
        pattern=r"\s+|\S+",  # splits text to be tokenized; masks don't depend on it
        eos_token=end,
        n_vocab=all_tokens,
        slices=None,
    )


def set_up() -> None:
    """Ctrl-C is for the parent, and memory has a bound. As all of these, for other such programs, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        import resource

        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def give_way(niceness: int) -> None:
    """What computes answers goes first."""
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(niceness)


@contextlib.contextmanager
def limited(cpu_s: float, wall_s: float) -> Iterator[None]:
    """The time that one request may take; beyond it the system ends this process."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF ends a process
    faulthandler.dump_traceback_later(wall_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)


def read_frame(pipe: BinaryIO) -> bytes | None:
    head = pipe.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack("<I", head)
    content = pipe.read(size)
    return content if len(content) == size else None


def write_frame(pipe: BinaryIO, *parts: bytes) -> None:
    content = b"".join(parts)
    pipe.write(struct.pack("<I", len(content)) + content)
    pipe.flush()


def main() -> None:
    """Answer frames until the parent is gone.

    Arguments: the vocabulary's file, three numbers of it, and the processor time of one request, in s.
    """
    pipe_in, pipe_out = sys.stdin.buffer, sys.stdout.buffer
    set_up()
    *numbers, cpu_s = sys.argv[2:]
    follower = _Follower(_tokenizer(sys.argv[1], *map(int, numbers)))
    give_way(_NICENESS)  # only now: the first request waits until the vocabulary is read
    write_frame(pipe_out)
    while (content := read_frame(pipe_in)) is not None:
        began_s, status = time.process_time(), 0
        with limited(float(cpu_s), _WALL_S):
            try:
                answer = follower.answer(json.loads(content))
            except _Refused as refused:
                status, answer = 1, str(refused).encode("utf-8", "replace")
            except Exception as error:
                status, answer = 1, f"can't be followed: {type(error).__name__}".encode()
        write_frame(pipe_out, struct.pack("<Bd", status, time.process_time() - began_s), answer)


if __name__ == "__main__":
    main()
