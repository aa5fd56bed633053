"""An index of the user's documents: SQLite's full-text search, brought up to date by time and size.

Nothing leaves the machine. Files are read in batches, each written as a whole: who is killed on the way loses
the batch that was open and nothing else.
"""

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from localoss import settings
from localoss.chat.documents import read_document
from localoss.errors import Cancelled, LocalossError, UsageError
from localoss.tools.pages import html_page, without_links

_TEXT_KINDS = (".txt", ".md", ".markdown", ".rst", ".org", ".tex", ".log", ".csv", ".json", ".yaml", ".toml")
_HTML_KINDS = (".html", ".htm", ".xhtml")
KINDS = (*_TEXT_KINDS, *_HTML_KINDS, ".pdf", ".docx")
_MOST_FILE_BYTES, _MOST_TEXT_CHARS = 50_000_000, 5_000_000
_BATCH_S, _BATCH_FILES = 1.0, 500
_MOST_WORDS = 24
_CACHE_KB = 32_000  # SQLite's own two megabytes don't hold what a query over thousands of files reads
_WORD = re.compile(r"\w+")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS folders (path TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS files (
    id INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, changed INTEGER NOT NULL, size INTEGER NOT NULL,
    problem TEXT);
CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5(
    title, text, path UNINDEXED, tokenize = "unicode61 remove_diacritics 2");
"""
# The passages come after the order: they would be made for every file that fits otherwise. An order by bm25
# keeps the best rows only, where one by rank sorts all that fit. The plus sign has the folders' files looked
# up for rows that fit, not the other way round.
_SEARCH = """
SELECT rowid FROM texts WHERE texts MATCH ? {within} ORDER BY bm25(texts, 4.0, 1.0) LIMIT ?
"""
_WITHIN = "AND +rowid IN (SELECT id FROM files WHERE {below})"
_BELOW = "(path >= ? AND path < ?)"
_SHOW = """
SELECT path, title, snippet(texts, 1, '', '', ' … ', 40) FROM texts WHERE texts MATCH ? AND rowid = ?
"""


@dataclass(frozen=True)
class Hit:
    """A file that was found. passage: where the words stand in it."""

    path: Path
    title: str
    passage: str


@dataclass(frozen=True)
class Update:
    """What bringing a folder up to date did. problems: files that can't be read, and why."""

    read: int
    removed: int
    kept: int
    problems: tuple[tuple[str, str], ...]


class DocumentsIndex:
    """One thread at a time may use it; several programs may have it open."""

    def __init__(self, path: Path | None = None) -> None:
        """path: of the index, by default the user's. Raises: LocalossError for a file that is none."""
        self.path = path or settings.home() / "documents.sqlite3"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._database = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(f"PRAGMA cache_size=-{_CACHE_KB}")
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise LocalossError(
                f"{self.path}: no index of documents ({error}); remove it, and add the folders again"
            ) from None

    def close(self) -> None:
        self._database.close()

    @property
    def folders(self) -> list[Path]:
        return [Path(path) for (path,) in self._database.execute("SELECT path FROM folders ORDER BY path")]

    def count(self, folder: Path) -> int:
        """How many files below `folder` can be searched."""
        row = self._database.execute(
            f"SELECT count(*) FROM files WHERE problem IS NULL AND {_BELOW}", _span(folder)
        ).fetchone()
        return int(row[0])

    def add(
        self,
        folder: Path,
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Update:
        """Index all documents below `folder`, or what changed since; hidden ones and links are left out.

        progress: told how many files were looked at, of how many. Raises: UsageError if there is no such
        folder, Cancelled, LocalossError.
        """
        folder = resolved(folder)
        with self._told():
            with self._database:
                self._database.execute("INSERT OR IGNORE INTO folders VALUES (?)", [str(folder)])
            return self._update(folder, progress, cancelled)

    def refresh(self, folders: Iterable[Path], cancelled: Callable[[], bool] = lambda: False) -> None:
        """Bring folders up to date; one that is gone keeps what is known of it."""
        for folder in folders:
            if folder.is_dir():
                with self._told():
                    self._update(folder, lambda done, total: None, cancelled)

    def remove(self, folder: Path) -> int:
        """Forget a folder; how many files went. Raises: UsageError for one that isn't there."""
        folder = Path(os.path.abspath(Path(folder).expanduser()))
        with self._told(), self._database:
            if not self._database.execute("DELETE FROM folders WHERE path = ?", [str(folder)]).rowcount:
                raise UsageError(f"{folder} isn't among the documents; `localoss docs list` shows what is")
            others = [other for other in self.folders if other in folder.parents]
            rows = [] if others else self._rows(folder)
            kept = [other for other in self.folders if folder in other.parents]
            gone = [row for row in rows if not any(k in Path(row[1]).parents for k in kept)]
            self._forget([row[0] for row in gone])
        return len(gone)

    def search(self, query: str, most: int, within: Sequence[Path] = ()) -> list[Hit]:
        """The files that fit `query` best. within: folders; none for all. Raises: LocalossError."""
        words = [f'"{word}"' for word in dict.fromkeys(_WORD.findall(query))][:_MOST_WORDS]
        if not words:
            return []
        found: dict[int, str] = {}  # which query found it, by its row
        with self._told():
            condition, places = self._within(within)
            for joiner in (" ", " OR "):  # those with all words first
                query = joiner.join(words)
                rows = self._database.execute(_SEARCH.format(within=condition), [query, *places, most])
                for (row,) in rows:
                    found.setdefault(row, query)
                if len(found) >= most or len(words) == 1:
                    break
            return [self._hit(row, query) for row, query in list(found.items())[:most]]

    def _within(self, folders: Sequence[Path]) -> tuple[str, list[str]]:
        """What has rows be of files below `folders`, and its values: nothing if all files are."""
        places = [end for folder in folders for end in _span(folder)]
        below = " OR ".join([_BELOW] * len(folders))
        if not folders or not self._database.execute(
            f"SELECT EXISTS (SELECT 1 FROM files WHERE NOT ({below}))", places
        ).fetchone()[0]:  # fmt: skip
            return "", []
        return _WITHIN.format(below=below), places

    def _hit(self, row: int, query: str) -> Hit:
        path, title, passage = self._database.execute(_SHOW, [query, row]).fetchone()
        return Hit(Path(path), title, passage)

    def text_of(self, path: Path) -> tuple[str, str] | None:
        """Title and text of an indexed file; None if it isn't one."""
        with self._told():
            row = self._database.execute(
                "SELECT texts.title, texts.text FROM files JOIN texts ON texts.rowid = files.id "
                "WHERE files.path = ?",
                [str(path)],
            ).fetchone()
        return (row[0], row[1]) if row else None

    def check(self) -> None:
        """Raises: sqlite3.Error or ValueError if what is in it doesn't belong together. For tests."""
        self._database.execute("INSERT INTO texts(texts) VALUES ('integrity-check')")
        lone = self._database.execute(
            "SELECT count(*) FROM texts LEFT JOIN files ON files.id = texts.rowid WHERE files.id IS NULL"
        ).fetchone()[0]
        missing = self._database.execute(
            "SELECT count(*) FROM files LEFT JOIN texts ON files.id = texts.rowid "
            "WHERE texts.rowid IS NULL AND files.problem IS NULL"
        ).fetchone()[0]
        if lone or missing:
            raise ValueError(f"{lone} texts without a file, {missing} files without a text")

    def _update(
        self, folder: Path, progress: Callable[[int, int], None], cancelled: Callable[[], bool]
    ) -> Update:
        found = dict(_documents(folder))
        there = {path: stamp for path, stamp in found.items() if _is_text(path)}
        known = {row[1]: row for row in self._rows(folder)}
        gone = [row[0] for path, row in known.items() if path not in there]
        with self._database:
            self._forget(gone)
        changed = [p for p, stamp in there.items() if p not in known or tuple(known[p][2:4]) != stamp]
        done = 0
        for batch in _batches(changed, cancelled):
            with self._database:
                for path, title, text, problem in batch:
                    self._put(path, there[path], title, text, problem)
            done += len(batch)
            progress(done, len(changed))
        problems = [(row[1], row[4]) for row in self._rows(folder) if row[4]]
        for path in found.keys() - there.keys():
            shown = path.encode("utf-8", "replace").decode()
            problems.append((shown, f"{shown}: its name isn't UTF-8; rename it"))
        return Update(len(changed), len(gone), len(there) - len(changed), tuple(problems))

    def _put(self, path: str, stamp: tuple[int, int], title: str, text: str, problem: str | None) -> None:
        row = self._database.execute("SELECT id FROM files WHERE path = ?", [path]).fetchone()
        if row:
            self._forget([row[0]])
        cursor = self._database.execute(
            "INSERT INTO files(path, changed, size, problem) VALUES (?, ?, ?, ?)", [path, *stamp, problem]
        )
        if problem is None:
            self._database.execute(
                "INSERT INTO texts(rowid, title, text, path) VALUES (?, ?, ?, ?)",
                [cursor.lastrowid, title, text, path],
            )

    def _forget(self, ids: Sequence[int]) -> None:
        self._database.executemany("DELETE FROM texts WHERE rowid = ?", [[number] for number in ids])
        self._database.executemany("DELETE FROM files WHERE id = ?", [[number] for number in ids])

    def _rows(self, folder: Path) -> list[tuple[int, str, int, int, str | None]]:
        return self._database.execute(
            f"SELECT id, path, changed, size, problem FROM files WHERE {_BELOW}", _span(folder)
        ).fetchall()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LocalossError(
                f"{self.path}: the index of documents can't be used ({error}); if it is damaged, remove it "
                "and add the folders again"
            ) from None


def resolved(folder: Path) -> Path:
    """The folder's own path. Raises: UsageError if it is none."""
    try:
        path = folder.expanduser().resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{folder}: {getattr(error, 'strerror', None) or error}") from None
    if not path.is_dir():
        raise UsageError(f"{folder}: not a folder; name the folder that the documents are in")
    if not _is_text(str(path)):
        raise UsageError("the folder's name isn't UTF-8; rename it")
    return path


def _span(folder: Path) -> tuple[str, str]:
    """Between which paths, as SQLite orders them, all those below `folder` are."""
    start = str(folder).rstrip(os.sep)
    return f"{start}{os.sep}", f"{start}{chr(ord(os.sep) + 1)}"


def _documents(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """All documents below `folder`, each with its time in nanoseconds and its size."""
    folders = [str(folder)]
    while folders:
        inner = []
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                with contextlib.suppress(OSError):  # it went meanwhile
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(entry.path)
                    elif entry.name.lower().endswith(KINDS) and entry.is_file(follow_symlinks=False):
                        stat = entry.stat(follow_symlinks=False)
                        yield entry.path, (stat.st_mtime_ns, stat.st_size)
        folders += reversed(inner)


def _is_text(path: str) -> bool:
    """Whether a path can be written as text: names on Linux may be any bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


_Read = tuple[str, str, str, str | None]


def _batches(paths: Sequence[str], cancelled: Callable[[], bool]) -> Iterator[list[_Read]]:
    """Path, title, text and problem of files, as many at once as a second reads. Raises: Cancelled."""
    batch: list[_Read] = []
    began = time.monotonic()
    for path in paths:
        if cancelled():
            raise Cancelled("stopped; what was read until then is kept")
        try:
            title, text = _read(Path(path))
            batch.append((path, title, text, None))
        except LocalossError as error:
            batch.append((path, "", "", str(error)))
        if len(batch) >= _BATCH_FILES or time.monotonic() - began > _BATCH_S:
            yield batch
            batch, began = [], time.monotonic()
    if batch:
        yield batch


def _read(path: Path) -> tuple[str, str]:
    """Title and text. Raises: UsageError."""
    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            raise UsageError(f"{path}: larger than {_MOST_FILE_BYTES / 1e6:.0f} MB")
        if path.suffix.lower() in _HTML_KINDS:
            page = html_page("", path.read_bytes().decode("utf-8", "replace"))
            return page.title or path.name, without_links(page.text)[:_MOST_TEXT_CHARS]
        text = read_document(path)[:_MOST_TEXT_CHARS].encode("utf-8", "replace").decode()  # PDFs have halves
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    return _title(text, path), text


def _title(text: str, path: Path) -> str:
    """A Markdown heading on the first line, and the file's name."""
    first = text.lstrip()[:200].partition("\n")[0]
    return f"{first.lstrip('# ').strip()} ({path.name})" if first.startswith("# ") else path.name
