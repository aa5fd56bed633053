"""An answer's pieces become a response's output items, and its stream's events in OpenAI's order."""

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from localoss.chat.agent import CallDone
from localoss.chat.tools import ToolCall
from localoss.server.core.answering import CallOpened, CallText, Closed, Opened, Part, Piece, Text
from localoss.server.core.logprobs import chat_logprobs
from localoss.server.core.mcp_links import ServedMcp
from localoss.server.core.toolbox import Offered, Toolbox
from localoss.server.responses.hosted_items import (
    action_of,
    approval_item,
    list_item,
    mcp_call_item,
    note_result,
    opened_item,
)
from localoss.tools.citations import Find, annotations

Event = dict[str, Any]
_PHASES: dict[Part, str] = {"preamble": "commentary", "answer": "final_answer"}


class Output:
    """Gathers output items; `events` gives what a stream says of each piece, without sequence numbers.

    with_summary: thinking is given as the summary, which is what clients show. cited: what the browser showed
    under a cursor. container: the id of the conversation's python. approvals: the ids of the requests that
    allowed calls, by the calls' ids.
    """

    def __init__(
        self,
        toolbox: Toolbox,
        with_logprobs: bool,
        with_summary: bool = False,
        cited: Find = lambda cursor: None,
        container: str = "",
        approvals: Mapping[str, str] | None = None,
    ) -> None:
        self._toolbox, self._with_summary = toolbox, with_summary
        self._cited, self._container, self._approvals = cited, container, approvals or {}
        self._is_hosted = False  # whether the open call is of a tool of this server's
        self._is_held_back = False  # whether it is shown once it is whole: its user is asked about it
        self.items: list[dict[str, Any]] = []
        # Names of the functions called, by the call's id, or by that of the item that asks about it.
        self.calls: dict[str, str] = {}
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
            yield from self._close_call(piece)
        elif isinstance(piece, CallOpened):
            self._is_hosted, self._is_held_back = piece.is_hosted, False
            yield from self._open_hosted(piece.name) if piece.is_hosted else self._open_call(piece)
        elif isinstance(piece, CallText):
            yield from self._more_of_call(piece.text)
        else:
            yield from self._cut_call()

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
        if self._is_summary(part):
            yield self._event("response.reasoning_summary_part.added", part=_summary(""), summary_index=0)
        else:
            yield self._event("response.content_part.added", part=self._part(part, ""), content=True)

    def _is_summary(self, part: Part) -> bool:
        return part == "thinking" and self._with_summary

    def _more(self, piece: Text) -> Iterator[Event]:
        if self._is_summary(piece.part):
            yield self._event("response.reasoning_summary_text.delta", delta=piece.text, summary_index=0)
            return
        if piece.part == "thinking":
            yield self._event("response.reasoning_text.delta", delta=piece.text, content=True)
            return
        logprobs = chat_logprobs(piece.tokens) if self._with_logprobs else []
        self._logprobs += logprobs
        yield self._event("response.output_text.delta", delta=piece.text, logprobs=logprobs, content=True)

    def _close(self, piece: Closed) -> Iterator[Event]:
        item, part = self.items[-1], self._part(piece.part, piece.text)
        item["status"] = "completed" if piece.is_whole else "incomplete"
        if self._is_summary(piece.part):
            item["summary"], text = [_summary(piece.text)], piece.text
            yield self._event("response.reasoning_summary_text.done", text=text, summary_index=0)
            yield self._event("response.reasoning_summary_part.done", part=_summary(text), summary_index=0)
            yield self._event("response.output_item.done", item=dict(item))
            return
        item["content"] = [part]
        if piece.part == "thinking":
            yield self._event("response.reasoning_text.done", text=piece.text, content=True)
        else:
            for number, annotation in enumerate(part["annotations"]):
                kind = "response.output_text.annotation.added"
                yield self._event(kind, annotation=annotation, annotation_index=number, content=True)
            logprobs = self._logprobs
            yield self._event("response.output_text.done", text=piece.text, logprobs=logprobs, content=True)
        yield self._event("response.content_part.done", part=part, content=True)
        yield self._event("response.output_item.done", item=dict(item))

    def hosted_events(self, done: CallDone) -> Iterator[Event]:
        """What the result of a call of this server's own brings about."""
        item, ending = self.items[-1], "completed"
        item["status"] = "completed" if done.ok else "failed"
        if item["type"] == "code_interpreter_call":
            item["status"] = "completed"  # a traceback is what code gives, too
            item["outputs"] = [{"type": "logs", "logs": done.result.text}]
        elif item["type"] == "mcp_call":
            note_result(item, done)
            ending = item["status"]
        else:
            item["action"] = action_of(done, self._cited)
        yield self._event(f"response.{item['type']}.{ending}")
        yield self._event("response.output_item.done", item=dict(item))

    def _open_hosted(self, recipient: str) -> Iterator[Event]:
        item = opened_item(recipient, self._container)
        self.items.append(item)
        yield self._event("response.output_item.added", item=dict(item))
        yield self._event(f"response.{item['type']}.in_progress")

    def _close_hosted(self, call: ToolCall) -> Iterator[Event]:
        item = self.items[-1]
        if item["type"] == "code_interpreter_call":
            item["code"] = call.arguments
            yield self._event("response.code_interpreter_call_code.done", code=call.arguments)
            yield self._event("response.code_interpreter_call.interpreting")
        else:
            yield self._event("response.web_search_call.searching")

    def listed(self, served: ServedMcp) -> Iterator[Event]:
        """That an MCP server's tools were listed."""
        whole = list_item(served)
        self.calls[whole["id"]] = served.label
        self.items.append(whole)
        yield self._event("response.output_item.added", item=whole | {"tools": []})
        yield self._event("response.mcp_list_tools.in_progress")
        yield self._event("response.mcp_list_tools.completed")
        yield self._event("response.output_item.done", item=dict(whole))

    def _open_mcp(self, call_id: str, offered: Offered) -> Iterator[Event]:
        item = mcp_call_item(call_id, offered, self._approvals.get(call_id))
        self.items.append(item)
        yield self._event("response.output_item.added", item=dict(item))
        yield self._event("response.mcp_call.in_progress")

    def _ask(self, call: ToolCall, offered: Offered) -> Iterator[Event]:
        """Ask the client's user about a call, which is whole only now."""
        item = approval_item(call, offered)
        self.calls[item["id"]] = call.name
        self.items.append(item)
        yield self._event("response.output_item.added", item=dict(item))
        yield self._event("response.output_item.done", item=dict(item))

    def _open_call(self, call: CallOpened) -> Iterator[Event]:
        offered = self._toolbox.as_offered(call.name)
        self._is_held_back = offered.asks and call.id not in self._approvals
        if offered.server is not None:
            yield from () if self._is_held_back else self._open_mcp(call.id, offered)
            return
        kind, field = ("custom_tool_call", "input") if offered.is_custom else ("function_call", "arguments")
        item: dict[str, Any] = {
            "id": _id("ctc" if offered.is_custom else "fc"),
            "type": kind,
            "call_id": call.id,
            "name": offered.name,
            field: "",
            "status": "in_progress",
        }
        if offered.namespace:
            item["namespace"] = offered.namespace
        self.items.append(item)
        yield self._event("response.output_item.added", item=dict(item))

    def _more_of_call(self, text: str) -> Iterator[Event]:
        """More arguments; a custom tool's text, which stands in them as JSON, comes once it is whole."""
        if self._is_held_back:
            return
        item = self.items[-1]
        if item["type"] == "code_interpreter_call":
            item["code"] += text
            yield self._event("response.code_interpreter_call_code.delta", delta=text)
        elif item["type"] == "mcp_call":
            item["arguments"] += text
            yield self._event("response.mcp_call_arguments.delta", delta=text)
        elif item["type"] == "function_call":
            item["arguments"] += text
            yield self._event("response.function_call_arguments.delta", delta=text)

    def _close_call(self, call: ToolCall) -> Iterator[Event]:
        offered = self._toolbox.as_offered(call.name)
        if self._is_hosted:
            yield from self._close_hosted(call)
            return
        if offered.server is not None:
            yield from self._close_mcp(call, offered)
            return
        item, text = self.items[-1], offered.text_of(call)
        self.calls[call.id] = call.name
        item["status"] = "completed"
        if item["type"] == "custom_tool_call":
            item["input"] = text
            yield self._event("response.custom_tool_call_input.delta", delta=text)
            yield self._event("response.custom_tool_call_input.done", input=text)
        else:
            item["arguments"] = text
            done = {"arguments": text, "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **done)
        yield self._event("response.output_item.done", item=dict(item))

    def _close_mcp(self, call: ToolCall, offered: Offered) -> Iterator[Event]:
        if self._is_held_back:
            yield from self._ask(call, offered)
            return
        self.items[-1]["arguments"] = call.arguments
        yield self._event("response.mcp_call_arguments.done", arguments=call.arguments)

    def _cut_call(self) -> Iterator[Event]:
        """The end of a call that was cut, if there is one open."""
        if self.items and self.items[-1].get("status") == "in_progress":
            self.items[-1]["status"] = "incomplete"
            yield self._event("response.output_item.done", item=dict(self.items[-1]))

    def _part(self, part: Part, text: str) -> dict[str, Any]:
        if part == "thinking":
            return {"type": "reasoning_text", "text": text}
        marks = annotations(text, self._cited)
        return {"type": "output_text", "text": text, "annotations": marks, "logprobs": list(self._logprobs)}

    def _event(self, kind: str, content: bool = False, **fields: Any) -> Event:
        event: Event = {"type": kind, "output_index": len(self.items) - 1, **fields}
        if "item" not in fields:
            event["item_id"] = self.items[-1]["id"]
        return event | {"content_index": 0} if content else event


def _summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"
