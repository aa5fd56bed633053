"""A conversation as a file for people: Markdown or plain text, without thinking."""

from collections.abc import Callable
from pathlib import Path

from localoss.chat import transcript
from localoss.chat.conversation import Conversation
from localoss.chat.harmony import Message
from localoss.errors import UsageError

_MARK = "localoss conversation"  # in the first line of what was written here, and may be written over
_NAMES = {"user": "You", "assistant": "Answer", "tool": "Result"}


def to_markdown(conversation: Conversation, model: str) -> bytes:
    """Headings for questions and answers; files as fenced blocks."""
    setup = conversation.setup
    parts = [f"<!-- {_MARK} · {model} · effort {setup.effort} · {setup.date} -->"]
    if setup.instructions:
        parts.append(f"## Instructions\n\n{setup.instructions}")
    for message in conversation.messages:
        if message.channel == "analysis":
            continue
        files = [f"`{file.name}`\n\n{_fenced(file.text)}" for file in message.files]
        text = _fenced(message.text) if message.recipient or message.role == "tool" else message.text
        parts.append("\n\n".join([f"## {_title(message)}", *files, text]))
    return _encoded("\n\n".join(parts))


def to_text(conversation: Conversation, model: str) -> bytes:
    setup = conversation.setup
    parts = [f"{_MARK} · {model} · effort {setup.effort} · {setup.date}"]
    if setup.instructions:
        parts.append(f"Instructions:\n{setup.instructions}")
    parts += [
        f"{_title(message)}:\n{message.content}"
        for message in conversation.messages
        if message.channel != "analysis"
    ]
    return _encoded("\n\n".join(parts))


FORMATS: dict[str, Callable[[Conversation, str], bytes]] = {
    "json": transcript.to_json,
    "md": to_markdown,
    "txt": to_text,
}


def format_of(path: Path) -> str:
    """The format that the name of a file asks for: JSON, which can be loaded again, if none."""
    kind = path.suffix.lower().removeprefix(".")
    return {"markdown": "md", "text": "txt"}.get(kind, kind if kind in FORMATS else "json")


def write(conversation: Conversation, model: str, path: Path) -> None:
    """Write the conversation in the format that the name of `path` asks for.

    Raises: UsageError if that fails, or something else is there, which must not be lost.
    """
    try:
        if path.exists():
            _check_ours(path)
        new = path.with_name(f"{path.name}.new")
        new.write_bytes(FORMATS[format_of(path)](conversation, model))
        new.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None


def _check_ours(path: Path) -> None:
    if format_of(path) == "json":
        try:
            transcript.read(path)
            return
        except UsageError:
            pass
    else:
        with open(path, "rb") as file:
            if _MARK.encode() in file.readline(1000):
                return
    raise UsageError(f"{path}: holds something else; name a new file")


def _title(message: Message) -> str:
    if message.recipient and message.role == "assistant":
        return f"Call of {message.recipient.removeprefix('functions.')}"
    return _NAMES.get(message.role, message.role)


def _fenced(text: str) -> str:
    """`text` as a fenced block, whatever fences it has itself."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace") + b"\n"
