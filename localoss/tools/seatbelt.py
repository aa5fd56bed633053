"""macOS's sandbox for cpython: a profile that forbids all but what Python needs, applied by sandbox-exec.

Apple calls sandbox-exec deprecated, and ships it with every macOS; Chromium and others rely on its profiles.
It bounds neither memory nor the disk: whoever reads the process's replies watches both.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from localoss.errors import UsageError
from localoss.tools.cage import Cage

_PROGRAM = "/usr/bin/sandbox-exec"
# What the system's own libraries are read from, and what Homebrew's Python links to; nobody's own files.
_SYSTEM = (
    "/System/Library", "/usr/lib", "/usr/share", "/Library/Apple/System/Library", "/private/var/db/dyld",
    "/private/var/db/timezone", "/opt/homebrew/Cellar", "/opt/homebrew/opt", "/opt/homebrew/lib",
    "/usr/local/Cellar", "/usr/local/opt", "/usr/local/lib",
)  # fmt: skip
_FILES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/private/etc/localtime")
# The name of the machine and its processes are sysctls, too: these say what the CPU is.
_SYSCTLS = (
    "hw.activecpu", "hw.byteorder", "hw.cachelinesize", "hw.cpufamily", "hw.cputype", "hw.logicalcpu",
    "hw.logicalcpu_max", "hw.machine", "hw.memsize", "hw.ncpu", "hw.pagesize", "hw.pagesize_compat",
    "hw.physicalcpu", "hw.physicalcpu_max", "kern.argmax", "kern.osproductversion", "kern.osrelease",
    "kern.ostype", "kern.osversion", "kern.usrstack64", "vm.loadavg",
)  # fmt: skip
_SYSCTL_PREFIXES = ("hw.optional.", "hw.perflevel", "machdep.cpu.")


class Seatbelt(Cage):
    """A scratch folder of its own; Python and the system's libraries, to be read; and nothing else."""

    bounds_itself = False
    filter = ""

    def __init__(self, python: str, folders: Sequence[str], child: str) -> None:
        """Raises: UsageError where there is no sandbox-exec."""
        if not Path(_PROGRAM).exists():
            raise UsageError("cpython needs macOS's sandbox-exec, which isn't here; use the python tool")
        self.python, self.child = python, os.path.realpath(child)
        self._folders = [*map(os.path.realpath, folders), *folders]
        self.scratch = os.path.realpath(tempfile.mkdtemp(prefix="localoss-python-"))
        self.environment = {
            "HOME": self.scratch,
            "TMPDIR": self.scratch,
            "PATH": "/usr/bin:/bin",
            "LANG": "en_US.UTF-8",
            "MPLBACKEND": "Agg",
            "OPENBLAS_NUM_THREADS": "2",
            "VECLIB_MAXIMUM_THREADS": "2",
        }

    def command(self) -> list[str]:
        text, parameters = profile(self.python, self._folders, self.child, self.scratch)
        named = [f"-D{name}={value}" for name, value in parameters.items()]
        return [_PROGRAM, *named, "-p", text]

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)


def profile(python: str, folders: Sequence[str], child: str, scratch: str) -> tuple[str, dict[str, str]]:
    """The profile in Apple's language, and the paths that it names as parameters: no path is code in it.

    python: what may be executed, once, by sandbox-exec itself. folders: those that are read. scratch: the one
    that is written to.
    """
    parameters: dict[str, str] = {}

    def named(kind: str, paths: Sequence[str], prefix: str) -> list[str]:
        names = [f"{prefix}{number}" for number in range(len(paths))]
        parameters.update(zip(names, paths, strict=True))
        return [f'({kind} (param "{name}"))' for name in names]

    def rule(action: str, *filters: str) -> str:
        return f"({action}\n  " + "\n  ".join(filters) + ")"

    programs = list(dict.fromkeys([python, os.path.realpath(python), *_frameworks(folders)]))
    read = list(dict.fromkeys([*folders, *_SYSTEM]))
    trees, files = named("subpath", read, "READ"), named("literal", [child, *_FILES], "FILE")
    above = sorted({str(parent) for path in [*read, child, scratch] for parent in Path(path).parents})
    (own,) = named("subpath", [scratch], "SCRATCH")
    rules = [
        "(version 1)",
        "(deny default)",
        rule("allow process-exec", *named("literal", programs, "PYTHON")),
        rule("allow file-read* file-map-executable", *trees),
        rule("allow file-read*", *files, *named("literal", programs, "PROGRAM")),
        rule("allow file-read-metadata", *named("literal", above, "ABOVE")),
        rule("allow file-read* file-write*", own),
        '(allow file-write-data (literal "/dev/null"))',
        "(allow signal (target self))",
        rule(
            "allow sysctl-read",
            *(f'(sysctl-name "{name}")' for name in _SYSCTLS),
            *(f'(sysctl-name-prefix "{prefix}")' for prefix in _SYSCTL_PREFIXES),
        ),
    ]
    return "\n".join(rules) + "\n", parameters


def _frameworks(folders: Sequence[str]) -> list[str]:
    """The program that a framework's bin/python becomes, by exec."""
    inside = "Resources/Python.app/Contents/MacOS/Python"
    return [str(Path(folder, inside)) for folder in folders if Path(folder, inside).exists()]
