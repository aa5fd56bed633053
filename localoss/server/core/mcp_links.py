"""Connections to the MCP servers that requests may use, kept from one request to the next."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from localoss.chat.harmony import Function
from localoss.errors import LocalossError
from localoss.server.core.errors import ApiError
from localoss.server.core.mcp_requests import McpWanted, ToolFilter
from localoss.tools.approval import Approvals
from localoss.tools.mcp_client import McpLoop
from localoss.tools.mcp_config import McpServer
from localoss.tools.mcp_link import McpLink
from localoss.tools.mcp_tools import McpTools

logger = logging.getLogger("localoss.server")
_MOST_LINKS = 8  # of one key
_AT_ONCE = 8
_MOST_USED = 10_000
_AGAIN_S = 60.0  # after which a server that didn't start is tried again


@dataclass(frozen=True)
class ServedMcp:
    """A server's tools as one request has them. functions: those that may be called; asking: names of those
    that are asked about first.
    """

    label: str
    tools: McpTools
    functions: tuple[Function, ...]
    asking: frozenset[str]


@dataclass
class _Kept:
    """A link, once it is there. lock: held while it is made."""

    link: McpLink | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class McpLinks:
    """Opens links, one for each key, server and headers, and closes those that weren't used for longest.

    What one key's requests have a server keep, such as an open page, no other key's requests reach.
    """

    def __init__(self, servers: Sequence[McpServer], approvals: Approvals, allowed: Collection[str]) -> None:
        """approvals: of whoever runs this server: what is never allowed isn't offered to clients.

        allowed: hosts whose addresses may be private. Raises: UsageError if the mcp package isn't installed.
        """
        self.servers = tuple(servers)
        self._approvals, self._allowed = approvals, tuple(allowed)
        self._loop = McpLoop()
        self._kept: OrderedDict[tuple[str, McpServer], _Kept] = OrderedDict()
        self._used: OrderedDict[tuple[str, str], None] = OrderedDict()  # approvals
        self._failed: dict[str, float] = {}  # until when servers that didn't start are left alone
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="mcp-open")

    async def open(self, wanted: Sequence[McpWanted], key: str) -> list[ServedMcp]:
        """The tools that a request asks for. Raises: ApiError 424 for a server that doesn't give any."""
        return list(await asyncio.gather(*(self._open(one, key) for one in wanted)))

    async def open_all(self) -> tuple[list[ServedMcp], list[str]]:
        """All servers' tools for whoever runs this server, and the names of those that don't give any.

        One that doesn't is left alone for a while: nobody waits for it at each question.
        """
        meant = [one for one in self.servers if time.monotonic() >= self._failed.get(one.name, 0.0)]
        wanted = [McpWanted(one.name, one.name, one, ToolFilter(), None) for one in meant]
        # Each has a key of its own: however many there are, none is closed for another.
        opening = [self._open(one, f"\0page {one.label}") for one in wanted]
        opened = await asyncio.gather(*opening, return_exceptions=True)
        served: list[ServedMcp] = []
        for one, found in zip(meant, opened, strict=True):
            if isinstance(found, ServedMcp):
                served.append(found)
            elif isinstance(found, ApiError):
                self._failed[one.name] = time.monotonic() + _AGAIN_S
            else:
                raise found
        names = {one.label for one in served}
        return served, [one.name for one in self.servers if one.name not in names]

    async def _open(self, wanted: McpWanted, key: str) -> ServedMcp:
        kept = self._entry(key, wanted.server)
        run = asyncio.get_running_loop().run_in_executor
        try:
            async with kept.lock:
                if kept.link is None or not kept.link.is_alive:
                    old, kept.link = kept.link, None
                    if old:
                        self._threads.submit(old.close)
                    kept.link = await run(self._threads, self._connect, wanted.server)
                link = kept.link
            tools = await run(self._threads, McpTools, link, wanted.label, True)
        except LocalossError as error:  # which may tell of this network
            logger.warning("%s", error)
            raise ApiError(
                f"Error retrieving tool list from MCP server: {wanted.label!r}. The server's log says why.",
                status=424,
                kind="external_connector_error",
                code="http_error",
                param="tools",
            ) from None
        return self._served(wanted, tools)

    def use_approval(self, key: str, request: str) -> None:
        """Note that an approval was made use of. Raises: ApiError if it was before: it allows one call."""
        if (key, request) in self._used:
            raise ApiError(
                f"the approval of {request} was used: it allows one call; ask again", param="input"
            )
        self._used[key, request] = None
        while len(self._used) > _MOST_USED:
            self._used.popitem(last=False)

    def close(self) -> None:
        for kept in self._kept.values():
            if kept.link:
                kept.link.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._loop.close()

    def _entry(self, key: str, server: McpServer) -> _Kept:
        entry = self._kept.setdefault((key, server), _Kept())
        self._kept.move_to_end((key, server))
        idle = [one for one, kept in self._kept.items() if one[0] == key and not kept.lock.locked()]
        for oldest in idle[:-_MOST_LINKS]:
            if link := self._kept.pop(oldest).link:
                self._threads.submit(link.close)
        return entry

    def _connect(self, server: McpServer) -> McpLink:
        return McpLink(server, self._loop, logger.info, allowed=self._allowed)

    def _served(self, wanted: McpWanted, tools: McpTools) -> ServedMcp:
        def is_offered(function: Function) -> bool:
            tool = tools.listed[function.name]
            policy = self._approvals.policy(f"mcp:{wanted.operators_name}/{tool.name}")
            return policy != "never" and wanted.allowed.matches(tool)

        functions = tuple(filter(is_offered, tools.functions))
        asking = [function.name for function in functions if wanted.asks(tools.listed[function.name])]
        return ServedMcp(wanted.label, tools, functions, frozenset(asking))
