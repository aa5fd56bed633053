"""The sessions on this machine: listed, read, removed, and kept from filling the disk."""

import contextlib
import datetime
import hashlib
import itertools
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from localoss import settings
from localoss.chat import transcript
from localoss.chat.conversation import Conversation
from localoss.errors import UsageError
from quant.errors import BusyError
from quant.format import disk

MESSAGES = "messages.json"
CACHE, SET_ASIDE = "cache", "cache-set-aside"
BUSY = "another localoss has this session open; leave it there first, or give another name"
_NAME = re.compile(r"\w[\w.-]{0,63}", re.ASCII)
_TITLE_CHARACTERS = 60


@dataclass(frozen=True)
class Listed:
    """A session on disk. title: its user's, or its first question. problem: why it can't be read."""

    name: str
    title: str
    model: str
    messages: int
    bytes: int
    changed: datetime.datetime
    problem: str | None = None


def folder_of(name: str) -> Path:
    """Raises: UsageError for a name that is none."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a session's name: use up to 64 letters, digits, '.', '_' and '-'"
        )
    return sessions_folder() / name


def sessions_folder() -> Path:
    return settings.home() / "sessions"


def sessions() -> list[Listed]:
    """All sessions, the last used first."""
    folder = sessions_folder()
    paths = [path for path in folder.iterdir() if (path / MESSAGES).is_file()] if folder.is_dir() else []
    return sorted(map(_listed, paths), key=lambda session: session.changed, reverse=True)


def last_session() -> str:
    """The name of the one that was used last. Raises: UsageError if there is none."""
    there = sessions()
    if not there:
        raise UsageError("there is no session to continue; `localoss chat` begins one")
    return there[0].name


def read_session(name: str) -> tuple[Conversation, str]:
    """A session's messages and model. Raises: UsageError if there is no such session."""
    path = folder_of(name) / MESSAGES
    if not path.exists():
        raise UsageError(f"there is no session {name}; `localoss sessions` shows what is there")
    return transcript.read(path)


def revision(name: str) -> str:
    """What tells whether a session's messages changed; nothing if there are none."""
    try:
        return hashlib.sha256((folder_of(name) / MESSAGES).read_bytes()).hexdigest()[:32]
    except OSError:
        return ""


def remove_session(name: str) -> int:
    """Remove a session for good, and give how many bytes it had.

    Raises: UsageError if there is none, BusyError while a program has it open.
    """
    folder = folder_of(name)
    if not folder.is_dir():
        raise UsageError(f"there is no session {name}; `localoss sessions` shows what is there")
    size = _bytes_of(folder)
    with disk.locked(folder, BUSY):
        shutil.rmtree(folder)
    return size


def _listed(path: Path) -> Listed:
    changed = datetime.datetime.fromtimestamp((path / MESSAGES).stat().st_mtime, datetime.UTC)
    size = _bytes_of(path)
    try:
        conversation, model = transcript.read(path / MESSAGES)
    except UsageError as error:
        return Listed(path.name, "", "", 0, size, changed, str(error))
    return Listed(path.name, title_of(conversation), model, len(conversation.messages), size, changed)


def title_of(conversation: Conversation) -> str:
    """What its user calls it, or the first question without its files: as much as fits a line."""
    asked = (message.text for message in conversation.messages if message.role == "user")
    words = " ".join((conversation.title or next(asked, "")).split())
    return words if len(words) <= _TITLE_CHARACTERS else f"{words[: _TITLE_CHARACTERS - 1].rstrip()}…"


def bound_caches(mine: str | None = None) -> bool:
    """Remove caches until all fit settings.session_disk(), the ones used longest ago first; messages stay.

    Caches of sessions that are open elsewhere stay, too. False if that of session `mine` had to go.
    """
    folder, most = sessions_folder(), settings.session_disk()
    my_cache = folder / (mine or "") / CACHE
    had_mine = mine is not None and my_cache.exists()
    caches = [path for path in folder.glob("*/cache*") if path.is_dir()] if folder.is_dir() else []
    sizes = {path: _bytes_of(path) for path in caches}
    oldest = sorted(caches, key=lambda path: (path.parent.name == mine, path.name == CACHE, _used(path)))
    total = sum(sizes.values())
    for path in oldest:
        if total <= most:
            break
        with contextlib.suppress(BusyError):
            with contextlib.nullcontext() if path.parent.name == mine else disk.locked(path.parent, BUSY):
                shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]
    return not had_mine or my_cache.exists()


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def free_name(words: str, mine: str) -> str:
    """The name that a session of title `words` may have: `mine`, if they make none."""
    base = re.sub(r"[^\w.-]+", "-", words, flags=re.ASCII).strip("-._")[:56]
    names = (f"{base}-{number}" if number > 1 else base for number in itertools.count(1))
    return next(name for name in names if name == mine or not folder_of(name).exists()) if base else mine


def new_name() -> str:
    """A name for a new session: the time, and a number if it is taken."""
    _sweep()
    time = f"{datetime.datetime.now():%Y-%m-%d-%H%M}"
    names = (f"{time}-{number}" if number > 1 else time for number in itertools.count(1))
    return next(name for name in names if not folder_of(name).exists())


def _sweep() -> None:
    """Remove what a chat leaves that was killed before anything was said: an empty folder."""
    folder = sessions_folder()
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(BusyError, OSError):
            if not any(path.iterdir()):
                with disk.locked(path, BUSY):
                    path.rmdir()


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
