"""A model that isn't here, fetched for a client of Ollama's API, in the words that its progress bars want."""

from collections.abc import AsyncIterator
from typing import Any

from localoss.errors import LocalossError
from localoss.server.core.errors import ApiError
from localoss.server.core.pulls import Pulls, Told

_IDLE_S = 10.0
_DIGEST_CHARS = 12  # of a file's digest: what Ollama shows beside its bar


def model_to_pull(name: str) -> str:
    """The name that `name` has here. Raises: ApiError 404 if it stands for nothing on the hub."""
    from localoss.hub.pull import Order  # only now: the hub's library takes 0.2 s of a server's start

    try:
        order = Order(name)
        assert order.repository
    except LocalossError as error:
        raise ApiError(str(error), status=404) from None
    return order.stored_name


def pulling(pulls: Pulls, name: str) -> AsyncIterator[dict[str, Any]]:
    """What happens, in Ollama's words. Raises: ApiError 429 during another model's pull.

    The iterator raises LocalossError if it fails.
    """
    pulls.check(name)

    async def lines() -> AsyncIterator[dict[str, Any]]:
        yield {"status": "pulling manifest"}
        async for told in pulls.follow(name, _IDLE_S):
            yield _line(told)
        yield {"status": "success"}

    return lines()


def _line(told: Told) -> dict[str, Any]:
    """A line about a file has what a bar needs; programs show the others as they are, each once."""
    if "file" not in told:
        return {"status": told["say"]}
    label = f"pulling {told['digest'][:_DIGEST_CHARS]}"
    digest = f"sha256:{told['digest']}"
    return {"status": label, "digest": digest, "total": told["total"], "completed": told["done"]}
