"""The SQLite database of a home: its schema, transactions, and errors in words.

SQL goes in, rows come out; any number of threads and processes may use one home. Every write is
a transaction, so a process killed at any instruction leaves the state before or after it.
Connections must not be carried across a fork: open another Database in the child.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from whitebox.errors import StorageError
from whitebox.registry.lock import HomeLock

SCHEMA_VERSION = 2
BUSY_TIMEOUT_S = 30.0

Row: TypeAlias = tuple[Any, ...]

# `models.newest` outlives the versions, so that a version number is never given twice.
# AUTOINCREMENT likewise: mappings are remembered by the pack's file, plans by version.
# A pack is dropped when no version uses it; `uses` therefore refers to packs, not to blobs.
_SCHEMA = """
CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, newest INTEGER NOT NULL);
CREATE TABLE versions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model INTEGER NOT NULL REFERENCES models (id),
    version INTEGER NOT NULL,
    digest TEXT NOT NULL,
    signature BLOB NOT NULL,
    metadata BLOB NOT NULL,
    nbytes INTEGER NOT NULL,
    created REAL NOT NULL,
    UNIQUE (model, version),
    UNIQUE (model, digest)
);
CREATE TABLE packs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    file TEXT NOT NULL UNIQUE,
    nbytes INTEGER NOT NULL,
    derived INTEGER NOT NULL
);
CREATE TABLE uses (
    version INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    pack INTEGER NOT NULL REFERENCES packs (id),
    PRIMARY KEY (version, pack)
) WITHOUT ROWID;
CREATE INDEX uses_by_pack ON uses (pack);
CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    pack INTEGER NOT NULL REFERENCES packs (id) ON DELETE CASCADE,
    offset INTEGER NOT NULL,
    nbytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX blobs_by_pack ON blobs (pack);
CREATE TABLE derived (
    key TEXT PRIMARY KEY,
    pack INTEGER NOT NULL REFERENCES packs (id) ON DELETE CASCADE,
    offset INTEGER NOT NULL,
    nbytes INTEGER NOT NULL,
    dtype TEXT NOT NULL,
    shape TEXT NOT NULL,
    checksum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX derived_by_pack ON derived (pack);
CREATE TABLE state (generation INTEGER NOT NULL);
INSERT INTO state VALUES (0);
"""

NEW_IN_2 = """
CREATE TABLE structures (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    names BLOB NOT NULL,
    weight_types BLOB NOT NULL,
    data BLOB NOT NULL
);
CREATE TABLE contents (
    version INTEGER PRIMARY KEY REFERENCES versions (id) ON DELETE CASCADE,
    structure INTEGER NOT NULL REFERENCES structures (id),
    weights BLOB NOT NULL
);
CREATE INDEX contents_by_structure ON contents (structure);
"""


class Database:
    """One connection to `path`, shared by the threads of this process under a lock."""

    def __init__(self, path: Path, home_lock: HomeLock) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._errors_in_words():
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(home_lock)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, home_lock: HomeLock) -> None:
        """Check the schema's version before anything is written; create the schema if new."""
        if self.schema_version() > SCHEMA_VERSION:
            raise StorageError(
                f"{self.path} was written by a newer whitebox (schema {self.schema_version()}, "
                f"this one reads {SCHEMA_VERSION}): upgrade whitebox, or set WHITEBOX_HOME to "
                "another folder"
            )
        if self.schema_version() == 0:
            # Alone: SQLite does not wait for others while it switches a new file to WAL.
            with home_lock.exclusive(wait=True):
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._create_schema()
        # In WAL mode NORMAL could forget the last transactions when the power fails. FULL costs
        # one fsync a registration, and what was acknowledged stays.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")

    def _create_schema(self) -> None:
        with self.transaction():
            if self.schema_version() == 0:  # another process may have been first
                for statement in (_SCHEMA + NEW_IN_2).split(";\n"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def schema_version(self) -> int:
        """0 for a new database. One of an older version is for `upgrade`."""
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows that a SELECT gives."""
        with self._lock, self._errors_in_words():
            return self._connection.execute(sql, parameters).fetchall()

    def query_in(self, sql: str, values: Iterable[str | int]) -> list[Row]:
        """The rows of `sql` IN values, in slices that fit SQLite's limit on parameters."""
        listed = list(values)
        rows: list[Row] = []
        for start in range(0, len(listed), 500):
            part = listed[start : start + 500]
            rows += self.query(f"{sql} IN ({','.join('?' * len(part))})", part)
        return rows

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block's statements, or none; no other process writes in between."""
        with self._lock, self._errors_in_words():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connection; later calls raise StorageError."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"{self.path}: {error}: {_next_step(str(error))}") from error


def _next_step(message: str) -> str:
    """What to do about an SQLite error."""
    if "locked" in message:
        return "another process is busy with it; try again, or end that process"
    if "full" in message:
        return "free space on that disk and try again"
    if "readonly" in message or "unable to open" in message:
        return "make the folder writable, or set WHITEBOX_HOME to another"
    if "closed" in message:
        return "open the runtime again"
    return "restore the folder from a backup, or set WHITEBOX_HOME to another"
