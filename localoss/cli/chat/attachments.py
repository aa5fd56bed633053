"""/read and /drop: files whose text goes with the next message."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localoss.chat import documents, harmony
from localoss.cli.terminal import printable, say
from localoss.errors import UsageError

if TYPE_CHECKING:
    from localoss.cli.chat.repl import Chat

_CHARACTERS_PER_TOKEN = 32  # more than any text has: a text file beyond that cannot fit
_PACKED = (".pdf", ".docx")  # whose size says nothing about their text's


@dataclass(frozen=True)
class Attachment:
    """A file that goes with the next message; path tells it from others of its name."""

    path: Path
    file: harmony.File
    tokens: int


def read(chat: "Chat", argument: str) -> None:
    """Add a file, all of a folder, or all that a pattern stands for; - and nothing list what waits."""
    argument = argument.strip("\"'")
    if argument in ("", "-"):
        _list(chat)
        return
    paths = documents.matching_files(argument)
    others = [waiting for waiting in chat.attachments if waiting.path not in [p.resolve() for p in paths]]
    free = chat.engine.context_tokens - chat.used_tokens - sum(waiting.tokens for waiting in others)
    added, skipped = _read_all(paths, free)
    said = [one for one in added if one.file in chat.conversation.files]
    added = [one for one in added if one not in said]
    total = sum(one.tokens for one in added)
    if total > free:
        raise UsageError(f"{argument} has {total:,} tokens, and the context has room for {free:,}")
    chat.attachments[:] = [*others, *added]
    for one in said:
        say(f"({printable(one.file.name)} is a part of the conversation already)")
    for one in added:
        say(_described(one))
    if skipped:
        names = printable(", ".join(skipped[:3])) + (", …" if len(skipped) > 3 else "")
        say(f"({len(skipped)} left out, which are not text: {names})")


def drop(chat: "Chat", name: str) -> None:
    """Take back a file that waits, or all of them."""
    name = name.strip("\"'")
    if not chat.attachments:
        raise UsageError("no file waits for your next message")
    if name != "all":
        gone = [one for one in chat.attachments if name in (one.file.name, one.path.name, str(one.path))]
        if not gone:
            names = ", ".join(one.file.name for one in chat.attachments)
            raise UsageError(f"which file? /drop NAME, of {printable(names)}, or all")
    else:
        gone = chat.attachments[:]
    chat.attachments[:] = [one for one in chat.attachments if one not in gone]
    say(f"({printable(', '.join(one.file.name for one in gone))} does not go with your next message)")


def _list(chat: "Chat") -> None:
    for one in chat.attachments:
        say(_described(one))
    if not chat.attachments:
        say("(no file waits for your next message; /read FILE adds one)")


def _described(one: Attachment) -> str:
    return f"({printable(one.file.name)}: {one.tokens:,} tokens, for your next message)"


def _read_all(paths: list[Path], free: int) -> tuple[list[Attachment], list[str]]:
    """Attachments of `paths`, and names of what is no text. Raises: UsageError for a lone one."""
    added, skipped = [], []
    common = paths[0].parent if len({path.parent for path in paths}) == 1 else _common_folder(paths)
    for path in paths:
        name = path.relative_to(common).as_posix()
        try:
            added.append(_attachment(path, name, free))
        except UsageError as error:
            if len(paths) == 1 or "tokens" in str(error):
                raise
            skipped.append(name)
    if not added and skipped:
        raise UsageError(f"none of {len(skipped)} files there is text")
    return added, skipped


def _common_folder(paths: list[Path]) -> Path:
    folder = paths[0].parent
    while not all(folder in path.parents for path in paths):
        folder = folder.parent
    return folder


def _attachment(path: Path, name: str, free: int) -> Attachment:
    """Raises: UsageError if it can't be read or can't fit."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    most = max(free, 1) * _CHARACTERS_PER_TOKEN
    if path.suffix.lower() not in _PACKED and path.is_file() and size > most:
        tokens = size // _CHARACTERS_PER_TOKEN
        raise UsageError(f"{path} has at least {tokens:,} tokens, and the context has room for {free:,}")
    text = documents.read_document(path)
    tokens = len(harmony.encode_text(text)) if len(text) <= most else len(text) // _CHARACTERS_PER_TOKEN
    if tokens > free:
        raise UsageError(f"{path} has {tokens:,} tokens, and the context has room for {free:,}")
    return Attachment(path.resolve(), harmony.File(name, text), tokens)
