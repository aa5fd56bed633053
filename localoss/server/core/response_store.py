"""Responses that were asked to be stored, in SQLite: what they said, and what the next one's prompt needs."""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localoss.chat.harmony import Message
from localoss.errors import LocalossError

KEPT_DAYS = 30  # as OpenAI does
_DAY_S = 86_400
_JUMP_DAYS = 7  # longer since the last look: the clock may be wrong, and gets a day to be set right
MOST_BYTES = 1 << 30  # of all responses: the oldest go first
_MOST_CHAIN, _MOST_CHAIN_BYTES = 4096, 64 << 20  # of one conversation: more than any context holds
_TABLE = """CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, previous TEXT, created REAL NOT NULL, response TEXT NOT NULL,
    messages TEXT NOT NULL, calls TEXT NOT NULL, input TEXT NOT NULL, key TEXT NOT NULL DEFAULT '')"""
_ADD_KEY = "ALTER TABLE responses ADD COLUMN key TEXT NOT NULL DEFAULT ''"  # to a file of an older version
_ITEMS = """CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY, response TEXT NOT NULL REFERENCES responses(id) ON DELETE CASCADE,
    item TEXT NOT NULL)"""
# A client chooses the ids of the items that it sends: it can't put one in the place of another key's.
_PUT_ITEM = """INSERT INTO items VALUES (?, ?, ?) ON CONFLICT(id)
    DO UPDATE SET response = excluded.response, item = excluded.item
    WHERE (SELECT key FROM responses WHERE id = items.response) = ?"""
_ITEM = "SELECT item FROM items JOIN responses r ON r.id = items.response WHERE items.id = ? AND key = ?"
_CLOCK = "CREATE TABLE IF NOT EXISTS clock (looked REAL NOT NULL, trusted_from REAL NOT NULL)"
_BY_AGE = "CREATE INDEX IF NOT EXISTS responses_created ON responses(created)"
_CHAIN = """WITH RECURSIVE chain(id, previous, bytes, depth) AS (
    SELECT id, previous, LENGTH(messages) + LENGTH(calls), 0 FROM responses WHERE id = ? AND key = ?
    UNION ALL
    SELECT r.id, r.previous, bytes + LENGTH(r.messages) + LENGTH(r.calls), depth + 1
    FROM responses r JOIN chain ON r.id = chain.previous WHERE depth < ? AND bytes < ?)
    SELECT r.previous, r.messages, r.calls FROM chain JOIN responses r ON r.id = chain.id
    WHERE bytes < ? ORDER BY depth DESC"""


class StoreError(LocalossError):
    """A response can't be stored, read or deleted."""


@dataclass(frozen=True)
class Record:
    """A stored response. messages: those that it adds to its conversation, the model's thinking included.

    calls: names of the functions called in it, by the call's id. input: the items that it was asked with.
    key: the name of the API key that asked; no other is given it.
    """

    response: dict[str, Any]
    previous: str | None
    messages: Sequence[Message]
    calls: dict[str, str]
    input: list[dict[str, Any]]
    key: str = ""


class ResponseStore:
    """Keeps responses in one file that only its user may read; any thread may use it.

    They are kept for KEPT_DAYS, and within `most_bytes` altogether.
    """

    def __init__(self, path: Path | None, most_bytes: int = MOST_BYTES) -> None:
        """path: None keeps them in memory. Raises: LocalossError for a file that can't be used."""
        self._most_bytes = most_bytes
        try:
            if path is not None:
                path.parent.parent.mkdir(parents=True, exist_ok=True)
                path.parent.mkdir(mode=0o700, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._database = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=10)
            self._database.execute("PRAGMA auto_vacuum=INCREMENTAL")  # takes effect in a new file
            # Not WAL, whose changes can't be moved to the file on a full disk, nor anything be deleted then.
            self._database.execute("PRAGMA journal_mode=PERSIST")
            self._database.execute("PRAGMA secure_delete=ON")
            self._database.execute("PRAGMA foreign_keys=ON")
            with self._database:
                self._database.execute(_TABLE)
                if "key" not in {row[1] for row in self._database.execute("PRAGMA table_info(responses)")}:
                    self._database.execute(_ADD_KEY)
                self._database.execute(_ITEMS)
                self._database.execute(_BY_AGE)
                self._database.execute(_CLOCK)
            self._forget_old()
        except (OSError, sqlite3.Error) as error:
            raise LocalossError(
                f"{path}: responses can't be stored ({error}); free space there, or move the file away"
            ) from None
        self._lock = threading.Lock()

    def put(self, record: Record) -> None:
        """Store a response. Raises: StoreError, and nothing of it is stored."""
        row = [
            record.response["id"],
            record.previous,
            record.response["created_at"],
            json.dumps(record.response),
            json.dumps([asdict(message) for message in record.messages]),
            json.dumps(record.calls),
            json.dumps(record.input),
            record.key,
        ]
        named = [*record.input, *record.response.get("output", [])]
        items = [
            [item["id"], row[0], json.dumps(item), record.key]
            for item in named
            if isinstance(item.get("id"), str)
        ]
        with self._using("stored"):
            if abs(time.time() - self._looked) > _DAY_S:
                self._forget_old()
            with self._database:
                self._database.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
                self._database.executemany(_PUT_ITEM, items)
            self._make_room()

    def _forget_old(self) -> None:
        """Remove what is older than KEPT_DAYS; where the clock has jumped, not before a day later."""
        self._looked = now = time.time()
        with self._database:
            looked, trusted_from = self._database.execute("SELECT * FROM clock").fetchone() or (now, 0.0)
            if not (isinstance(looked, float) and isinstance(trusted_from, float)):  # damaged
                looked, trusted_from = now, now + _DAY_S
            if not -_DAY_S < now - looked < _JUMP_DAYS * _DAY_S:
                trusted_from = now + _DAY_S
            elif trusted_from > now + _DAY_S:  # the clock went back to where it was
                trusted_from = 0.0
            self._database.execute("DELETE FROM clock")
            self._database.execute("INSERT INTO clock VALUES (?, ?)", [now, trusted_from])
            if now >= trusted_from:
                self._database.execute("DELETE FROM responses WHERE created < ?", [now - KEPT_DAYS * _DAY_S])

    def _make_room(self) -> None:
        """Remove the oldest responses until all are within the bound, and give their space back."""
        while self._stored_bytes() > self._most_bytes:
            with self._database:
                removed = self._database.execute(
                    "DELETE FROM responses WHERE id IN (SELECT id FROM responses ORDER BY created, rowid "
                    "LIMIT (SELECT MAX(1, COUNT(*) / 20) FROM responses))"
                ).rowcount
            if not removed:
                break
        self._database.execute("PRAGMA incremental_vacuum").fetchall()

    def _stored_bytes(self) -> int:
        pages, free, size = (
            self._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    @contextmanager
    def _using(self, what: str) -> Iterator[None]:
        """The database, for one thread at a time. Raises: StoreError for what goes wrong."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise StoreError(f"the response can't be {what} ({error})") from None

    def conversation(self, response_id: str, key: str = "") -> tuple[list[Message], dict[str, str]] | None:
        """The messages of a response and of all before it, and the calls made in them.

        None if it isn't there, or one before it. Raises: StoreError if they are too many.
        """
        bounds = [_MOST_CHAIN - 1, _MOST_CHAIN_BYTES, _MOST_CHAIN_BYTES]
        with self._using("read"):
            rows = self._database.execute(_CHAIN, [response_id, key, *bounds]).fetchall()
            is_cut = not rows or (rows[0][0] is not None and self._has(rows[0][0]))
        if is_cut and self.response(response_id, key) is not None:
            raise StoreError(
                f"the conversation before {response_id} is longer than {_MOST_CHAIN:,} responses or "
                f"{_MOST_CHAIN_BYTES >> 20} MiB; begin a new one"
            )
        if not rows or rows[0][0] is not None:
            return None
        messages: list[Message] = []
        calls: dict[str, str] = {}
        with _as_damaged(response_id):
            for _, said, called in rows:
                messages += [Message(**fields) for fields in json.loads(said)]
                calls |= json.loads(called)
        return messages, calls

    def response(self, response_id: str, key: str = "") -> dict[str, Any] | None:
        return self._column("response", response_id, key)

    def input_items(self, response_id: str, key: str = "") -> list[dict[str, Any]] | None:
        return self._column("input", response_id, key)

    def item(self, item_id: str, key: str = "") -> dict[str, Any] | None:
        """An item that a stored response was asked with, or gave."""
        with self._using("read"):
            row = self._database.execute(_ITEM, [item_id, key]).fetchone()
        with _as_damaged(item_id):
            return json.loads(row[0]) if row else None

    def delete(self, response_id: str, key: str = "") -> bool:
        """Whether there was one. Responses that followed it can't be continued any more."""
        with self._using("deleted"):
            try:
                return self._delete(response_id, key)
            except sqlite3.OperationalError:  # a full disk: what changes is written beside it first
                self._database.execute("PRAGMA journal_mode=MEMORY").fetchall()
                deleted = self._delete(response_id, key)
                self._database.execute("PRAGMA incremental_vacuum").fetchall()
                self._database.execute("PRAGMA journal_mode=PERSIST").fetchall()
                return deleted

    def _delete(self, response_id: str, key: str) -> bool:
        asked = "DELETE FROM responses WHERE id = ? AND key = ?"
        with self._database:
            return self._database.execute(asked, [response_id, key]).rowcount > 0

    def _column(self, column: str, response_id: str, key: str) -> Any:
        with self._using("read"):
            row = self._database.execute(
                f"SELECT {column} FROM responses WHERE id = ? AND key = ?", [response_id, key]
            ).fetchone()
        with _as_damaged(response_id):
            return json.loads(row[0]) if row else None

    def _has(self, response_id: str) -> bool:
        found = self._database.execute("SELECT 1 FROM responses WHERE id = ?", [response_id]).fetchone()
        return found is not None

    def close(self) -> None:
        self._database.close()


@contextmanager
def _as_damaged(name: str) -> Iterator[None]:
    """What was stored under `name` is read meanwhile. Raises: StoreError for what this store never writes."""
    try:
        yield
    except (ValueError, TypeError, RecursionError):
        raise StoreError(f"the response can't be read: {name} is damaged on the disk") from None
