"""What the model may call on the page: this server's tools, and MCP servers', which the page asks about."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from localoss.chat.conversation import Conversation
from localoss.chat.harmony import Message
from localoss.chat.rules import AnswerRules
from localoss.errors import LocalossError
from localoss.server.chat.prompts import compiled_rules
from localoss.server.core.hosted import HostedTools, RequestTools, Workshop
from localoss.server.core.mcp_links import ServedMcp
from localoss.server.core.toolbox import Toolbox
from localoss.tools.approval import Approvals, Question, Said

_LOOK_S = 0.5
_PATIENCE_S = 3600.0  # after which a question that nobody answers is a no
_ASKS_FIRST = "all that this MCP server reaches; you are asked before each call"


class PageTools(RequestTools):
    """Whoever looks at the page is asked before a call; meanwhile no thread waits, and the answer can be
    stopped.
    """

    def __init__(self, workshop: Workshop, served: Sequence[ServedMcp], approvals: Approvals) -> None:
        super().__init__(workshop, served)
        self.tell: Callable[[dict[str, Any]], None] = lambda event: None  # the pages that look on
        self.is_closing: Callable[[], bool] = lambda: False  # the server, which waits for nobody then
        self._approvals = approvals
        self._said: Said = "no"
        self._asked: tuple[str, asyncio.Future[Said]] | None = None

    def asks(self, recipient: str | None) -> bool:
        """Never by ending the answer with a request, as the API does."""
        return False

    async def approve(self, call: Message) -> None:
        self._said = "no"
        try:
            question = self._question(call)
        except LocalossError:  # as `refusal` will say
            return
        if question is None or self._approvals.policy(question.key) != "ask":
            return
        name, said = secrets.token_hex(8), asyncio.get_running_loop().create_future()
        self._asked = name, said
        self.tell({"type": "question", "id": name, "text": question.text, "detail": question.detail})
        try:
            ends = time.monotonic() + _PATIENCE_S
            while not said.done() and time.monotonic() < ends and not self.is_closing():
                await asyncio.wait([said], timeout=_LOOK_S)
            self._said = said.result() if said.done() else "no"
        finally:
            self._asked = None
            self.tell({"type": "answered", "id": name})

    def answer(self, name: str, said: Said) -> bool:
        """Take what was said to a question; whether it is still open."""
        if self._asked is None or self._asked[0] != name or self._asked[1].done():
            return False
        self._asked[1].set_result(said)
        return True

    def refusal(self, call: Message) -> str | None:
        if self.served_for(call.recipient) is None:
            return super().refusal(call)
        return self._approvals.refusal(self._question(call), lambda question: self._said)

    def _question(self, call: Message) -> Question | None:
        served = self.served_for(call.recipient)
        return served.tools.question(call.recipient or "", call.text) if served else None


@dataclass(frozen=True)
class PageTurnTools:
    """What a turn has. left_out: MCP servers that give no tools now."""

    tools: PageTools | None
    rules: AnswerRules
    left_out: tuple[str, ...] = ()


async def tools_of_turn(hosted: HostedTools | None, conversation: Conversation, folder: str) -> PageTurnTools:
    """The tools of a session's next turn; `conversation` is told of them. Raises: ApiError, LocalossError."""
    if hosted is None:
        return PageTurnTools(None, AnswerRules())
    served, left_out = await hosted.mcp.open_all() if hosted.mcp else ([], [])
    toolbox = Toolbox().with_mcp(served)
    setup = replace(conversation.setup, functions=toolbox.functions)
    conversation.setup = hosted.add_to(setup, hosted.names, toolbox.has_mcp)
    workshop = await hosted.workshop(folder)
    hosted.keep(folder, workshop)
    tools = PageTools(workshop, served, hosted.approvals)
    return PageTurnTools(tools, await compiled_rules(toolbox, None), tuple(left_out))


def reaches(hosted: HostedTools | None) -> dict[str, str]:
    """What each tool can reach, for people."""
    servers = hosted.mcp.servers if hosted and hosted.mcp else ()
    return (hosted.reaches if hosted else {}) | {server.name: _ASKS_FIRST for server in servers}
