"""Conversations that outlive the program: a folder each, with the messages as a file that people can read."""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from localoss.chat import session_store, transcript
from localoss.chat.conversation import Conversation
from localoss.chat.remote import RemoteModel, RemoteSequence
from localoss.chat.session_store import BUSY, CACHE, MESSAGES, SET_ASIDE, folder_of
from localoss.errors import DeviceLost, LocalossError, UsageError
from quant.format import disk
from quant.format.layout import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from localoss.engine.engine import Engine
    from localoss.engine.saved_cache import SavedCache
    from localoss.engine.sequence import Sequence


class Session:
    """A session that is open: locked until `close`. `conversation` is None if it is a new one.

    name None: a new one, named by the time. Nothing stays of a session in which nothing was said.
    """

    def __init__(self, name: str | None = None) -> None:
        """Raises: UsageError for a bad name or damaged messages, BusyError if another program has it."""
        self.name = session_store.new_name() if name is None else name
        self.folder = folder_of(self.name)
        self.conversation: Conversation | None = None
        self.model: str | None = None
        self._held = contextlib.ExitStack()
        self._cache: SavedCache | None = None
        self._saved = b""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._held.enter_context(disk.locked(self.folder, BUSY))
        try:
            if (self.folder / MESSAGES).exists():
                self.conversation, self.model = transcript.read(self.folder / MESSAGES)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._held.close()
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # only an empty one goes

    @property
    def is_kept(self) -> bool:
        """Whether there is anything to go on with."""
        return (self.folder / MESSAGES).exists()

    def rename(self, name: str) -> None:
        """Go on under another name. Raises: UsageError if that is none, or taken."""
        folder = folder_of(name)
        if folder.exists():
            raise UsageError(f"there is a session {name} already; /sessions {name} opens it")
        self._held.close()  # Windows renames no folder in which a file is open
        try:
            os.replace(self.folder, folder)
            self.name, self.folder = name, folder
            if self._cache is not None:
                self._cache.folder = folder / CACHE
        except OSError as error:
            raise UsageError(f"session {self.name} keeps its name ({error.strerror or error})") from None
        finally:
            self._held.enter_context(disk.locked(self.folder, BUSY))

    def save_messages(self, conversation: Conversation, model: str) -> None:
        """Write the messages, if they changed: all or nothing, and on the disk before it returns.

        Raises: LocalossError that says what failed; what was saved before is still there.
        """
        content = transcript.to_json(conversation, model, keeps_thinking=True)
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

    def attach(
        self,
        folder: Path,
        engine: "Engine | RemoteModel",
        sequence: "Sequence | RemoteSequence",
        prompt: "Seq[int] | None" = None,
    ) -> str | None:
        """Follow `sequence` of the model in `folder`, after filling it with what was saved; a server's isn't.

        prompt: what comes next; a sequence that has as much of it as was saved stays as it is. Gives a line
        about a cache that cannot be used: it is set aside, and nothing but time is lost.
        """
        from localoss.engine.saved_cache import (  # only now: it brings NumPy
            SavedCache,
            UnusableCacheError,
            identity,
        )
        from localoss.engine.sequence import common_prefix

        if isinstance(engine, RemoteModel) or isinstance(sequence, RemoteSequence):
            self._cache = None
            return None
        try:
            digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        except OSError:  # nothing tells this model from others: its cache would be of no use
            self._cache = None
            return None
        adapter = sequence.adapter.digest if sequence.adapter else None
        whose = identity(digest, engine.config, engine.kv_dtype, adapter)
        self._cache = SavedCache(self.folder / CACHE, whose)
        try:
            if prompt is None or self._cache.shared(prompt) > common_prefix(sequence.tokens, prompt):
                sequence.restore([], [])
                self._cache.load(sequence, engine.context_tokens)
        except DeviceLost as error:
            sequence.restore([], [])
            return f"{error.device} is lost ({error}); the conversation is read anew"
        except (UnusableCacheError, OSError) as error:
            sequence.restore([], [])
            aside = self.folder / SET_ASIDE
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.replace(self.folder / CACHE, aside)
            return (
                f"the saved cache of session {self.name} is set aside: {error}; the conversation is read anew"
            )
        return None

    def save_cache(self, prompt: "Seq[int]", sequence: "Sequence | RemoteSequence") -> str | None:
        """Save what `sequence` has of `prompt`, as the next one begins; gives a line if that failed."""
        if self._cache is None or isinstance(sequence, RemoteSequence):
            return None
        from localoss.engine.sequence import common_prefix

        try:
            self._cache.save(sequence, common_prefix(sequence.tokens, prompt))
        except DeviceLost as error:  # what was saved before is true still
            return f"the cache of session {self.name} is not saved, for {error.device} is lost ({error})"
        except OSError as error:
            shutil.rmtree(self.folder / CACHE, ignore_errors=True)  # it makes room, too
            self._cache = None
            return (
                f"the cache of session {self.name} cannot be saved ({error.strerror}): "
                "the messages are, and a restart reads them anew"
            )
        if not session_store.bound_caches(self.name):
            self._cache = None
            return (
                f"the cache of session {self.name} alone is larger than all may be together "
                "(session_disk, see `localoss config`): it is not kept, and a restart reads the messages anew"
            )
        return None
