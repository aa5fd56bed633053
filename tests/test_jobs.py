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
