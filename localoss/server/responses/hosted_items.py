"""Output items of the server's own tools: code_interpreter_call and web_search_call."""

import json
import re
import secrets
from typing import Any

from localoss.chat.agent import CallDone
from localoss.tools.citations import Find

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
