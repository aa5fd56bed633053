"""Runs within the sandbox, as a program: code comes as lines of JSON, and a line of JSON says how it went.

What the code prints goes to standard output as it is. Nothing of localoss is there: standard library only.
"""

import ast
import base64
import ctypes
import gc
import glob
import io
import json
import os
import resource
import sys
import traceback
from typing import Any

MEMORY_BYTES = 2 << 30  # of addresses
FILE_BYTES = 200_000_000
MOST_PICTURES, MOST_PICTURE_BYTES = 10, 5_000_000
_NAME = "<python>"
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # of prctl(2)
_shown: dict[str, int] = {}  # pictures in the folder that were given already, with the time of each


def main() -> None:
    replies = os.fdopen(int(sys.argv[1]), "w", encoding="ascii")
    requests = os.fdopen(os.dup(0), "r", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if sys.argv[2]:  # where there is no filter, as on macOS, addresses can't be bounded, and it is watched
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    if sys.argv[2]:
        _forbid(base64.b64decode(sys.argv[2]))
    space: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    for number, line in enumerate(requests):
        ok = _run(json.loads(line)["code"], space, number)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        replies.write(json.dumps({"ok": ok, "pictures": _pictures()}) + "\n")
        replies.flush()


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _forbid(steps: bytes) -> None:
    """Have the kernel hold this process to a filter of system calls, for good."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or prctl(
        _SECCOMP, _FILTER, ctypes.byref(_Program(len(steps) // 8, steps))
    ):
        sys.exit(f"the filter of system calls is refused: {os.strerror(ctypes.get_errno())}")


def _run(code: str, space: dict[str, Any], number: int) -> bool:
    name = f"{_NAME[:-1]}-{number}>"
    try:
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        _remember(name, code)
        exec(compile(tree, name, "exec"), space)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), space)
            if value is not None and not code.rstrip().endswith(";"):
                space["_"] = value
                print(repr(value))
        return True
    except SystemExit:
        return True
    except MemoryError:
        gc.collect()
        print(f"MemoryError: more than {MEMORY_BYTES / 1e9:.1f} GB", file=sys.stderr)
    except BaseException as error:
        _print_error(error)
    return False


def _print_error(error: BaseException) -> None:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    try:
        traceback.print_exception(type(error), error, frames)
    except Exception:
        print(f"{type(error).__name__} (which can't be shown)", file=sys.stderr)


def _remember(name: str, code: str) -> None:
    """Have tracebacks show the lines of `code`."""
    import linecache

    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)


def _pictures() -> list[str]:
    """Figures that are open, and pictures that were written, as base64."""
    found: list[bytes] = []
    try:
        plots = sys.modules.get("matplotlib.pyplot")
        for number in plots.get_fignums() if plots else ():
            file = io.BytesIO()
            plots.figure(number).savefig(file, format="png")  # type: ignore[union-attr]
            found.append(file.getvalue())
        if plots:
            plots.close("all")
        for path in sorted(glob.glob("*.png")):
            changed = os.stat(path).st_mtime_ns
            if _shown.get(path) != changed and os.path.getsize(path) <= MOST_PICTURE_BYTES:
                _shown[path] = changed
                with open(path, "rb") as picture:
                    found.append(picture.read())
    except Exception as error:
        print(f"a picture can't be shown: {error}", file=sys.stderr)
    kept = [data for data in found if len(data) <= MOST_PICTURE_BYTES]
    return [base64.b64encode(data).decode("ascii") for data in kept[:MOST_PICTURES]]


if __name__ == "__main__":
    main()
