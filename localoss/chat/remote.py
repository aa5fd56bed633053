"""A model in a running server's memory, in an engine's place: prompts go there, and tokens come back."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localoss.errors import Cancelled, ContextFullError, LocalossError
from localoss.hub.running import Running, running_servers
from quant.format.config import read_config
from quant.format.layout import MANIFEST

if TYPE_CHECKING:
    from localoss.chat.turn import Turn

_FIND_S = 5.0  # for a server to say what it has: one that says nothing is left alone
_LOOK_S = 0.05


@dataclass(frozen=True)
class RemoteToken:
    """As engine.sampler.Token, which brings NumPy."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class RemoteSequence:
    """Stands for what the server keeps of a conversation; it finds that by the prompt."""

    tokens: list[int] = field(default_factory=list)


class RemoteModel:
    """The model `name` of `server`: what chats ask of an engine, and `answer` in place of `generate`."""

    chunk_tokens = pass_tokens = 512

    def __init__(self, server: Running, name: str, folder: Path, context_tokens: int) -> None:
        self.server, self.name, self.context_tokens = server, name, context_tokens
        self.config = read_config(folder / "config.json")

    def sequence(self, seed: int | None = None) -> RemoteSequence:
        return RemoteSequence()

    def device_figures(self) -> None:
        return None

    def expert_figures(self) -> None:
        return None

    def count_experts(self) -> None:
        return None

    def answer(
        self, turn: "Turn", progress: Callable[[int, int], None], cancelled: Callable[[], bool]
    ) -> Iterator[RemoteToken]:
        """The tokens that answer `turn`, which has begun.

        Raises: LocalossError; Cancelled and ContextFullError for what cuts the answer.
        """
        drawn = 0
        with self.server.events("/localoss/tokens", self._body(turn)) as events:
            while True:
                if cancelled():
                    raise Cancelled("stopped")
                event = events.next(_LOOK_S)
                if event is None:
                    continue
                if event == "[DONE]":
                    break
                if "error" in event:
                    raise LocalossError(f"{self.server.url}: {event['error']['message']}")
                if "of" in event:
                    if not drawn:  # what was cached comes first, as an engine says it
                        progress(event["cached"], event["of"])
                    progress(event["read"], event["of"])
                else:
                    drawn += 1
                    top = tuple((int(token), float(logprob)) for token, logprob in event["top"])
                    yield RemoteToken(event["id"], event["logprob"], top)
        if len(turn.prompt) + drawn >= self.context_tokens and turn.finish == "length":
            raise ContextFullError(f"the server's context of {self.context_tokens:,} tokens is full")

    def _body(self, turn: "Turn") -> dict[str, Any]:
        params, setup, rules = turn.params, turn.setup, turn.rules
        names = ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "logprobs")
        body = {"model": self.name, "prompt": turn.prompt} | {name: getattr(params, name) for name in names}
        if setup is None:
            return body
        may = [one.name for one in setup.functions if rules.functions is None or one.name in rules.functions]
        arguments = {name: grammar.sent for name, grammar in rules.arguments.items() if name in may}
        body["rules"] = {
            "functions": may,
            "builtin_tools": setup.builtin_tools if rules.builtin_tools else (),
            "must_call": rules.must_call,
            "preambles": rules.preambles,
            "arguments": arguments,
            "think_budget": rules.think_budget,
        }
        return body


def find_remote(folder: Path) -> RemoteModel | None:
    """The very model of `folder` in a running server: in its memory, or what it was started with."""
    try:
        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None
    for server in running_servers():
        with suppress(LocalossError, KeyError, TypeError, ValueError, OSError):
            for one in server.get("/localoss/models", _FIND_S)["models"]:
                if one["digest"] == digest and not one["adapters"]:
                    return RemoteModel(server, one["name"], folder, int(one["context_tokens"]))
    return None
