"""Tools that this server runs itself, as OpenAI's: python is code_interpreter, the browser web_search.

Each conversation has its own: its variables, and the pages that it opened. A response that goes on from
another has those of that one, as long as they are among the last few that were used.
"""

import asyncio
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from localoss.chat.agent import Agent, CallDone
from localoss.chat.harmony import ChatSetup, Message
from localoss.errors import UsageError
from localoss.tools.approval import Approvals
from localoss.tools.choice import ToolOptions, open_tools
from localoss.tools.toolset import FUNCTIONS, Toolset

_MOST_KEPT = 8


def is_hosted(recipient: str | None) -> bool:
    """Whether a call is one of these tools', rather than the client's."""
    return bool(recipient) and not str(recipient).startswith(FUNCTIONS)


def check_hosted(options: ToolOptions) -> None:
    """Raises: UsageError for tools that a server doesn't run: those that ask, or reach the user's files."""
    others = [name for name in options.tools if name not in ("python", "cpython", "browser")]
    if others or options.folder or options.mcp:
        raise UsageError(
            "a server runs python, cpython and the browser only: functions, --folder and --mcp ask their user"
        )


@dataclass
class Workshop:
    """The tools of one conversation. container: the id that the API has for it."""

    toolset: Toolset
    container: str = field(default_factory=lambda: f"cntr_{secrets.token_hex(16)}")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.agent = Agent(self.toolset)


class HostedTools:
    """Opens tools for conversations, and closes those that weren't used for longest."""

    def __init__(self, options: ToolOptions) -> None:
        """Raises: UsageError, LocalossError for tools that can't be opened."""
        self._options = options
        self._first: Toolset | None = self._open()
        self._told = self._first.add_to(ChatSetup())
        self.reaches = {
            tool.name: tool.reach for tool in self._first.tools
        }  # what each can reach, for people
        self._kept: OrderedDict[str, Workshop] = OrderedDict()
        self._threads = ThreadPoolExecutor(_MOST_KEPT, thread_name_prefix="hosted")

    @property
    def names(self) -> tuple[str, ...]:
        """Of python and browser, those that there are."""
        return self._told.builtin_tools

    def add_to(self, setup: ChatSetup, names: tuple[str, ...]) -> ChatSetup:
        """`setup` with what the model is told of these tools."""
        if not names:
            return setup
        told = self._told
        notes, instructions = told.tool_notes, told.tool_instructions
        return replace(setup, builtin_tools=names, tool_notes=notes, tool_instructions=instructions)

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

    async def carry_out(self, workshop: Workshop, call: Message, room_tokens: int) -> CallDone:
        """Make a call; it is broken off if whoever waits for it is cancelled."""
        gone = threading.Event()

        @contextmanager
        def interrupts() -> Iterator[Callable[[], bool]]:
            yield gone.is_set

        loop = asyncio.get_running_loop()
        async with workshop.lock:
            try:
                return await loop.run_in_executor(
                    self._threads, workshop.agent.carry_out, call, interrupts, room_tokens
                )
            finally:
                gone.set()

    def close(self) -> None:
        for toolset in {id(one): one.toolset for one in self._kept.values()}.values():
            toolset.close()
        if self._first:
            self._first.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _open(self) -> Toolset:
        return open_tools(self._options, Approvals(None, None))
