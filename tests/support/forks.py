"""A function in a process of its own, forked: its exit code, what it said, its processor time and memory."""

import gc
import importlib
import os
import sys
import tempfile
import threading
from dataclasses import dataclass

from localoss import cli

# What the commands import when they need it: once, here, rather than in each process.
PRELOADED = """localoss.chat.session localoss.cli.chat localoss.engine.loader localoss.engine.warmup
localoss.engine.engine localoss.hub.pull localoss.hub.store localoss.measure.bench localoss.plan.memory
localoss.server.core.response_store localoss.tools.documents_index quant.convert rich.table"""


def preload():
    for name in PRELOADED.split():
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is forked looks at none of it for garbage


@dataclass(frozen=True)
class Outcome:
    """code: negative for a signal. seconds: of processor time. mb: its peak of memory."""

    code: int
    said: str
    seconds: float
    mb: float

    def check(self, what):
        """It ended as commands end: no crash, no traceback, one line at most that says what is wrong."""
        told = f"{what}: {self}"
        assert self.code in (0, 1, 2), told
        assert "Traceback" not in self.said and "a bug" not in self.said, told
        assert self.said.count("error:") <= 1, told
        assert self.seconds < 5 and self.mb < 500, told


def outcome(work, stdin=b"", patience_s=120.0):
    """Run `work()`, which gives an exit code, or raises as commands do."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            for number, file in enumerate((given, said, said)):
                os.dup2(file.fileno(), number)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, "rww"[number]) for number in range(3))
            code = 99
            try:
                code = work()
            except SystemExit as error:
                code = int(error.code or 0)
            except Exception as error:
                code = cli._explain(error)
            except BaseException as error:
                print("Traceback", repr(error))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        watch = threading.Timer(patience_s, os.kill, (pid, 9))
        watch.start()
        _, status, used = os.wait4(pid, 0)
        watch.cancel()
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(status)
    mb = used.ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)
    return Outcome(code, text[-4000:], used.ru_utime + used.ru_stime, mb)
