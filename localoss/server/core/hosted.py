"""Tools that this server runs itself, as OpenAI's: python is code_interpreter, the browser web_search.

Each conversation has its own: its variables, and the pages that it opened. A response that goes on from
another has those of that one, as long as they are among the last few that were used. MCP servers are shared
by the requests of a key.
"""

import asyncio
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from localoss.chat.agent import Agent, CallDone, Result, Stop
from localoss.chat.harmony import ChatSetup, Message
from localoss.chat.rules import AnswerRules
from localoss.chat.tools import called_name
from localoss.errors import UsageError
from localoss.server.core.mcp_links import McpLinks, ServedMcp
from localoss.server.core.mcp_requests import McpWanted
from localoss.tools.addresses import allowed_host, is_literal, split
from localoss.tools.approval import Approvals
from localoss.tools.choice import ToolOptions, open_tools
from localoss.tools.mcp_config import read_servers
from localoss.tools.toolset import DATA_NOTE, FUNCTIONS, Tool, Toolset

_MOST_KEPT = 8


def check_hosted(options: ToolOptions) -> None:
    """Raises: UsageError for tools that a server doesn't run: those that ask, or reach the user's files."""
    options.check()
    others = [name for name in options.tools if name not in ("python", "cpython", "browser")]
    if others or options.folder:
        raise UsageError(
            "a server runs python, cpython, the browser and MCP servers only: functions and --folder ask "
            "their user"
        )


@dataclass
class Workshop:
    """The tools of one conversation. container: the id that the API has for it."""

    toolset: Toolset
    container: str = field(default_factory=lambda: f"cntr_{secrets.token_hex(16)}")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class RequestTools:
    """What one request may have run here, for its agent: the conversation's own tools, and MCP servers'."""

    rules = AnswerRules()  # the request's own rules hold

    def __init__(self, workshop: Workshop, served: Sequence[ServedMcp] = ()) -> None:
        self.workshop, self.served = workshop, tuple(served)
        self._mcp = {f"{FUNCTIONS}{f.name}": one for one in served for f in one.functions}
        self.agent = Agent(self)

    def runs(self, recipient: str | None) -> bool:
        """Whether a call is one of these tools', rather than the client's."""
        return bool(recipient) and (not str(recipient).startswith(FUNCTIONS) or recipient in self._mcp)

    def asks(self, recipient: str | None) -> bool:
        """Whether the client's user is asked before such a call."""
        served = self.served_for(recipient)
        return served is not None and called_name(recipient or "") in served.asking

    async def approve(self, call: Message) -> None:
        """Wait until whoever has to be asked before a call has said something."""

    def limit_s(self, call: Message) -> float:
        return self._tool_of(call).limit_s

    def refusal(self, call: Message) -> str | None:
        """None: who has to be asked is the client's user, by the request that the answer ends with."""
        return None if call.recipient in self._mcp else self.workshop.toolset.refusal(call)

    def run(self, call: Message, stop: Stop) -> Result:
        return self._tool_of(call).run(call, stop)

    def served_for(self, recipient: str | None) -> ServedMcp | None:
        """The MCP server whose tool this is."""
        return self._mcp.get(recipient or "")

    def _tool_of(self, call: Message) -> Tool:
        served = self.served_for(call.recipient)
        return served.tools if served else self.workshop.toolset.tool_of(call.recipient or "")


class HostedTools:
    """Opens tools for conversations, and closes those that weren't used for longest."""

    def __init__(self, options: ToolOptions, approvals: Approvals | None = None) -> None:
        """approvals: what whoever runs this server said of MCP servers' tools.

        Raises: UsageError, LocalossError for tools that can't be opened.
        """
        self.approvals = approvals or Approvals(None, None)
        self.mcp = _mcp_links(options, self.approvals)
        web_allow = options.web_allow if options.web else ()  # else it is of the MCP servers, which are apart
        self._options = replace(options, mcp=None, web_allow=web_allow)
        self._first: Toolset | None = self._open()
        self._told = self._first.add_to(ChatSetup())
        self.reaches = {tool.name: tool.reach for tool in self._first.tools}  # for people
        self._kept: OrderedDict[str, Workshop] = OrderedDict()
        self._threads = ThreadPoolExecutor(_MOST_KEPT, thread_name_prefix="hosted")

    @property
    def names(self) -> tuple[str, ...]:
        """Of python and browser, those that there are."""
        return self._told.builtin_tools

    def add_to(self, setup: ChatSetup, names: tuple[str, ...], has_mcp: bool = False) -> ChatSetup:
        """`setup` with what the model is told of these tools."""
        if not names:
            return replace(setup, tool_instructions=DATA_NOTE) if has_mcp else setup
        told = self._told
        notes, instructions = told.tool_notes, told.tool_instructions
        return replace(setup, builtin_tools=names, tool_notes=notes, tool_instructions=instructions)

    async def open_mcp(self, wanted: Sequence[McpWanted], key: str) -> list[ServedMcp]:
        """The MCP servers' tools that a request of `key` asks for. Raises: ApiError."""
        return await self.mcp.open(wanted, key) if self.mcp and wanted else []

    async def workshop(self, previous: str | None) -> Workshop:
        """The tools of the conversation that response `previous` belongs to, or new ones.

        Raises: LocalossError.
        """
        if previous is not None and previous in self._kept:
            self._kept.move_to_end(previous)
            return self._kept[previous]
        first, self._first = self._first, None
        loop = asyncio.get_running_loop()
        return Workshop(first if first else await loop.run_in_executor(self._threads, self._open))

    def keep(self, response_id: str, workshop: Workshop) -> None:
        """Have responses that go on from this one find its tools."""
        self._kept[response_id] = workshop
        while len({id(one) for one in self._kept.values()}) > _MOST_KEPT:
            _, oldest = self._kept.popitem(last=False)
            self.drop(oldest)

    def drop(self, workshop: Workshop) -> None:
        """Close tools that no response is kept with."""
        if all(one is not workshop for one in self._kept.values()):
            self._threads.submit(workshop.toolset.close)

    async def carry_out(self, tools: RequestTools, call: Message, room_tokens: int) -> CallDone:
        """Make a call; it is broken off if whoever waits for it is cancelled."""
        gone = threading.Event()

        @contextmanager
        def interrupts() -> Iterator[Callable[[], bool]]:
            yield gone.is_set

        loop = asyncio.get_running_loop()
        await tools.approve(call)  # no thread waits for people: there are few
        async with tools.workshop.lock:
            try:
                return await loop.run_in_executor(
                    self._threads, tools.agent.carry_out, call, interrupts, room_tokens
                )
            finally:
                gone.set()

    def close(self) -> None:
        for toolset in {id(one): one.toolset for one in self._kept.values()}.values():
            toolset.close()
        if self._first:
            self._first.close()
        if self.mcp:
            self.mcp.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _open(self) -> Toolset:
        return open_tools(self._options, Approvals(None, None))


def _mcp_links(options: ToolOptions, approvals: Approvals) -> McpLinks | None:
    """Raises: UsageError for a file that names no servers, or if the mcp package isn't installed."""
    if options.mcp is None:
        return None
    servers = read_servers(options.mcp)
    # An address of this network that stands in the file is meant. A name isn't: what it leads to may change.
    hosts = [split(server.url)[1] for server in servers if server.url]
    meant = [host for host in hosts if host == "localhost" or is_literal(host)]
    return McpLinks(servers, approvals, [*meant, *map(allowed_host, options.web_allow)])
