"""Requests that come at once begin one after the other, by turns of their clients."""

import asyncio
from collections import OrderedDict, deque

from localoss.server.core.keys import Client


class Entrance:
    """Lets one request in each time that the event loop comes round; used on the loop alone.

    The loop runs all that is ready before anything comes again: the first steps of forty requests of one
    client, 3 ms each, would stand between every two steps of another's. What is in waits for nobody.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[Client, deque[asyncio.Future[None]]] = OrderedDict()  # the first is next
        self._is_closed = False  # until the loop has come round

    async def wait(self, client: Client) -> None:
        """Come back when it is the turn of a request of `client`: at once if nobody else came."""
        loop = asyncio.get_running_loop()
        if not self._is_closed:
            self._is_closed = True
            loop.call_soon(self._let_in, loop)
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._lines.setdefault(client, deque()).append(turn)
        await turn

    def _let_in(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._lines:
            client, line = self._lines.popitem(last=False)
            turn = line.popleft()
            if line:
                self._lines[client] = line  # to the end: the others' turn comes first
            if not turn.done():  # it is if its client has left
                turn.set_result(None)
                loop.call_soon(self._let_in, loop)
                return
        self._is_closed = False
