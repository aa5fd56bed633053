"""A process that answers frames: what may take too long, or too much memory, is done there and can be ended.

Frames go over its standard input and output: four bytes of length, then the content. grammar_child.py has the
other end.
"""

import contextlib
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

_LENGTH = struct.Struct("<I")


class Child:
    """One such process, from its start to its end; whoever asks it does so one at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        """Raises: OSError if it can't be started."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # panics of Rust's libraries
            start_new_session=True,  # Ctrl-C isn't for it, not even as it starts
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def exchange(self, content: bytes) -> bytes | None:
        """What is answered to `content`; None if the process ended over it."""
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.write(_LENGTH.pack(len(content)))
            self._process.stdin.write(content)
            self._process.stdin.flush()
            return self.read()
        return None

    def read(self) -> bytes | None:
        """The next frame; None if the process ended."""
        assert self._process.stdout
        head = self._process.stdout.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack(head)
        content = self._process.stdout.read(size)
        return content if len(content) == size else None

    def kill(self) -> None:
        """End it while another thread may wait for its answer, which finds it ended."""
        self._process.kill()

    def close(self) -> None:
        """End it, and take what is left of it from the system."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not flushed
                assert pipe
                pipe.close()
        self._process.wait()


def end_when_idle(lock: threading.Lock, until_s: Callable[[], float], end: Callable[[], None]) -> None:
    """Call `end` under `lock` once until_s(), by the monotonic clock, is over, which each use puts off."""

    def wait() -> None:
        while (left_s := until_s() - time.monotonic()) > 0:
            time.sleep(left_s)
        with lock:
            end()

    threading.Thread(target=wait, name="idle child", daemon=True).start()
