"""Patches in the format that gpt-oss was trained to write, `*** Begin Patch` … `*** End Patch`.

Source: openai/gpt-oss, tools/apply_patch.md, for the grammar.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from localoss.errors import LocalossError

_BEGIN, _END = "*** Begin Patch", "*** End Patch"
_ADD, _DELETE, _UPDATE = "*** Add File: ", "*** Delete File: ", "*** Update File: "
_MOVE, _END_OF_FILE = "*** Move to: ", "*** End of File"
_NUMBERS = re.compile(r"-\d+(,\d+)? \+\d+(,\d+)?( @@.*)?")  # of a unified diff, which models write by habit
_FENCE = re.compile(r"```[a-z]*")
_MARK = "\ufeff"  # some editors' first character of UTF-8
_PLAIN = str.maketrans("‘’“”‐‑–—\xa0", "''\"\"---- ")  # what models write in place of such characters


class PatchError(LocalossError):
    """What is wrong with a patch, for the model to mend."""


@dataclass
class Hunk:
    """old: lines that are there; new: what stands in their place. header: a line before them, if any."""

    header: str = ""
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    at_end: bool = False


@dataclass
class Section:
    """What is done with a file. lines: of a new one. move_to: its new path."""

    kind: str  # add, delete, update
    path: str
    lines: list[str] = field(default_factory=list)
    move_to: str | None = None
    hunks: list[Hunk] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """before, after: the file's text; None where there is none. moved_from: its path before."""

    path: str
    before: str | None
    after: str | None
    moved_from: str | None = None


def changes_of(
    text: str, read: Callable[[str], str | None], name: Callable[[str], str] = str
) -> list[Change]:
    """What a patch does, all of it; nothing is written. read: a file's text by path, None without one.

    name: the one path of a file that has several, such as ./a and a.

    Raises: PatchError that says what doesn't fit.
    """
    changes: dict[str, Change] = {}

    def current(path: str) -> str | None:
        return changes[path].after if path in changes else read(path)

    def put(path: str, after: str | None, moved_from: str | None = None) -> None:
        before = changes[path].before if path in changes else read(path)
        changes[path] = Change(path, before, after, moved_from)

    for section in parse(text):
        section.path = name(section.path)
        section.move_to = name(section.move_to) if section.move_to else None
        before = current(section.path)
        if section.kind == "add":
            if before is not None:
                raise PatchError(f"{section.path} is there already; use *** Update File")
            put(section.path, "".join(f"{line}\n" for line in section.lines))
        elif before is None:
            raise PatchError(f"{section.path}: no such file")
        elif section.kind == "delete":
            put(section.path, None)
        else:
            after = _updated(section, before)
            if section.move_to and section.move_to != section.path:
                if current(section.move_to) is not None:
                    raise PatchError(f"{section.move_to} is there already; nothing is moved onto it")
                put(section.path, None)
                put(section.move_to, after, section.path)
            else:
                put(section.path, after)
    return [change for change in changes.values() if change.before != change.after]


def parse(text: str) -> list[Section]:
    """The sections of a patch. Raises: PatchError."""
    lines = text.replace("\r\n", "\n").strip().split("\n")
    if len(lines) > 2 and _FENCE.fullmatch(lines[0].strip()) and lines[-1].strip() == "```":
        lines = lines[1:-1]
    if not lines or lines[0].strip() != _BEGIN:
        raise PatchError(f"a patch begins with the line {_BEGIN}")
    if lines[-1].strip() != _END:
        raise PatchError(f"a patch ends with the line {_END}")
    sections: list[Section] = []
    for number, line in enumerate(lines[1:-1], start=2):
        if not sections or sections[-1].kind != "update":  # whose lines may begin with blanks
            line = line.lstrip() if line.lstrip().startswith("*** ") else line
        if line.startswith(_ADD):
            sections.append(Section("add", line[len(_ADD) :].strip()))
        elif line.startswith(_DELETE):
            sections.append(Section("delete", line[len(_DELETE) :].strip()))
        elif line.startswith(_UPDATE):
            sections.append(Section("update", line[len(_UPDATE) :].strip()))
        elif not sections:
            raise PatchError(f"line {number}: a file's header must come first, such as {_UPDATE}path")
        else:
            _take(sections[-1], line, number)
    if not sections:
        raise PatchError("the patch changes no file")
    for section in sections:
        if not section.path:
            raise PatchError("a header names no file")
        if section.kind == "update" and not section.hunks and not section.move_to:
            raise PatchError(f"{section.path}: an update needs hunks, each after a line @@")
    return sections


def _take(section: Section, line: str, number: int) -> None:
    """Add a line to the open section. Raises: PatchError."""
    if section.kind == "delete":
        if line.strip():
            raise PatchError(f"line {number}: nothing follows {_DELETE}{section.path}")
    elif section.kind == "add":
        if not line.startswith("+"):
            raise PatchError(f"line {number}: every line of a new file begins with +")
        section.lines.append(line[1:])
    elif line.startswith(_MOVE):
        section.move_to = line[len(_MOVE) :].strip()
    elif line.startswith("@@"):
        header = line[2:].removesuffix("@@").strip()
        section.hunks.append(Hunk("" if _NUMBERS.fullmatch(header) else header))
    elif line.strip() == _END_OF_FILE and section.hunks:
        section.hunks[-1].at_end = True
    else:
        if not section.hunks:
            section.hunks.append(Hunk())
        hunk, mark, text = section.hunks[-1], line[:1], line[1:]
        if mark not in ("", " ", "+", "-"):
            raise PatchError(f"line {number} begins with neither a blank, + nor -: {line[:60]!r}")
        hunk.old += [text] if mark in ("", " ", "-") else []
        hunk.new += [text] if mark in ("", " ", "+") else []


def _updated(section: Section, before: str) -> str:
    """The file with the hunks' changes; each line keeps its own end, new ones get what most have."""
    mark = _MARK if before.startswith(_MARK) else ""
    lines = before[len(mark) :].split("\n")
    end = "\r" if before.count("\r\n") * 2 > before.count("\n") else ""
    has_end = lines[-1] == ""
    lines = lines[:-1] if has_end else [*lines[:-1], lines[-1] + end]
    at = 0
    for hunk in section.hunks:
        if hunk.header:
            found = _find(lines, [hunk.header], at)
            if found is None:
                raise PatchError(f"{section.path}: the line {hunk.header!r} isn't there")
            at = found + 1
        if not hunk.old:  # lines that are added alone
            place = len(lines) if hunk.at_end or not hunk.header else at
            lines[place:place] = [line + end for line in hunk.new]
            at = place + len(hunk.new)
            continue
        old, place = _place(hunk, lines, at, section.path)
        new = hunk.new[: len(hunk.new) - (len(hunk.old) - len(old))]
        lines[place : place + len(old)] = _kept(old, new, lines[place : place + len(old)], end)
        at = place + len(new)
    if not lines:
        return mark
    if has_end or not before:
        lines.append("")
    else:
        lines[-1] = lines[-1].removesuffix(end)
    return mark + "\n".join(lines)


def _place(hunk: Hunk, lines: Sequence[str], at: int, path: str) -> tuple[list[str], int]:
    """The old lines of a hunk and where they stand, without empty ones that only end the hunk.

    Raises: PatchError.
    """
    old, new = list(hunk.old), list(hunk.new)
    while old:
        for start in (at, 0):
            place = _find(lines, old, start, hunk.at_end)
            if place is not None:
                return old, place
        if old[-1] or not new or new[-1]:
            break
        del old[-1], new[-1]
    raise PatchError(
        f"{path}: these lines aren't there as they stand in the patch:\n" + "\n".join(hunk.old[:10])
    )


def _bare(line: str) -> str:
    return line.removesuffix("\r")


def _plain(line: str) -> str:
    return line.translate(_PLAIN).strip()


def _find(lines: Sequence[str], wanted: Sequence[str], start: int, at_end: bool = False) -> int | None:
    """Where `wanted` stands from `start` on: exactly, or but for blanks at its ends, or quotes."""
    for tidy in (_bare, str.rstrip, str.strip, _plain):
        looked = [tidy(line) for line in wanted]
        there = [tidy(line) for line in lines]
        places = range(start, len(lines) - len(wanted) + 1)
        for place in reversed(places) if at_end else places:
            if there[place : place + len(wanted)] == looked:
                return place
    return None


def _kept(old: Sequence[str], new: Sequence[str], there: Sequence[str], end: str) -> list[str]:
    """The new lines; those of the context stay as they are in the file, blanks included."""
    left = dict[str, list[str]]()
    for written, found in zip(old, there, strict=True):
        left.setdefault(written, []).append(found)
    return [left[line].pop(0) if left.get(line) else line + end for line in new]
