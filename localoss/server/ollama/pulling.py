"""A model that isn't here, fetched for a client of Ollama's API: by `localoss pull`, a process of its own.

So the engine keeps its processor's caches and its thread, and a client that goes away ends the download,
which goes on where it stopped when it is asked for again.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from localoss.errors import LocalossError
from localoss.hub.pull import Order

_LINE_CHARS = 500


def check_can_pull(name: str) -> None:
    """Raises: LocalossError for a name that stands for nothing on the hub."""
    assert Order(name).repository


async def pulling(name: str) -> AsyncIterator[dict[str, str]]:
    """What happens, in Ollama's words. Raises: LocalossError if it fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "localoss", "pull", "--", name),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    try:
        yield {"status": "pulling manifest"}
        said = ""
        async for line in process.stderr:
            if said := line.decode(errors="replace").strip()[:_LINE_CHARS] or said:
                yield {"status": said}
        if await process.wait():
            raise LocalossError(said.removeprefix("error: ") or f"{name} couldn't be pulled")
        yield {"status": "success"}
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
