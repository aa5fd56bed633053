"""`python -m localoss.hub.told NAME` pulls a model and tells how it goes on: an object of JSON a line.

For programs that wait for it: {"say": text}, {"file", "digest", "done", "total"} and, last, {"pulled": NAME}
or {"error": text}. It ends once nobody reads its lines any more; what has come is kept, as by any pull.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from localoss.errors import LocalossError
from localoss.hub.listing import RemoteFile
from localoss.hub.progress import Progress
from localoss.hub.pull import Order, pull

_EVERY_S = 0.2  # between two lines about one file


class Telling(Progress):
    """Tells, by `tell`, what is said, and of each file how much is here: not each time, but the last one."""

    def __init__(self, tell: Callable[[dict[str, Any]], None], clock: Callable[[], float] = time.monotonic):
        self._tell, self._clock = tell, clock
        self._digests: dict[str, str] = {}
        self._next_s = 0.0
        self._converts = False

    def say(self, text: str) -> None:
        self._tell({"say": text})

    def begin(self, files: Sequence[RemoteFile], here: dict[str, int]) -> None:
        # Where the hub tells no sha256 it is the name's, which stands for the file as well.
        self._digests = {
            file.name: file.sha256 or hashlib.sha256(file.name.encode()).hexdigest() for file in files
        }

    def fetched(self, name: str, done_bytes: int, total_bytes: int) -> None:
        now_s = self._clock()
        if now_s >= self._next_s or done_bytes == total_bytes:
            self._next_s = now_s + _EVERY_S
            self._tell(
                {"file": name, "digest": self._digests[name], "done": done_bytes, "total": total_bytes}
            )

    def converted(self, done_bytes: int, total_bytes: int) -> None:
        if not self._converts:
            self._converts = True
            self.say("converting")


def main(name: str) -> int:
    """Pull `name`; gives the process's exit code."""
    try:
        pull(Order(name), Telling(_print))
        _print({"pulled": name})
    except LocalossError as error:
        _print({"error": str(error)})
        return 1
    except KeyboardInterrupt:  # it is the server that tells what Ctrl-C means
        return 130
    return 0


def _print(line: dict[str, Any]) -> None:
    """Ends the process where nobody reads any more, its threads' requests, too: nothing is held back."""
    try:
        print(json.dumps(line), flush=True)
    except OSError:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
