"""Files that are read past the system's page cache, at any offset, by any number of threads at once.

What is read once and kept in memory of our own must not push other files' pages out; and on Linux a direct
read into huge pages takes a twentieth of a buffered one's processor time: docs/decisions.md.
"""

import mmap
import os
import sys
from contextlib import suppress
from pathlib import Path

from quant.errors import QuantError
from quant.format.layout import PAGE
from quant.format.safetensors import DAMAGED

_MOST_STALLS = 8  # reads in a row that bring less than a page before a file counts as unreadable


class DirectFile:
    """`path`, open for reading. is_direct: whether its reads go past the page cache; not every file system
    lets them (tmpfs, many of FUSE), and then what was read is dropped from the cache again.
    """

    def __init__(self, path: Path, direct: bool = True) -> None:
        """direct False: do without. Raises: QuantError for a file that can't be opened."""
        self.path = path
        try:
            self.is_direct = direct and _supports_direct(path)
            self._file = _open(path, self.is_direct)
        except FileNotFoundError:
            raise QuantError(f"{path}: missing; download it again") from None
        except OSError as error:
            raise self._unreadable(error) from None

    def read_into(self, view: memoryview, offset: int, least: int | None = None) -> None:
        """Fill `view`, or the first `least` bytes of it, with what stands at `offset`.

        offset, len(view), and where view begins: multiples of layout.PAGE. Raises: QuantError for a file that
        can't be read or is shorter.
        """
        wanted, got, stalls = len(view) if least is None else least, 0, 0
        while got < wanted:
            try:
                count = _read(self._file, view[got:], offset + got)
            except OSError as error:
                raise self._unreadable(error) from None
            # A direct read goes on at a page, so the rest of a short one is read once more.
            kept = count if got + count >= wanted else count // PAGE * PAGE
            got += kept
            stalls = 0 if kept else stalls + 1
            if got < wanted and (count <= 0 or stalls > _MOST_STALLS or self._is_shorter(offset + wanted)):
                raise QuantError(f"{self.path}: became shorter while it was in use; {DAMAGED}")
        if not self.is_direct:
            _forget(self._file, offset, len(view))

    def close(self) -> None:
        _close(self._file)

    def _is_shorter(self, end: int) -> bool:
        try:
            return self.path.stat().st_size < end
        except OSError:
            return True

    def _unreadable(self, error: OSError) -> QuantError:
        return QuantError(f"{self.path}: cannot be read ({error.strerror}); check the disk")


def page_buffer(size: int) -> memoryview:
    """`size` writable bytes that begin on a page; they live as long as the view."""
    return memoryview(mmap.mmap(-1, size))


def _supports_direct(path: Path) -> bool:
    """Whether a direct read of the file's first page works; its size doesn't matter."""
    if sys.platform not in ("win32", "darwin") and not hasattr(os, "O_DIRECT"):
        return False
    try:
        file = _open(path, True)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    try:
        _read(file, page_buffer(PAGE), 0)
        return True
    except OSError:
        return False
    finally:
        _close(file)


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _GENERIC_READ, _SHARE_ALL, _OPEN_EXISTING = 0x80000000, 0x7, 3
    _NO_BUFFERING, _RANDOM_ACCESS = 0x20000000, 0x10000000
    _END_OF_FILE = 38
    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel32.CreateFileW.restype = wintypes.HANDLE
    _kernel32.CreateFileW.argtypes = [
        *(wintypes.LPCWSTR, wintypes.DWORD, wintypes.DWORD, wintypes.LPVOID),
        *(wintypes.DWORD, wintypes.DWORD, wintypes.HANDLE),
    ]

    class _Overlapped(ctypes.Structure):
        _fields_ = [
            ("Internal", ctypes.c_size_t),
            ("InternalHigh", ctypes.c_size_t),
            ("Offset", wintypes.DWORD),
            ("OffsetHigh", wintypes.DWORD),
            ("hEvent", wintypes.HANDLE),
        ]

    _kernel32.ReadFile.argtypes = [
        *(wintypes.HANDLE, wintypes.LPVOID, wintypes.DWORD),
        *(ctypes.POINTER(wintypes.DWORD), ctypes.POINTER(_Overlapped)),
    ]
    _kernel32.CloseHandle.argtypes = [wintypes.HANDLE]

    def _open(path: Path, direct: bool) -> int:
        flags = _NO_BUFFERING if direct else _RANDOM_ACCESS
        handle = _kernel32.CreateFileW(
            str(path), _GENERIC_READ, _SHARE_ALL, None, _OPEN_EXISTING, flags, None
        )
        if handle is None or handle == ctypes.c_void_p(-1).value:
            raise ctypes.WinError(ctypes.get_last_error())
        return int(handle)

    def _read(file: int, view: memoryview, offset: int) -> int:
        """ReadFile with an offset of its own: threads don't share a position. ctypes gives the GIL up."""
        buffer = (ctypes.c_char * len(view)).from_buffer(view)
        at, count = _Overlapped(), wintypes.DWORD()
        at.Offset, at.OffsetHigh = offset & 0xFFFFFFFF, offset >> 32
        if not _kernel32.ReadFile(file, buffer, len(view), ctypes.byref(count), ctypes.byref(at)):
            code = ctypes.get_last_error()
            if code == _END_OF_FILE:
                return 0
            raise ctypes.WinError(code)
        return int(count.value)

    def _close(file: int) -> None:
        _kernel32.CloseHandle(file)

    def _forget(file: int, offset: int, size: int) -> None:
        """Windows has no call for it."""

else:

    def _open(path: Path, direct: bool) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC
        file = os.open(path, flags | (getattr(os, "O_DIRECT", 0) if direct else 0))
        if direct and sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(file, fcntl.F_NOCACHE, 1)
        return file

    def _read(file: int, view: memoryview, offset: int) -> int:
        return os.preadv(file, [view], offset)

    def _close(file: int) -> None:
        os.close(file)

    def _forget(file: int, offset: int, size: int) -> None:
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(file, offset, size, os.POSIX_FADV_DONTNEED)
