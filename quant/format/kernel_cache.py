"""Compiled functions kept on disk, in a folder that is named by a hash of everything they are made from.

Numba's own cache sees an edit in a function's own file only, and goes on using old callers of what was
edited; its folder is a setting of the whole process. Here each function is given a cache of its own instead,
so that neither the order of imports nor a host program's settings matter. What is kept is pickles, hence
code: only a folder that nobody else can write to is used, and a file whose checksum doesn't fit is removed.
"""

import atexit
import contextlib
import hashlib
import os
import platform
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import _Cache
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from platformdirs import user_cache_path

from quant.format.kernel_library import restored, serialized

_FORM = 2  # of a file's content
_DIGEST_BYTES = 32
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


_said: set[str] = set()
_other_root: Callable[[], Path | None] = lambda: None  # noqa: E731


def _report(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


def keep_else_in(folder: Callable[[], Path | None]) -> None:
    """Where the user's cache folder can't be had, keep what is compiled in the folder that this gives."""
    global _other_root
    _other_root = folder


class KernelFolder:
    """The folder for functions made from `sources`; `variant` is what else the code depends on."""

    def __init__(self, sources: Iterable[Path], variant: str = "") -> None:
        versions = (_FORM, numba.__version__, platform.python_implementation(), sys.version_info[:2], variant)
        digest = hashlib.sha256(repr(versions).encode())
        for source in sorted(sources):
            digest.update(source.read_bytes())
        self._name = digest.hexdigest()[:16]

    @cached_property
    def path(self) -> Path | None:
        """Where files can be read, and written as far as the system lets us; None if there is no such place.

        Made on first use, so that importing a kernel touches no disk.
        """
        root = kernel_root()
        if root is None:
            self.say("there is no folder to keep compiled kernels in: each start compiles them again")
            return None
        folder = root / self._name
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder if folder.is_dir() and _is_ours_alone(folder) else None

    def cached(self, dispatcher: Any) -> Any:
        """`dispatcher`, a jitted function, which from now on looks here before it compiles."""
        dispatcher._cache = _FunctionCache(self, dispatcher.py_func)
        return dispatcher

    def has_all(self, form: str) -> bool | None:
        """Whether note_all was called for `form`; None if it couldn't be: nothing is kept here."""
        if self.path is None or not os.access(self.path, os.W_OK):
            return None
        return (self.path / f"{form}.whole").exists()

    def note_all(self, form: str) -> None:
        """Note that all functions of a form of the program are here."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                (self.path / f"{form}.whole").touch(mode=0o600)

    def say(self, line: str) -> None:
        """Tell the user, once."""
        if line not in _said:
            _said.add(line)
            _report(line)


@cache
def kernel_root() -> Path | None:
    """The user's cache folder for compiled kernels, or one that is removed when this process ends.

    None if neither can be had. The user's is not taken if somebody else could have put code there.
    """
    for find in (lambda: user_cache_path("localoss", appauthor=False), _other_root):
        with contextlib.suppress(OSError, RuntimeError, KeyError):  # no home, or one that is no folder
            above = find()
            if above is not None and above.is_absolute() and _is_made(above / "kernels"):
                return above / "kernels"
    with contextlib.suppress(OSError):
        private = tempfile.mkdtemp(prefix="localoss-kernels-")
        atexit.register(shutil.rmtree, private, ignore_errors=True)
        return Path(private)
    return None


def _is_made(root: Path) -> bool:
    """Whether `root` can be used, after making it if need be. Raises: OSError."""
    with contextlib.suppress(OSError):  # what exists may be read even where nothing can be written
        root.parent.parent.mkdir(parents=True, exist_ok=True)
        root.parent.mkdir(mode=0o700, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
    if not (root.is_dir() and _is_ours_alone(root) and all(map(_is_safe_above, _above(root)))):
        return False
    return os.access(root, os.W_OK) or any(root.iterdir())


def _above(root: Path) -> set[Path]:
    """The folders above `root`: where its name says, and where links on the way lead."""
    above = set(root.parents)
    for folder in [root, *root.parents]:
        if folder.is_symlink():
            above |= {folder.resolve(), *folder.resolve().parents}
    return above


def _is_ours_alone(folder: Path) -> bool:
    """Whether nobody else can have put files into `folder`. Others' leave to do so is taken away."""
    if not hasattr(os, "getuid"):
        return True  # the user's folders on Windows are closed to other users
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return False
    if found.st_mode & _OTHERS_WRITE:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
            return True
        return False
    return True


def _is_safe_above(folder: Path) -> bool:
    """Whether nobody but the user and the system can put another folder in the place of one in `folder`.

    A group may write to a folder of the user's if it is the user's own, as some systems make for each.
    """
    if not hasattr(os, "getuid"):
        return True
    found = folder.stat()
    is_sticky = bool(found.st_mode & stat.S_ISVTX)
    if found.st_mode & stat.S_IWGRP and not is_sticky and not _is_own_group(found.st_gid):
        return False
    return found.st_uid in (0, os.getuid()) and (is_sticky or not found.st_mode & stat.S_IWOTH)


def _is_own_group(group: int) -> bool:
    """Whether `group` is the user's alone: named as the user, with no other member."""
    try:
        import grp
        import pwd

        found, user = grp.getgrgid(group), pwd.getpwuid(os.getuid())
    except (ImportError, KeyError):
        return group == 0
    return group == 0 or (found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name})


class _FunctionCache(_Cache):  # type: ignore[misc]
    """What Numba asks for a compiled form of one function: a file for each signature and CPU."""

    def __init__(self, folder: KernelFolder, function: Callable[..., Any]) -> None:
        self._folder, self._function = folder, function

    @property
    def cache_path(self) -> str | None:
        return str(self._folder.path) if self._folder.path else None

    def enable(self) -> None:
        """It always is."""

    def disable(self) -> None:
        """Not needed."""

    def flush(self) -> None:
        """Not needed: other sources have another folder."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled form for signature `sig`; None if it has to be compiled.

        Numba's own cache has the context refreshed first: its typing rules and lowerings are imported and
        registered, a second of processor time. Machine code needs its runtime alone, and the compiler
        refreshes the context by itself.
        """
        rtsys.initialize(target_context)
        path = self._path(sig, target_context.codegen())
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        try:
            if hashlib.sha256(data).digest() != digest:
                raise ValueError("another checksum")
            return restored(target_context, data)
        except Exception:
            self._folder.say("files of compiled kernels were damaged; they are compiled again")
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled form, under a temporary name first; where it can't be written it isn't kept."""
        path = self._path(sig, data.codegen)
        if path is None or data.library.has_dynamic_globals or any(not one.can_cache for one in data.lifted):
            return
        content = serialized(data)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(part, path)
        except OSError as error:
            self._folder.say(f"compiled kernels can't be kept ({error.strerror}): they are compiled again")
            with contextlib.suppress(OSError):
                part.unlink()

    def _path(self, signature: Any, codegen: Any) -> Path | None:
        folder, function = self._folder.path, self._function
        if folder is None:
            return None
        closure = tuple(cell.cell_contents for cell in function.__closure__ or ())
        key = hashlib.sha256(repr((signature, codegen.magic_tuple())).encode())
        key.update(function.__code__.co_code + (dumps(closure) if closure else b""))
        name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}".replace("<locals>", "")
        return folder / f"{name}-{function.__code__.co_firstlineno}-{key.hexdigest()[:16]}.kernel"
