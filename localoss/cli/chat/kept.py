"""/session, /sessions, /clear, /save and /load: where a conversation is kept, and going on with another."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from localoss.chat import export, transcript
from localoss.chat.conversation import Conversation
from localoss.chat.session import Session
from localoss.chat.session_store import Listed, sessions
from localoss.cli.chat.width import most_columns
from localoss.cli.progress import size_text
from localoss.cli.terminal import printable, say
from localoss.errors import UsageError

if TYPE_CHECKING:
    from localoss.cli.chat.repl import Chat


def session(chat: "Chat", name: str) -> None:
    """Say which session this is, or give it another name; a chat that isn't kept is kept from then on."""
    name = re.sub(r"\s+", "-", name.strip("\"'"))
    if name and chat.session:
        chat.session.rename(name)
    elif name:
        if (opened := Session(name)).conversation is not None:
            opened.close()
            raise UsageError(f"there is a session {name} already; /sessions {name} opens it")
        chat.session = opened
        chat.follow()
        chat.keep()
    say(
        f"(session {chat.session.name})"
        if chat.session
        else "(this chat is not kept; /session NAME keeps it)"
    )


def list_or_open(chat: "Chat", name: str) -> None:
    """List the sessions, or go on with one of them, by its name or its number in the list."""
    there = sessions()
    if not name:
        mine = chat.session.name if chat.session else None
        heads = [f"{i:>3}{'*' if one.name == mine else ' '} " for i, one in enumerate(there, start=1)]
        for line in listing(there, shutil.get_terminal_size().columns, heads):
            say(line)
        say("(/sessions NAME or its number goes on with one)" if there else "(no session yet)")
        return
    if name.isdecimal() and name not in [one.name for one in there]:
        if not 0 < int(name) <= len(there):
            raise UsageError(f"there are {len(there)} sessions; /sessions lists them")
        name = there[int(name) - 1].name
    if name not in [one.name for one in there]:
        raise UsageError(f"there is no session {name}; /sessions lists what is there")
    if chat.session and chat.session.name == name:
        raise UsageError(f"session {name} is the one you are in")
    opened = Session(name)
    _go_to(chat, opened, opened.conversation or Conversation(chat.conversation.setup))
    if opened.model and opened.model != chat.model:
        model = printable(opened.model)
        say(f"(it was held with {model}; /model {model} goes back to that)")
    chat.recall()


def clear(chat: "Chat", _: str) -> None:
    """Begin anew, in a session of its own: the one before stays."""
    if not chat.session:
        chat.conversation.clear()
        chat.attachments.clear()
        say("(a new conversation)")
        return
    before = chat.session
    said = f"; the one before is session {before.name}" if before.is_kept else ""
    _go_to(chat, Session() if before.is_kept else before, Conversation(chat.conversation.setup))
    say(f"(a new conversation{said})")


def save(chat: "Chat", name: str) -> None:
    path = _file(name, "/save FILE.md, .txt or .json")
    export.write(chat.conversation, str(chat.folder), path)
    say(f"({len(chat.conversation.messages)} messages in {path})")


def load(chat: "Chat", name: str) -> None:
    conversation, _ = transcript.read(_file(name, "/load FILE"))
    before = chat.session
    is_new = bool(before and before.is_kept)  # what is kept isn't written over
    setup = conversation.setup
    _go_to(chat, Session() if is_new else before, conversation)
    say(f"({len(conversation.messages)} messages, effort {setup.effort})")


def names() -> list[str]:
    """For completion."""
    return [one.name for one in sessions()]


def listing(there: list[Listed], columns: int, heads: list[str] | None = None) -> list[str]:
    """A line for each session, or three where the terminal is narrow; `heads` stand before them."""
    lines = []
    width = max((len(one.name) for one in there), default=0)
    for head, one in zip(heads or [""] * len(there), there, strict=True):
        changed, size = f"{one.changed.astimezone():%Y-%m-%d %H:%M}", size_text(one.bytes)
        count, model = f"{one.messages} messages", printable(one.model)
        title = printable(one.problem or one.title)
        if columns >= width + 72:
            told = f"{size:>8}  {count.rjust(13)}  {model}  {title}"
            lines.append(cut(f"{head}{one.name.ljust(width)}  {changed}  {told}", columns - 1))
        else:
            blank = " " * len(head)
            rows = (f"{head}{one.name}", f"{blank}{title}", f"{blank}{changed}, {count}, {size}")
            lines += [cut(row, columns - 1) for row in rows if row.strip()]
    return lines


def cut(text: str, columns: int) -> str:
    """The beginning of `text` that fits so many columns."""
    while text and most_columns(text) > columns:
        text = text[:-1]
    return text


def _go_to(chat: "Chat", opened: Session | None, conversation: Conversation) -> None:
    """Go on with `conversation`, kept in `opened`; what was before is closed, and keeps what it has."""
    if opened is not chat.session:
        chat.leave_session()
    chat.session = opened
    chat.conversation = replace(conversation, setup=chat.with_tools(conversation.setup))
    chat.attachments.clear()
    chat.follow()


def _file(name: str, usage: str) -> Path:
    if not name:
        raise UsageError(f"which file? {usage}")
    return Path(name.strip("\"'")).expanduser()
