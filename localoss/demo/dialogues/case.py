"""One dialogue: what was said, how a right answer looks, and on which side of the split it stands."""

import functools
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from localoss.chat.harmony import EFFORTS, ChatSetup, Message

HELD_OUT_SHARE = 0.12
_DATES = [
    f"{year}-{month:02d}-{day:02d}"
    for year in range(2024, 2037)
    for month in range(1, 13)
    for day in range(1, 29)
]


@dataclass(frozen=True)
class Case:
    """A dialogue up to where the model goes on, and a right way to go on.

    keys: what the split is decided by; a case with one held-out key never appears in training.
    reply: the model's messages and, between a call and the answer, the tool's result.
    """

    skill: str
    keys: tuple[str, ...]
    setup: ChatSetup
    messages: tuple[Message, ...]
    reply: tuple[Message, ...]

    @property
    def expected(self) -> str:
        """The text of the right answer, or the JSON arguments of the right call."""
        return self.reply[-1].text

    @property
    def held_out(self) -> bool:
        return any(is_held_out(key) for key in self.keys)

    def is_right(self, turn_messages: Sequence[Message]) -> bool:
        """Whether a turn ends in this case's answer, or in its call with the same arguments."""
        if not turn_messages:
            return False
        said, right = turn_messages[-1], self.reply[-1]
        if (said.channel, said.recipient) != (right.channel, right.recipient):
            return False
        if right.recipient:
            return bool(_arguments(said.text) == json.loads(right.text))
        return said.text.strip() == right.text


Make = Callable[[random.Random], Case]


NEVER_TRAINED = "never trained: "  # what a key begins with that is held out always


@functools.lru_cache(maxsize=1 << 16)
def is_held_out(key: str) -> bool:
    """A stable choice: the same on every machine, whatever else is generated."""
    if key.startswith(NEVER_TRAINED):
        return True
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def a_setup(rng: random.Random) -> ChatSetup:
    return ChatSetup(rng.choice(list(EFFORTS)), date=rng.choice(_DATES))


def on_date(case: Case, date: str) -> Case:
    return replace(case, setup=replace(case.setup, date=date))


def thought(setup: ChatSetup, low: str, medium: str, high: str) -> tuple[Message, ...]:
    """The analysis that goes with the setup's effort; none for an empty text."""
    text = {"low": low, "medium": medium, "high": f"{medium} {high}"}[setup.effort]
    return (Message("assistant", text, "analysis"),) if text else ()


def answer(text: str) -> Message:
    return Message("assistant", text, "final")


def styled(rng: random.Random, text: str, question: bool = True) -> str:
    """`text` as people type it: with or without a capital and an ending."""
    if rng.random() < 0.6:
        text = text[0].upper() + text[1:]
    if text[-1] in "?.!`":
        return text
    return text + rng.choice("??? " if question else "..? ").strip()


def after(history: Sequence[Case], case: Case) -> Case:
    """`case` as a later turn of a conversation: answers of `history` stand, their thinking is gone."""
    said = tuple(m for past in history for m in (*past.messages, *past.reply))
    kept = tuple(m for m in said if m.channel != "analysis")
    keys = tuple(key for past in history for key in past.keys)
    return replace(case, messages=kept + case.messages, keys=case.keys + keys)


def _arguments(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
