"""A folder of the user's, by --folder: listed, read, searched, and with --write changed by patches."""

import contextlib
import difflib
import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localoss.chat.agent import Result, Stop
from localoss.chat.harmony import Function, Message
from localoss.chat.tools import called_name
from localoss.errors import LocalossError, UsageError
from localoss.tools.approval import Question
from localoss.tools.arguments import arguments_of
from localoss.tools.patch import Change, PatchError, changes_of
from localoss.tools.quoting import visible
from localoss.tools.toolset import Tool
from quant.format import disk

_MOST_FILE_BYTES, _MOST_LINES, _MOST_ENTRIES, _MOST_MATCHES = 10_000_000, 800, 500, 200
_MOST_LINE_CHARS = 1000
_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
_LIST = Function(
    "list_files",
    "Lists the files and folders below a folder, hidden ones left out.",
    {"type": "object", "properties": {"path": _TEXT | {"description": "default: ."}}},
)
_READ = Function(
    "read_file",
    "Reads a text file, with line numbers.",
    {
        "type": "object",
        "properties": {"path": _TEXT, "first_line": _NUMBER, "lines": _NUMBER},
        "required": ["path"],
    },
)
_GREP = Function(
    "grep",
    "Finds the lines that contain a text, whatever its case. glob: names of files, such as *.py",
    {"type": "object", "properties": {"text": _TEXT, "path": _TEXT, "glob": _TEXT}, "required": ["text"]},
)
_PATCH = Function(
    "apply_patch",
    "Changes files by a patch.",
    {"type": "object", "properties": {"patch": _TEXT}, "required": ["patch"]},
)
_PATCH_NOTE = """\
# apply_patch

A patch begins with the line *** Begin Patch and ends with *** End Patch. In between, each file has a \
header: *** Add File: path, *** Delete File: path or *** Update File: path, perhaps with *** Move to: path \
below. Every line of a new file begins with +. An update has hunks: a line @@, perhaps with a line of the \
file that stands before, then some lines around the change, each after a blank, lines that go after - and \
lines that come after +. Paths are relative to the folder."""


class Files(Tool):
    name = "files"
    limit_s = 60.0

    def __init__(self, folder: Path, writes: bool) -> None:
        """Raises: UsageError for what is no folder."""
        try:
            self._root = folder.expanduser().resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise UsageError(f"--folder {folder}: {getattr(error, 'strerror', None) or error}") from None
        if not self._root.is_dir():
            raise UsageError(f"--folder {folder}: not a folder")
        self.functions = (_LIST, _READ, _GREP, *([_PATCH] if writes else []))
        self.reach = f"{'reads and, when asked, changes' if writes else 'reads'} files in {self._root}"
        self.instructions = _PATCH_NOTE if writes else None
        self._asked: tuple[str, list[Change]] | None = None

    def approval_keys(self) -> dict[str, str]:
        return {_PATCH.name: f"files:{self._root}"} if _PATCH in self.functions else {}

    def question(self, recipient: str, arguments: str) -> Question | None:
        """What a patch would change, as a diff. Raises: PatchError for one that doesn't fit."""
        if called_name(recipient) != _PATCH.name:
            return None
        changes = changes_of(_patch_of(arguments), self._text_or_none, self._name_of)
        self._asked = arguments, changes
        names = ", ".join(visible(change.path) for change in changes) or "nothing"
        return Question(
            f"files:{self._root}", f"apply_patch: changes {names} in {self._root}", _diff(changes)
        )

    def run(self, call: Message, stop: Stop) -> Result:
        name = called_name(call.recipient or "")
        if name == _PATCH.name:
            return self._apply(call.text)
        arguments = arguments_of(call.text)
        if name == _LIST.name:
            return Result(self._list(arguments))
        if name == _READ.name:
            return Result(self._read(arguments))
        return Result(self._grep(arguments, stop))

    def path_of(self, text: str) -> Path:
        """A path within the folder, whatever links are on the way. Raises: LocalossError for others."""
        try:
            path = (self._root / text).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise LocalossError(f"{text[:200]!r} is no path ({error})") from None
        if path != self._root and self._root not in path.parents:
            raise LocalossError(f"{text[:200]!r} is outside the folder")
        return path

    def _list(self, arguments: dict[str, Any]) -> str:
        top = self.path_of(str(arguments.get("path") or "."))
        if not top.is_dir():
            raise LocalossError(f"{self._shown(top)} is no folder")
        entries = []
        for path in self._below(top):
            entries.append(f"{self._shown(path)}  {path.stat().st_size:,} bytes")
            if len(entries) >= _MOST_ENTRIES:
                entries.append(f"… more than {_MOST_ENTRIES}; list a folder of them")
                break
        return "\n".join(entries) or "no files"

    def _read(self, arguments: dict[str, Any]) -> str:
        path = self.path_of(str(arguments.get("path") or ""))
        lines = self._text(path).split("\n")
        first = max(_number(arguments, "first_line", 1), 1)
        count = min(max(_number(arguments, "lines", _MOST_LINES), 1), _MOST_LINES)
        shown = lines[first - 1 : first - 1 + count]
        head = f"{self._shown(path)}, lines {first} to {first - 1 + len(shown)} of {len(lines)}"
        return "\n".join([head, *(f"{n}: {line[:_MOST_LINE_CHARS]}" for n, line in enumerate(shown, first))])

    def _grep(self, arguments: dict[str, Any], stop: Stop) -> str:
        text = str(arguments.get("text") or "").lower()
        if not text:
            raise LocalossError("grep needs a text")
        pattern = str(arguments.get("glob") or "*")
        top = self.path_of(str(arguments.get("path") or "."))
        if not top.exists():
            raise LocalossError(f"{self._shown(top)}: no such file or folder")
        found: list[str] = []
        for path in [top] if top.is_file() else self._below(top):
            if stop.is_set:
                break
            if not fnmatch.fnmatch(path.name, pattern):
                continue
            with contextlib.suppress(LocalossError):
                for number, line in enumerate(self._text(path).split("\n"), start=1):
                    if text in line.lower():
                        found.append(f"{self._shown(path)}:{number}: {line.strip()[:_MOST_LINE_CHARS]}")
            if len(found) >= _MOST_MATCHES:
                return "\n".join([*found[:_MOST_MATCHES], f"… more than {_MOST_MATCHES} lines"])
        return "\n".join(found) or "no line contains it"

    def _apply(self, arguments: str) -> Result:
        """Make the changes that were asked for, unless a file has changed since. Raises: LocalossError."""
        asked, self._asked = self._asked, None
        if asked is None or asked[0] != arguments:
            raise LocalossError("this patch wasn't looked at")
        for change in asked[1]:
            if self._text_or_none(change.path) != change.before:
                raise LocalossError(f"{change.path} was changed meanwhile; nothing was written")
        # What was moved is removed once it stands in its new place.
        for change in sorted(asked[1], key=lambda change: change.after is None):
            self._write(change)
        return Result("\n".join(f"{_verb(change)} {change.path}" for change in asked[1]) or "nothing changes")

    def _write(self, change: Change) -> None:
        path = self.path_of(change.path)
        try:
            if change.after is None:
                path.unlink()
                return
            like = self.path_of(change.moved_from) if change.moved_from else path  # in its permissions
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.localoss-new")
            disk.write_file(new, change.after.encode("utf-8"))
            with contextlib.suppress(OSError):
                os.chmod(new, like.stat().st_mode)
            disk.replace(new, path)
        except OSError as error:
            raise LocalossError(f"{change.path} can't be written ({error.strerror or error})") from None

    def _text(self, path: Path) -> str:
        try:
            if path.stat().st_size > _MOST_FILE_BYTES:
                raise LocalossError(f"{self._shown(path)} is larger than {_MOST_FILE_BYTES / 1e6:.0f} MB")
            data = path.read_bytes()
        except OSError as error:
            raise LocalossError(f"{self._shown(path)}: {error.strerror or error}") from None
        if b"\0" in data:
            raise LocalossError(f"{self._shown(path)} is no text file")
        return data.decode("utf-8", "replace")

    def _text_or_none(self, path: str) -> str | None:
        """For patches, which must give back exactly what they don't change. Raises: LocalossError."""
        place = self.path_of(path)
        if not place.exists():
            return None
        self._text(place)  # that it is one, and not too large
        try:
            return place.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            raise PatchError(f"{path} isn't UTF-8; it can't be patched") from None

    def _name_of(self, path: str) -> str:
        """The one name of a file, by whatever path it is called. Raises: LocalossError."""
        return self._shown(self.path_of(path))

    def _below(self, top: Path) -> Iterator[Path]:
        for parent, folders, names in os.walk(top):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(parent, name)
                if not name.startswith(".") and path.is_file() and not path.is_symlink():
                    yield path

    def _shown(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix() if path != self._root else "."


def _patch_of(arguments: str) -> str:
    """The patch in a call's arguments, which are JSON, or the patch as it is. Raises: PatchError."""
    if not arguments.lstrip().startswith("{"):
        return arguments
    values = arguments_of(arguments)
    patch = values.get("patch", next(iter(values.values()), None))
    if not isinstance(patch, str):
        raise PatchError("apply_patch needs a patch")
    return patch


def _diff(changes: list[Change]) -> str:
    lines: list[str] = []
    for change in changes:
        old = f"a/{change.path}" if change.before is not None else "/dev/null"
        new = f"b/{change.path}" if change.after is not None else "/dev/null"
        texts = change.before or "", change.after or ""
        ends_differ = any(text.count("\r\n") != text.count("\n") for text in texts if text)
        before, after = (_lines_of(text, ends_differ) for text in texts)
        lines += difflib.unified_diff(before, after, old, new, lineterm="")
    return "\n".join(map(visible, lines))


def _lines_of(text: str, shows_ends: bool) -> list[str]:
    """For a diff, in which nothing that changes may be unseen. shows_ends: carriage returns, too."""
    lines = (text if shows_ends else text.replace("\r\n", "\n")).split("\n")
    return lines[:-1] if not lines[-1] else [*lines, "\\ No newline at end of file"]


def _verb(change: Change) -> str:
    return "added" if change.before is None else "deleted" if change.after is None else "updated"


def _number(arguments: dict[str, Any], name: str, default: int) -> int:
    value = arguments.get(name)
    return value if isinstance(value, int) else default
