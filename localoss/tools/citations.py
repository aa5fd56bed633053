"""Citations in an answer, 【cursor†L1-L3】, as footnotes: [1] in the text, and below it what is meant."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from localoss.chat.parser import Event, MessageEnd, TextDelta

_MARK = re.compile(r"【(\d+)†([^】†]*)(?:†[^】]*)?】")
_MOST_CHARS = 80  # of a mark: what is longer is none


@dataclass(frozen=True)
class Citation:
    """A page that was shown. url is empty for a list of results."""

    title: str
    url: str


Find = Callable[[int], Citation | None]


class Footnotes:
    """Replaces marks in text that comes in pieces; `notes` are the lines below it."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._held = ""  # what may be the beginning of a mark
        self._notes: list[tuple[str, str, str]] = []  # address, title and lines of each

    def push(self, text: str) -> str:
        """More text; gives as much as is certain."""
        text, self._held = self._held + text, ""
        start = text.rfind("【")
        if start >= 0 and "】" not in text[start:] and len(text) - start < _MOST_CHARS:
            text, self._held = text[:start], text[start:]
        return _MARK.sub(self._replaced, text)

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held

    @property
    def notes(self) -> list[str]:
        return [
            f"[{number}] {title}{f', {url}' if url else ''}{f', {lines}' if lines else ''}"
            for number, (url, title, lines) in enumerate(self._notes, start=1)
        ]

    def _replaced(self, found: re.Match[str]) -> str:
        citation = self._find(int(found[1]))
        if citation is None:
            return found[0]
        note = (citation.url, citation.title, _lines(found[2]))
        if note not in self._notes:
            self._notes.append(note)
        return f"[{self._notes.index(note) + 1}]"


def with_footnotes(events: Iterator[Event], footnotes: Footnotes) -> Iterator[Event]:
    """The events of a turn, with footnotes in the place of citations and their notes below the answer."""
    for event in events:
        if isinstance(event, TextDelta) and event.channel == "final":
            if text := footnotes.push(event.text):
                yield replace(event, text=text)
            continue
        if isinstance(event, MessageEnd) and event.message.channel == "final":
            notes = "\n".join(f"- {note}" for note in footnotes.notes)
            if rest := footnotes.finish() + (f"\n\n{notes}" if notes else ""):
                yield TextDelta("final", None, rest)
        yield event


def annotations(text: str, find: Find) -> list[dict[str, object]]:
    """The citations in `text` as OpenAI's API has them: where in it, and what is meant."""
    found = []
    for mark in _MARK.finditer(text):
        citation = find(int(mark[1]))
        if citation is not None and citation.url:
            found.append(
                {
                    "type": "url_citation",
                    "start_index": mark.start(),
                    "end_index": mark.end(),
                    "title": citation.title,
                    "url": citation.url,
                }
            )
    return found


def _lines(text: str) -> str:
    """L3-L5 as people say it."""
    numbers = re.findall(r"L(\d+)", text)
    if not numbers:
        return ""
    if numbers[0] == numbers[-1]:
        return f"line {numbers[0]}"
    return f"lines {numbers[0]}-{numbers[-1]}"
