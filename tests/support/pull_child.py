"""A pull in a process of its own, to be killed: pull_child.py NAME PIECE_BYTES [STEP].

Prints a line when the download is about to begin. With STEP it kills itself at that step of
quant.format.disk, after a line that names it.
"""

import sys

import pytest

from localoss.hub import transfer
from localoss.hub.progress import Progress
from localoss.hub.pull import Order, pull
from support.faults import KILL, Faults


class Telling(Progress):
    def begin(self, files, here):
        print("begun", flush=True)


class Deadly(Faults):
    def _strike(self, name, step, arguments):
        print(name, flush=True)
        super()._strike(name, step, arguments)


def main(name, piece_bytes, at=None):
    transfer.PIECE_BYTES = int(piece_bytes)
    steps = Deadly(pytest.MonkeyPatch(), *((KILL, int(at)) if at else ())).steps
    pull(Order(name), Telling())
    print(len(steps), "steps", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
