"""A conversation as a file that people can read: JSON, a message at a time."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from localoss.chat.conversation import Branch, Conversation
from localoss.chat.harmony import CHANNELS, ChatSetup, File, Message
from localoss.errors import UsageError

_FORMAT = "localoss conversation 1"
_MESSAGE_KEYS = ("role", "channel", "recipient", "content_type", "name", "thinking", "text")
_ROLES = ("user", "assistant", "tool")


def to_json(conversation: Conversation, model: str, keeps_thinking: bool = False) -> bytes:
    """The conversation, and the model's name or folder, as UTF-8 JSON.

    keeps_thinking: what led to final messages, too, which the model doesn't read again.
    """
    setup = conversation.setup
    document: dict[str, Any] = {
        "format": _FORMAT,
        "model": model,
        **({"title": conversation.title} if conversation.title else {}),
        "effort": setup.effort,
        "instructions": setup.instructions,
        "date": setup.date,
        "left_out": conversation.left_out,
        "messages": _entries(conversation.messages, keeps_thinking),
    }
    if conversation.branches:
        document["branches"] = [_branch_entry(one, keeps_thinking) for one in conversation.branches]
    return json.dumps(document, ensure_ascii=False, indent=1).encode("utf-8", "replace") + b"\n"


def read(path: Path) -> tuple[Conversation, str]:
    """The conversation in a file, and the model it was held with.

    Raises: UsageError if it can't be read or holds something else.
    """
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']!r}")
        messages = [_message(entry) for entry in document["messages"]]
        branches = [_branch(entry) for entry in document.get("branches", ())]
        instructions, left_out = document["instructions"], document["left_out"]
        if not isinstance(left_out, int) or not 0 <= left_out <= len(messages):
            raise ValueError("left_out is no count of messages")
        setup = ChatSetup(document["effort"], instructions and str(instructions), date=str(document["date"]))
        title = document.get("title")
        conversation = Conversation(setup, messages, left_out, title and str(title), branches)
        return conversation, str(document["model"])
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a saved conversation ({type(error).__name__}: {error})") from None
    except (ValueError, RecursionError, UsageError) as error:
        raise UsageError(f"{path}: not a saved conversation ({error})") from None


def _entries(messages: list[Message], keeps_thinking: bool) -> list[dict[str, Any]]:
    keys = _MESSAGE_KEYS if keeps_thinking else [key for key in _MESSAGE_KEYS if key != "thinking"]
    return [
        {key: getattr(message, key) for key in keys if getattr(message, key) is not None}
        | ({"files": [asdict(file) for file in message.files]} if message.files else {})
        | ({"pictures": list(message.pictures)} if message.pictures else {})
        for message in messages
    ]


def _branch_entry(branch: Branch, keeps_thinking: bool) -> dict[str, Any]:
    inner = [_branch_entry(one, keeps_thinking) for one in branch.branches]
    return {
        "exchange": branch.exchange,
        "is_answer": branch.is_answer,
        "rank": branch.rank,
        "messages": _entries(branch.messages, keeps_thinking),
        **({"branches": inner} if inner else {}),
    }


def _branch(entry: dict[str, Any]) -> Branch:
    exchange, is_answer, rank = entry["exchange"], entry["is_answer"], entry["rank"]
    if type(exchange) is not int or type(rank) is not int or not isinstance(is_answer, bool):
        raise ValueError("a branch has no place")
    messages = [_message(message) for message in entry["messages"]]
    return Branch(exchange, is_answer, rank, messages, [_branch(one) for one in entry.get("branches", ())])


def _message(entry: dict[str, Any]) -> Message:
    values = {key: entry.get(key) for key in _MESSAGE_KEYS}
    if any(value is not None and not isinstance(value, str) for value in values.values()):
        raise ValueError("a message holds something else than text")
    if values["role"] not in _ROLES or values["text"] is None:
        raise ValueError("a message has no role of a user, assistant or tool, or no text")
    if values["channel"] not in (None, *CHANNELS):
        raise ValueError(f"a message's channel is {values['channel']!r}")
    files = tuple(File(str(file["name"]), str(file["text"])) for file in entry.get("files", ()))
    pictures = tuple(str(path) for path in entry.get("pictures", ()))
    return Message(**values, files=files, pictures=pictures)  # type: ignore[arg-type]
