"""What the engine's thread gives, and how it comes to the event loop."""

import asyncio
from types import SimpleNamespace

from localoss.server.core.jobs import Job, gathered
from localoss.server.core.keys import Client


def test_what_a_step_gives_comes_in_one_go():
    async def step():
        loop, woken = asyncio.get_running_loop(), []
        usual = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args: woken.append(args) or usual(*args)
        jobs = [Job(SimpleNamespace(close=lambda: None), Client("a")) for _ in range(2)]

        def give():
            with gathered():
                jobs[0].give("a")
                jobs[1].give_all(lambda: iter("bc"))
                jobs[1].end()
                assert not woken, "the loop is left alone"
            assert len(woken) == 1
            jobs[0].give("d")
            jobs[0].end()
            assert len(woken) == 3, "what isn't of a step comes at once"

        await asyncio.to_thread(give)
        return [[item async for item in job.items()] for job in jobs]

    assert asyncio.run(step()) == [["a", "d"], ["b", "c"]]


def test_the_loop_comes_round_while_much_is_sent():
    """Else it doesn't learn that the client has left, and asyncio logs each write from the fifth on."""

    async def most_at_once():
        job, loop = Job(SimpleNamespace(close=lambda: None), Client("a")), asyncio.get_running_loop()
        for item in range(20):
            job.put(item)
        job.end()
        rounds = 0

        def come_round():
            nonlocal rounds
            rounds += 1
            loop.call_soon(come_round)

        come_round()
        by_round = [rounds async for _ in job.items()]
        return max(by_round.count(one) for one in by_round)

    assert asyncio.run(asyncio.wait_for(most_at_once(), 10)) < 5
