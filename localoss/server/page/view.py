"""A conversation as the page shows it: questions and answers, and how many versions there are of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localoss.chat import branches
from localoss.chat.conversation import Conversation
from localoss.chat.harmony import Message
from localoss.chat.session_store import title_of

_KINDS = {"analysis": "thinking", "commentary": "preamble", "final": "answer"}


def view_of(name: str, conversation: Conversation, model: str, revision: str) -> dict[str, Any]:
    """All that the page needs of a session."""
    setup = conversation.setup
    return {
        "name": name,
        "title": title_of(conversation),
        "model": model,
        "effort": setup.effort,
        "instructions": setup.instructions or "",
        "revision": revision,
        "exchanges": _exchanges(conversation),
        "tokens": len(conversation.tokens()),
    }


def _exchanges(conversation: Conversation) -> list[dict[str, Any]]:
    """A question each, with what was answered."""
    messages = conversation.messages
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    return [
        {
            "question": {
                "text": messages[start].text,
                "files": [{"name": f.name, "characters": len(f.text)} for f in messages[start].files],
                "is_left_out": start < conversation.left_out,
                **_versions(conversation, (number, False)),
            },
            "answer": {
                "parts": _parts(messages[start + 1 : end]),
                **_versions(conversation, (number, True)),
            },
        }
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(messages)], strict=True))
    ]


def _versions(conversation: Conversation, place: branches.Place) -> dict[str, int]:
    return {"rank": branches.rank(conversation, place), "ways": branches.ways(conversation, place)}


def _parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """What an answer consists of, in its order: thinking, preambles, calls and results, the answer itself."""
    parts: list[dict[str, Any]] = []
    for message in messages:
        if message.thinking:
            parts.append({"kind": "thinking", "text": message.thinking})
        if message.role == "tool":
            parts.append({"kind": "result", **result_part(message)})
        elif message.recipient:
            parts.append({"kind": "call", "name": _function(message.recipient), "text": message.text})
        else:
            parts.append({"kind": _KINDS.get(message.channel or "", "answer"), "text": message.text})
    return parts


def result_part(message: Message) -> dict[str, Any]:
    """What a call gave; pictures by the names that the page asks for them by."""
    pictures = [Path(path).name for path in message.pictures]
    return {"name": _function(message.name), "text": message.text, "pictures": pictures}


def _function(name: str | None) -> str:
    return (name or "").removeprefix("functions.")
