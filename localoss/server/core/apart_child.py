"""The process that reads what is large: a program that calls what its parent names, until that is gone.

A frame holds a pickle of a function and its arguments; its answer one of whether it failed, and of what it
gave or raised. It is one program in two processes: nobody else can write to these pipes.
"""

import pickle
import sys
from typing import Any

from localoss.chat.grammar_child import give_way, limited, read_frame, set_up, write_frame
from localoss.server.core.errors import too_much

_CPU_S, _WALL_S = 20.0, 300.0  # a context of 131,072 tokens of Chinese takes five seconds
_NICENESS = 10


def _called(content: bytes) -> tuple[bool, Any]:
    """Whether a call failed, and what it gave or raised."""
    function, args, kwargs = pickle.loads(content)
    try:
        return False, function(*args, **kwargs)
    except MemoryError:
        return True, too_much()
    except Exception as error:
        return True, error


def main() -> None:
    """Answer frames."""
    pipe_in, pipe_out = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    set_up()
    give_way(_NICENESS)
    write_frame(pipe_out)
    while (content := read_frame(pipe_in)) is not None:
        with limited(_CPU_S, _WALL_S):
            answer = pickle.dumps(_called(content), pickle.HIGHEST_PROTOCOL)
        write_frame(pipe_out, answer)
        del content, answer
