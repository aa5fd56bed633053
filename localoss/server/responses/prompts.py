"""Input items of /v1/responses become harmony's messages."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from localoss.chat.harmony import Message
from localoss.chat.tools import KeyThoughts, call_message, result_message
from localoss.server.chat.prompts import arguments_text
from localoss.server.core.content import text_of
from localoss.server.core.errors import ApiError
from localoss.server.core.toolbox import NO_TOOLS, Toolbox, custom_arguments, model_name
from localoss.server.core.turns import Approved
from localoss.server.responses.approval import Approval
from localoss.server.responses.hosted_items import call_id_of
from localoss.server.responses.schemas import InputItem
from localoss.tools.mcp_tools import mark_of

FoundItem = Callable[[str], dict[str, Any] | None]


def convert_items(
    items: Sequence[InputItem],
    thoughts: KeyThoughts,
    names: dict[str, str],
    before: Sequence[Message] = (),
    toolbox: Toolbox = NO_TOOLS,
) -> "Converted":
    """What `items` say.

    names: of the functions that previous responses called, by the call's id; those of `items` are added.
    before: the messages that the items go on. Raises: ApiError for an item that the model can't read.
    """
    said = [index for index, item in enumerate(items) if _is_said(item)]
    newest = said[-1] + 1 if said else 0
    made = {item.approval_request_id for item in items if item.type == "mcp_call"}
    converter = _Converter(thoughts, names, newest, Approval(before, names, made), toolbox)
    for index, item in enumerate(items):
        converter.add(index, item)
    converter.approval.settle(converter.messages)
    return Converted(converter.messages, converter.left_out, converter.approval.approved)


@dataclass(frozen=True)
class Converted:
    """messages: of the items. left_out: the types of those that say nothing to this model. approved: the
    call that is to be made before the model goes on.
    """

    messages: list[Message]
    left_out: list[str]
    approved: Approved | None


def with_references(items: Sequence[InputItem], find: FoundItem) -> list[InputItem]:
    """`items` with stored ones in the place of references to them; unknown references stay."""
    resolved = []
    for item in items:
        is_reference = item.type == "item_reference" or (item.type is None and item.role is None)
        found = find(item.id) if is_reference and item.id else None
        resolved.append(InputItem.model_validate(found) if found else item)
    return resolved


def _is_said(item: InputItem) -> bool:
    """Whether the model wrote it: what comes before is old."""
    kind = item.type or ""
    is_said = kind.endswith("_call") or kind in ("reasoning", "mcp_approval_request")
    return item.role == "assistant" or is_said


class _Converter:
    """newest: index of the first item after the model's last, from where images are refused."""

    def __init__(
        self,
        thoughts: KeyThoughts,
        names: dict[str, str],
        newest: int,
        approval: Approval,
        toolbox: Toolbox,
    ) -> None:
        self.messages: list[Message] = []
        self.left_out: list[str] = []
        self.approval, self._toolbox = approval, toolbox
        self._thoughts, self._names, self._newest = thoughts, names, newest
        self._turn = 0  # where the assistant's open turn begins

    def add(self, index: int, item: InputItem) -> None:
        kind, where = item.type or "message", f"input.{index}"
        if kind.startswith("mcp_"):
            self._add_mcp(item, kind, where, is_new=index >= self._newest)
            return
        self.approval.settle(self.messages)
        is_message = kind == "message" or (kind == "agent_message" and item.role is not None)
        if is_message and item.role not in ("tool", "function"):
            self._add_message(item, where, is_new=index >= self._newest)
        elif kind == "reasoning":
            if text := text_of(item.content or item.summary, where):
                self.messages.append(Message("assistant", text, "analysis"))
        elif kind.endswith("_output") or item.role in ("tool", "function"):
            self._add_result(item, where)
        elif kind in ("function_call", "custom_tool_call") or (kind.endswith("_call") and item.call_id):
            self._add_call(item, kind, where)
        else:  # what a server's own tools did, a compacted history that another server made
            self.left_out.append(f"input:{kind}")

    def _add_message(self, item: InputItem, where: str, is_new: bool) -> None:
        if item.role is None:
            raise ApiError(f"{where}: a message needs a role", param=f"{where}.role")
        text = text_of(item.content, f"{where}.content", is_new and item.role == "user")
        if item.role == "assistant":
            channel = "commentary" if item.phase == "commentary" else "final"
            self.messages.append(Message("assistant", text, channel))
        else:
            self.messages.append(Message("user" if item.role == "user" else "developer", text))
            self._turn = len(self.messages)

    def _add_call(self, item: InputItem, kind: str, where: str) -> None:
        if kind in ("function_call", "custom_tool_call") and item.name is None:
            raise ApiError(f"{where}: a {kind} needs a name", param=where)
        if not item.call_id:
            raise ApiError(f"{where}: a {kind} needs call_id, name and arguments", param=where)
        name = model_name(item.name or kind.removesuffix("_call"), item.namespace)
        self._names[item.call_id] = name
        self._recall(item.call_id)
        if kind == "custom_tool_call":
            arguments = custom_arguments(item.input or "")
        else:
            arguments = arguments_text(item.arguments or item.action)
        self.messages.append(call_message(name, arguments))
        self._turn = len(self.messages)

    def _recall(self, call_id: str) -> None:
        """Add what was thought before a call, if that is known."""
        known = self._thoughts.before(call_id)
        if known is not None:  # better than what the client sends of it, which may be nothing
            del self.messages[self._turn :]
            self.messages += known

    def _add_mcp(self, item: InputItem, kind: str, where: str, is_new: bool) -> None:
        """What an MCP server did before, or what is said of what it is to do."""
        if kind == "mcp_approval_response":
            if item.approval_request_id is None or item.approve is None:
                raise ApiError(f"{where}: it needs approval_request_id and approve", param=where)
            self.approval.answer(item, is_new, self.messages)
        elif kind in ("mcp_call", "mcp_approval_request"):
            if None in (item.id, item.server_label, item.name):
                raise ApiError(f"{where}: a {kind} needs id, server_label and name", param=where)
            self._add_mcp_call(item, kind == "mcp_call")
        elif kind != "mcp_list_tools":
            self.left_out.append(f"input:{kind}")
        self._turn = len(self.messages)

    def _add_mcp_call(self, item: InputItem, is_made: bool) -> None:
        self.approval.settle(self.messages)
        if item.id in self.approval.made:  # the call itself follows
            return
        call_id = call_id_of(str(item.id))
        self._recall(call_id)
        name = self._toolbox.function_of(str(item.server_label), str(item.name))
        call = call_message(name, arguments_text(item.arguments))
        self.messages.append(call)
        if not is_made:
            self.approval.wait(str(item.id), call)
            return
        told = text_of(item.output, "output") if item.error is None else item.error
        text = told if isinstance(told, str) else json.dumps(told, ensure_ascii=False)
        self.messages.append(result_message(name, mark_of(str(item.server_label)) + text))

    def _add_result(self, item: InputItem, where: str) -> None:
        output = item.content if item.output is None else item.output
        text = text_of(output, where)
        name = self._names.get(item.call_id or "", item.name)
        self.messages.append(result_message(model_name(name, None) if name else "unknown", text))
        self._turn = len(self.messages)
