"""Output items of the server's own tools: code_interpreter_call, web_search_call and MCP servers' calls."""

import json
import re
import secrets
from typing import Any

from localoss.chat.agent import CallDone
from localoss.chat.tools import ToolCall
from localoss.server.core.mcp_links import ServedMcp
from localoss.server.core.toolbox import Offered
from localoss.tools.citations import Find
from localoss.tools.mcp_tools import mark_of

_CURSOR = re.compile(r"\[(\d+)\] ")  # at the beginning of what the browser shows


def opened_item(recipient: str, container: str) -> dict[str, Any]:
    """The item of a call that begins."""
    if recipient == "python":
        return {
            "id": f"ci_{secrets.token_hex(16)}",
            "type": "code_interpreter_call",
            "status": "in_progress",
            "code": "",
            "container_id": container,
            "outputs": None,
        }
    return {
        "id": f"ws_{secrets.token_hex(16)}",
        "type": "web_search_call",
        "status": "in_progress",
        "action": {"type": "search", "query": ""},
    }


def action_of(done: CallDone, cited: Find) -> dict[str, Any]:
    """What a browser's call did, as the API says it."""
    try:
        values = json.loads(done.call.text, strict=False) if done.call.text.strip() else {}
    except (ValueError, RecursionError):
        values = {}
    values = values if isinstance(values, dict) else {}
    shown = _CURSOR.match(done.result.text)
    page = cited(int(shown[1])) if shown else None
    if done.call.recipient == "browser.search":
        query = str(values.get("query", ""))
        return {"type": "search", "query": query, "queries": [query]}
    if done.call.recipient == "browser.find":
        url = page.url if page else ""
        return {"type": "find_in_page", "pattern": str(values.get("pattern", "")), "url": url}
    named = values.get("id")
    return {"type": "open_page", "url": page.url if page else named if isinstance(named, str) else None}


def mcp_call_item(call_id: str, offered: Offered, approval: str | None) -> dict[str, Any]:
    """The item of an MCP server's call that begins. approval: the id of the request that allowed it."""
    return {
        "id": item_id("mcp", call_id),
        "type": "mcp_call",
        "status": "in_progress",
        "server_label": offered.server,
        "name": offered.name,
        "arguments": "",
        "approval_request_id": approval,
        "output": None,
        "error": None,
    }


def approval_item(call: ToolCall, offered: Offered) -> dict[str, Any]:
    """The item that asks the client's user whether a call may be made."""
    return {
        "id": item_id("mcpr", call.id),
        "type": "mcp_approval_request",
        "server_label": offered.server,
        "name": offered.name,
        "arguments": call.arguments,
    }


def list_item(served: ServedMcp) -> dict[str, Any]:
    """The item that says which tools an MCP server has, of those that may be called."""
    listed = [served.tools.listed[function.name] for function in served.functions]
    tools = [
        {
            "name": tool.name,
            "description": tool.description,
            "input_schema": tool.input_schema,
            "annotations": tool.annotations and tool.annotations.model_dump(by_alias=True, exclude_none=True),
        }
        for tool in listed
    ]
    return {
        "id": f"mcpl_{secrets.token_hex(16)}",
        "type": "mcp_list_tools",
        "server_label": served.label,
        "tools": tools,
        "error": None,
    }


def note_result(item: dict[str, Any], done: CallDone) -> None:
    """Have an item of type mcp_call say what came of it."""
    text = done.result.text.removeprefix(mark_of(item["server_label"]))
    if done.ok:
        item["status"], item["output"] = "completed", text
    else:
        error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": text}]}
        item["status"], item["error"] = "failed", error


def item_id(kind: str, call_id: str) -> str:
    """An item's id, which says whose call's it is."""
    return f"{kind}_{call_id.removeprefix('call_')}"


def call_id_of(item: str) -> str:
    """The id of the call of an item of type mcp_call or mcp_approval_request."""
    return f"call_{item.partition('_')[2]}"
