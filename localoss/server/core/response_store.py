"""Responses that were asked to be stored, in SQLite: what they said, and what the next one's prompt needs."""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localoss.chat.harmony import Message
from localoss.errors import LocalossError

KEPT_DAYS = 30  # as OpenAI does
_DAY_S = 86_400
_TABLE = """CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, previous TEXT, created REAL NOT NULL, response TEXT NOT NULL,
    messages TEXT NOT NULL, calls TEXT NOT NULL, input TEXT NOT NULL)"""
_ITEMS = """CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY, response TEXT NOT NULL REFERENCES responses(id) ON DELETE CASCADE,
    item TEXT NOT NULL)"""
_CHAIN = """WITH RECURSIVE chain(id, previous, messages, calls, depth) AS (
    SELECT id, previous, messages, calls, 0 FROM responses WHERE id = ?
    UNION ALL
    SELECT r.id, r.previous, r.messages, r.calls, depth + 1
    FROM responses r JOIN chain ON r.id = chain.previous)
    SELECT previous, messages, calls FROM chain ORDER BY depth DESC"""


@dataclass(frozen=True)
class Record:
    """A stored response. messages: those that it adds to its conversation, the model's thinking included.

    calls: names of the functions called in it, by the call's id. input: the items that it was asked with.
    """

    response: dict[str, Any]
    previous: str | None
    messages: Sequence[Message]
    calls: dict[str, str]
    input: list[dict[str, Any]]


class ResponseStore:
    """Keeps responses in one file that only its user may read; any thread may use it."""

    def __init__(self, path: Path | None) -> None:
        """path: None keeps them in memory. Raises: LocalossError for a file that can't be used."""
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._database = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=10)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA secure_delete=ON")
            self._database.execute("PRAGMA foreign_keys=ON")
            with self._database:
                self._database.execute(_TABLE)
                self._database.execute(_ITEMS)
            self._forget_old()
        except (OSError, sqlite3.Error) as error:
            raise LocalossError(f"{path}: responses can't be stored ({error}); move the file away") from None
        self._lock = threading.Lock()

    def put(self, record: Record) -> None:
        """Store a response. Raises: sqlite3.Error."""
        row = [
            record.response["id"],
            record.previous,
            record.response["created_at"],
            json.dumps(record.response),
            json.dumps([asdict(message) for message in record.messages]),
            json.dumps(record.calls),
            json.dumps(record.input),
        ]
        named = [*record.input, *record.response.get("output", [])]
        items = [[item["id"], row[0], json.dumps(item)] for item in named if isinstance(item.get("id"), str)]
        with self._lock:
            if time.time() - self._looked > _DAY_S:
                self._forget_old()
            with self._database:
                self._database.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                self._database.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?)", items)

    def _forget_old(self) -> None:
        self._looked = time.time()
        with self._database:
            oldest = self._looked - KEPT_DAYS * _DAY_S
            self._database.execute("DELETE FROM responses WHERE created < ?", [oldest])

    def conversation(self, response_id: str) -> tuple[list[Message], dict[str, str]] | None:
        """The messages of a response and of all before it, and the calls made in them.

        None if it isn't there, or one before it.
        """
        with self._lock:
            rows = self._database.execute(_CHAIN, [response_id]).fetchall()
        if not rows or rows[0][0] is not None:
            return None
        messages: list[Message] = []
        calls: dict[str, str] = {}
        for _, said, called in rows:
            messages += [Message(**fields) for fields in json.loads(said)]
            calls |= json.loads(called)
        return messages, calls

    def response(self, response_id: str) -> dict[str, Any] | None:
        return self._column("response", response_id)

    def input_items(self, response_id: str) -> list[dict[str, Any]] | None:
        return self._column("input", response_id)

    def item(self, item_id: str) -> dict[str, Any] | None:
        """An item that a stored response was asked with, or gave."""
        with self._lock:
            row = self._database.execute("SELECT item FROM items WHERE id = ?", [item_id]).fetchone()
        return json.loads(row[0]) if row else None

    def delete(self, response_id: str) -> bool:
        """Whether there was one. Responses that followed it can't be continued any more."""
        with self._lock, self._database:
            return self._database.execute("DELETE FROM responses WHERE id = ?", [response_id]).rowcount > 0

    def _column(self, column: str, response_id: str) -> Any:
        with self._lock:
            row = self._database.execute(
                f"SELECT {column} FROM responses WHERE id = ?", [response_id]
            ).fetchone()
        return json.loads(row[0]) if row else None

    def close(self) -> None:
        self._database.close()
