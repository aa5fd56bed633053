"""Requests that come at once begin by turns of their clients, one each time that the loop comes round."""

import asyncio

from localoss.server.core.entrance import Entrance
from localoss.server.core.keys import Client


def test_a_client_of_many_requests_is_no_wall():
    async def come():
        entrance, begun, rounds = Entrance(), [], 0

        async def request(name, number):
            await entrance.wait(Client(name))
            begun.append((name, number, rounds))

        many = [asyncio.create_task(request("many", number)) for number in range(20)]
        one = asyncio.create_task(request("one", 0))
        many[1].cancel()
        while not one.done() or not all(task.done() for task in many):
            await asyncio.sleep(0)
            rounds += 1
        await request("late", 0)
        return begun

    begun = asyncio.run(come())
    assert [name for name, *_ in begun[:3]] == ["many", "many", "one"], "the one that came last is next"
    assert [number for name, number, _ in begun if name == "many"] == [0, *range(2, 20)], "in order"
    assert len({at for name, _, at in begun[:-1]}) == 20, "each at another time"
    assert begun[-1][0] == "late"


def test_a_lone_request_waits_for_nothing():
    async def lone():
        entrance = Entrance()
        waiting = entrance.wait(Client("a"))
        try:
            waiting.send(None)
        except StopIteration:
            return True
        return False

    assert asyncio.run(lone())
