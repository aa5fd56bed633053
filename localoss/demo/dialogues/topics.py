"""The topics of topics.toml: what the demo model knows about localoss; and the questions of asked.toml."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Topic:
    """answer: what is said. example: what to type, for who asks for one. about: what analysis calls it.

    goals complete frames such as "how do i ...", names "what is ..."; lines are whole questions.
    """

    about: str
    answer: str
    example: str
    goals: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


def _frozen(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _read_asked() -> dict[str, tuple[str, ...]]:
    return _frozen(tomllib.loads(Path(__file__).with_name("asked.toml").read_text(encoding="utf-8")))


def _read() -> dict[str, dict[str, Topic]]:
    raw = tomllib.loads(Path(__file__).with_name("topics.toml").read_text(encoding="utf-8"))
    return {
        group: {name: Topic(**_frozen(fields)) for name, fields in topics.items()}
        for group, topics in raw.items()
    }


_GROUPS = _read()
COMMANDS = _GROUPS["commands"]
TOPICS = COMMANDS | _GROUPS["others"]
ASKED = _read_asked()  # topic -> questions that are only asked, never learned
