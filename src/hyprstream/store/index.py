"""The database of a store: manifests, names, tags, moves and belongings, in SQLite.

SQLite in write-ahead mode with `synchronous=FULL`: a transaction that was committed is on the
disk, at the price of one sync, and readers never wait for a writer. In the older mode of a
rollback journal a loss of power just after a commit could bring the journal back and with it
undo the commit, unless the folder is synced once more (`synchronous=EXTRA`).

One connection serves all threads of a process, one after the other.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyprstream.errors import (
    CorruptStoreError,
    InvalidSettingsError,
    StorageFullError,
    UnavailableError,
    UnsupportedFormatError,
)
from hyprstream.files import hold, storage, sync_folder
from hyprstream.store.disk import Disk

_FORMAT = 2
_TIMEOUT_S = 60.0  # for the changes of other processes, each of which takes milliseconds

# `payload` and `needed` repeat what the manifest says, where it can be looked for.
_SCHEMA = """
CREATE TABLE versions (
    id TEXT PRIMARY KEY,
    manifest TEXT NOT NULL,
    recorded TEXT NOT NULL,
    payload TEXT NOT NULL,
    needed TEXT REFERENCES versions (id) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX versions_payload ON versions (payload);
CREATE INDEX versions_needed ON versions (needed);
CREATE TABLE names (
    name TEXT PRIMARY KEY,
    version TEXT NOT NULL REFERENCES versions (id),
    move INTEGER NOT NULL
);
CREATE INDEX names_version ON names (version);
CREATE TABLE moves (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL REFERENCES names (name) ON DELETE CASCADE,
    action TEXT NOT NULL,
    version TEXT NOT NULL,
    below INTEGER,  -- the move that a rollback returns to
    at TEXT NOT NULL,
    by TEXT NOT NULL,
    why TEXT NOT NULL
);
CREATE INDEX moves_name ON moves (name, number);
CREATE TABLE tags (
    name TEXT NOT NULL REFERENCES names (name) ON DELETE CASCADE,
    tag TEXT NOT NULL,
    version TEXT NOT NULL REFERENCES versions (id),
    PRIMARY KEY (name, tag)
);
CREATE INDEX tags_version ON tags (version);
"""

# Since format 2.
_BELONGINGS = """
CREATE TABLE belongings (
    name TEXT NOT NULL REFERENCES names (name) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (name, key)
)
"""

_ERRORS = {
    sqlite3.SQLITE_FULL: StorageFullError,
    sqlite3.SQLITE_READONLY: InvalidSettingsError,
    sqlite3.SQLITE_CANTOPEN: InvalidSettingsError,
    sqlite3.SQLITE_PERM: InvalidSettingsError,
}
_HINTS = {
    StorageFullError: "Free some space, or keep the adapters on another disk.",
    InvalidSettingsError: "Make the folder writable, or choose another one.",
    UnavailableError: "Try again.",
}


class Index:
    """The database in one file."""

    def __init__(self, file: Path, disk: Disk) -> None:
        self._file = file
        self._disk = disk
        self._turn = threading.RLock()
        with self._translated():
            self._connection = disk.connect(file, timeout_s=_TIMEOUT_S)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Let go of the file."""
        with self._turn, self._translated():
            self._connection.close()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """Make everything in the block happen at its end, on the disk, or nothing of it.

        Raises:
            StorageFullError: The disk is full.
            InvalidSettingsError: The file may not be written.
            UnavailableError: Another process kept the database busy, or the disk failed.
            CorruptStoreError: The file is damaged.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection
            self._disk.commit(connection)

    @contextmanager
    def look(self) -> Iterator[sqlite3.Connection]:
        """Show one moment to everything in the block; errors as in `change`."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._turn, self._translated():
            self._connection.execute(begin)
            try:
                yield self._connection
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.execute("PRAGMA trusted_schema = OFF")
        if self._format() < _FORMAT:
            with hold(self._file.with_suffix(".lock"), shared=False):
                if self._format() < _FORMAT:
                    self._make()
        if self._format() != _FORMAT:
            raise UnsupportedFormatError(
                f"{self._file} is a store of format {self._format()}, {_FORMAT} is supported",
                hint="Use the version of this program that made it, or a newer one.",
            )

    def _format(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _make(self) -> None:
        """Make a new database, or bring one of format 1 to this one."""
        self._connection.execute("PRAGMA journal_mode = WAL")
        with self.change() as connection:
            for statement in _SCHEMA.split(";\n") if self._format() == 0 else ():
                connection.execute(statement)
            connection.execute(_BELONGINGS)
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
        with storage(self._file.parent):
            sync_folder(self._file.parent)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            # The upper bits say more than is needed.
            kind = _ERRORS.get(error.sqlite_errorcode & 0xFF, UnavailableError)
            raise kind(f"{self._file} cannot be used: {error}", hint=_HINTS[kind]) from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise  # our own mistake, as a use after `close`
            raise CorruptStoreError(self._file, str(error)) from error
