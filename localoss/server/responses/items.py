"""An answer's pieces become a response's output items, and its stream's events in OpenAI's order."""

import secrets
from collections.abc import Iterator
from typing import Any

from localoss.chat.tools import ToolCall
from localoss.server.core.answering import Closed, Done, Opened, Part, Piece, Text
from localoss.server.core.logprobs import chat_logprobs

Event = dict[str, Any]
_PHASES: dict[Part, str] = {"preamble": "commentary", "answer": "final_answer"}


class Output:
    """Gathers output items; `events` gives what a stream says of each piece, without sequence numbers."""

    def __init__(self, with_logprobs: bool) -> None:
        self.items: list[dict[str, Any]] = []
        self.calls: dict[str, str] = {}  # names of the functions called, by the call's id
        self._with_logprobs = with_logprobs
        self._logprobs: list[dict[str, Any]] = []

    def events(self, piece: Piece) -> Iterator[Event]:
        if isinstance(piece, Opened):
            yield from self._open(piece.part)
        elif isinstance(piece, Text):
            yield from self._more(piece)
        elif isinstance(piece, Closed):
            yield from self._close(piece)
        elif isinstance(piece, ToolCall):
            yield from self._call(piece)
        else:
            assert isinstance(piece, Done)

    def _open(self, part: Part) -> Iterator[Event]:
        item: dict[str, Any]
        if part == "thinking":
            item = {"id": _id("rs"), "type": "reasoning", "summary": [], "status": "in_progress"}
        else:
            item = {"id": _id("msg"), "type": "message", "role": "assistant", "status": "in_progress"}
            item["phase"] = _PHASES[part]
        item["content"] = []
        self._logprobs = []
        self.items.append(item)
        yield self._event("response.output_item.added", item=dict(item))
        yield self._event("response.content_part.added", part=self._part(part, ""), content=True)

    def _more(self, piece: Text) -> Iterator[Event]:
        if piece.part == "thinking":
            yield self._event("response.reasoning_text.delta", delta=piece.text, content=True)
            return
        logprobs = chat_logprobs(piece.tokens) if self._with_logprobs else []
        self._logprobs += logprobs
        yield self._event("response.output_text.delta", delta=piece.text, logprobs=logprobs, content=True)

    def _close(self, piece: Closed) -> Iterator[Event]:
        item, part = self.items[-1], self._part(piece.part, piece.text)
        item["content"] = [part]
        item["status"] = "completed" if piece.is_whole else "incomplete"
        if piece.part == "thinking":
            yield self._event("response.reasoning_text.done", text=piece.text, content=True)
        else:
            logprobs = self._logprobs
            yield self._event("response.output_text.done", text=piece.text, logprobs=logprobs, content=True)
        yield self._event("response.content_part.done", part=part, content=True)
        yield self._event("response.output_item.done", item=dict(item))

    def _call(self, call: ToolCall) -> Iterator[Event]:
        item: dict[str, Any] = {
            "id": _id("fc"),
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }
        self.calls[call.id] = call.name
        self.items.append(item)
        yield self._event("response.output_item.added", item=dict(item))
        item |= {"arguments": call.arguments, "status": "completed"}
        yield self._event("response.function_call_arguments.delta", delta=call.arguments)
        yield self._event("response.function_call_arguments.done", arguments=call.arguments, name=call.name)
        yield self._event("response.output_item.done", item=dict(item))

    def _part(self, part: Part, text: str) -> dict[str, Any]:
        if part == "thinking":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}

    def _event(self, kind: str, content: bool = False, **fields: Any) -> Event:
        event: Event = {"type": kind, "output_index": len(self.items) - 1, **fields}
        if "item" not in fields:
            event["item_id"] = self.items[-1]["id"]
        return event | {"content_index": 0} if content else event


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"
