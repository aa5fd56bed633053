"""Conversations that outlive the program: a folder each, with the messages as a file that people can read."""

import contextlib
import datetime
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localoss import settings
from localoss.chat import transcript
from localoss.chat.conversation import Conversation
from localoss.errors import GpuError, LocalossError, UsageError
from quant.format import disk
from quant.format.layout import MANIFEST

if TYPE_CHECKING:
    from localoss.engine.engine import Engine, Sequence
    from localoss.engine.saved_cache import SavedCache

MESSAGES = "messages.json"
_CACHE, _SET_ASIDE = "cache", "cache-set-aside"
_NAME = re.compile(r"\w[\w.-]{0,63}", re.ASCII)
_BUSY = "another localoss has this session open; leave it there first, or give another name"


@dataclass(frozen=True)
class Listed:
    """A session on disk. problem: why its messages can't be read, if so."""

    name: str
    model: str
    messages: int
    bytes: int
    changed: datetime.datetime
    problem: str | None = None


class Session:
    """A session that is open: locked until `close`. `conversation` is None if it is a new one."""

    def __init__(self, name: str) -> None:
        """Raises: UsageError for a bad name or damaged messages, BusyError if another program has it."""
        self.name, self.folder = name, folder_of(name)
        self.conversation: Conversation | None = None
        self.model: str | None = None
        self._held = contextlib.ExitStack()
        self._cache: SavedCache | None = None
        self._saved = b""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._held.enter_context(disk.locked(self.folder, _BUSY))
        try:
            if (self.folder / MESSAGES).exists():
                self.conversation, self.model = transcript.read(self.folder / MESSAGES)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._held.close()

    def save_messages(self, conversation: Conversation, model: str) -> None:
        """Write the messages, if they changed: all or nothing, and on the disk before it returns.

        Raises: LocalossError that says what failed; what was saved before is still there.
        """
        content = transcript.to_json(conversation, model)
        if content == self._saved:
            return
        new = self.folder / f"{MESSAGES}.new"
        try:
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT, 0o600))
            disk.write_file(new, content)
            disk.replace(new, self.folder / MESSAGES)
        except OSError as error:
            raise LocalossError(
                f"session {self.name} cannot be saved ({error.strerror}); /save FILE writes it elsewhere"
            ) from None
        self._saved = content

    def attach(self, folder: Path, engine: "Engine", sequence: "Sequence") -> str | None:
        """Follow `sequence` of the model in `folder`, after filling it with what was saved.

        Gives a line about a cache that cannot be used: it is set aside, and nothing but time is lost.
        """
        from localoss.engine.saved_cache import (  # only now: it brings NumPy
            SavedCache,
            UnusableCacheError,
            identity,
        )

        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        self._cache = SavedCache(self.folder / _CACHE, identity(digest, engine.config, engine.kv_dtype))
        try:
            self._cache.load(sequence, engine.context_tokens)
        except GpuError as error:
            sequence.restore([], [])
            return f"the GPU is lost ({error}); the conversation is read anew"
        except (UnusableCacheError, OSError) as error:
            sequence.restore([], [])
            aside = self.folder / _SET_ASIDE
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.replace(self.folder / _CACHE, aside)
            return (
                f"the saved cache of session {self.name} is set aside: {error}; the conversation is read anew"
            )
        return None

    def save_cache(self, conversation: Conversation, sequence: "Sequence") -> str | None:
        """Save what the next prompt will share with `sequence`; gives a line if that failed."""
        if self._cache is None:
            return None
        from localoss.engine.sequence import common_prefix

        try:
            self._cache.save(sequence, common_prefix(sequence.tokens, conversation.tokens()))
        except GpuError as error:  # what was saved before is true still
            return f"the cache of session {self.name} is not saved, for the GPU is lost ({error})"
        except OSError as error:
            shutil.rmtree(self.folder / _CACHE, ignore_errors=True)  # it makes room, too
            self._cache = None
            return (
                f"the cache of session {self.name} cannot be saved ({error.strerror}): "
                "the messages are, and a restart reads them anew"
            )
        return None


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
        raise UsageError("there is no session to continue; localoss chat --session NAME begins one")
    return there[0].name


def read_session(name: str) -> tuple[Conversation, str]:
    """A session's messages and model. Raises: UsageError if there is no such session."""
    path = folder_of(name) / MESSAGES
    if not path.exists():
        raise UsageError(f"there is no session {name}; `localoss sessions list` shows what is there")
    return transcript.read(path)


def remove_session(name: str) -> int:
    """Remove a session for good, and give how many bytes it had.

    Raises: UsageError if there is none, BusyError while a program has it open.
    """
    folder = folder_of(name)
    if not folder.is_dir():
        raise UsageError(f"there is no session {name}; `localoss sessions list` shows what is there")
    size = _bytes_of(folder)
    with disk.locked(folder, _BUSY):
        shutil.rmtree(folder)
    return size


def _listed(path: Path) -> Listed:
    changed = datetime.datetime.fromtimestamp((path / MESSAGES).stat().st_mtime, datetime.UTC)
    size = _bytes_of(path)
    try:
        conversation, model = transcript.read(path / MESSAGES)
    except UsageError as error:
        return Listed(path.name, "", 0, size, changed, str(error))
    return Listed(path.name, model, len(conversation.messages), size, changed)


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
