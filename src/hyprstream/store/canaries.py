"""Canaries: versions that answer a share of the requests that name an adapter, to be tried.

A canary is a record among the belongings of its name, and the tag `canary`, written and taken
away in one transaction; it is out as long as both are there and the name has not moved. Whoever
moves the name, or the tag, ends it. By a record that cannot be read none is out: the version
that the name points at is the one that is known to be good.
"""

import json
import sqlite3
from collections.abc import Callable
from datetime import datetime

from hyprstream.errors import InvalidInputError, StaleParentError
from hyprstream.refs import AdapterName, AdapterRef, VersionId, version_id
from hyprstream.store import names
from hyprstream.store.index import Index
from hyprstream.store.records import Canary, Move, Note

TAG = "canary"
"""The tag that stands for a canary."""

_KEY = "canary"


class Canaries:
    """The canaries of a store. Every call is one transaction.

    Args:
        index: The database.
        clock: The time, in UTC.
    """

    def __init__(self, index: Index, clock: Callable[[], datetime]) -> None:
        self._index = index
        self._clock = clock

    def of(self, name: AdapterName) -> Canary | None:
        """Return the canary of a name, if one is out; None too if there is no such name."""
        with self._index.look() as db:
            return of(db, name)

    def all(self) -> dict[AdapterName, Canary]:
        """List the canaries that are out."""
        with self._index.look() as db:
            rows = db.execute("SELECT name FROM belongings WHERE key = ?", (_KEY,)).fetchall()
            found = {AdapterName(name): of(db, AdapterName(name)) for (name,) in rows}
        return {name: canary for name, canary in found.items() if canary is not None}

    def begin(
        self, name: AdapterName, version: VersionId, *, parent: VersionId, share: float
    ) -> Canary:
        """Let a version answer a share of the requests; its tag is moved if it is in use.

        Raises:
            AdapterNotFoundError: There is no such name.
            StaleParentError: It does not point at the parent, or has a canary already.
            VersionNotFoundError: There is no such version.
            InvalidRequestError: The share is not between 0 and 1.
        """
        canary = Canary(version=version, parent=parent, share=share, since=self._clock())
        with self._index.change() as db:
            current = names.current(db, name)
            if current != parent or of(db, name) is not None:
                raise StaleParentError(
                    f"adapter {name!r} points at version {current[:12]}, or has a canary already",
                    hint="Look at its history and its tags, and decide again.",
                )
            names.tag(db, AdapterRef(name=name, tag=TAG), version)
            db.execute(
                "INSERT INTO belongings (name, key, value) VALUES (?, ?, ?) "
                "ON CONFLICT (name, key) DO UPDATE SET value = excluded.value",
                (name, _KEY, _encode(canary)),
            )
        return canary

    def promote(self, name: AdapterName, version: VersionId, note: Note = Note()) -> None:  # noqa: B008 - frozen
        """Let the canary answer all requests: the name points at it then, and it is none more.

        Raises:
            StaleParentError: It is not out any more.
        """
        with self._index.change() as db:
            canary = _require(db, name, version)
            end(db, name)
            move = Move(action="promote", version=version, at=self._clock(), note=note)
            names.promote(db, name, move, expected=canary.parent)

    def withdraw(self, name: AdapterName, version: VersionId) -> None:
        """Let the canary answer nothing any more; where the name points stays as it is.

        Raises:
            StaleParentError: It is not out any more.
        """
        with self._index.change() as db:
            _require(db, name, version)
            end(db, name)


def of(db: sqlite3.Connection, name: AdapterName) -> Canary | None:
    """Return the canary of a name, if one is out; see `Canaries.of`."""
    row = db.execute(
        "SELECT b.value, n.version, t.version FROM belongings AS b "
        "JOIN names AS n ON n.name = b.name JOIN tags AS t ON t.name = b.name AND t.tag = ? "
        "WHERE b.name = ? AND b.key = ?",
        (TAG, name, _KEY),
    ).fetchone()
    if row is None:
        return None
    canary = _decode(row[0])
    is_out = canary is not None and (canary.parent, canary.version) == (row[1], row[2])
    return canary if is_out else None


def serving(db: sqlite3.Connection, ref: AdapterRef, key: str | None) -> VersionId:
    """Tell which version answers a request; errors as in `names.resolve`.

    Args:
        db: An open transaction.
        ref: What the request names. Only a name alone may mean the canary.
        key: Of the request; None is never the canary's.
    """
    version = names.resolve(db, ref)
    if key is None or ref.tag is not None or ref.prefix is not None:
        return version
    canary = of(db, ref.name)
    return canary.version if canary is not None and canary.takes(ref.name, key) else version


def end(db: sqlite3.Connection, name: AdapterName) -> None:
    """Take away the canary of a name, if it has one; a tag that people put stays."""
    db.execute(
        "DELETE FROM tags WHERE name = ? AND tag = ? AND version = ("
        "SELECT json_extract(CAST(value AS TEXT), '$.version') FROM belongings "
        "WHERE name = ? AND key = ? AND json_valid(CAST(value AS TEXT)))",
        (name, TAG, name, _KEY),
    )
    db.execute("DELETE FROM belongings WHERE name = ? AND key = ?", (name, _KEY))


def _require(db: sqlite3.Connection, name: AdapterName, version: VersionId) -> Canary:
    canary = of(db, name)
    if canary is None or canary.version != version:
        raise StaleParentError(
            f"version {version[:12]} is not the canary of adapter {name!r} any more",
            hint="Somebody moved the name or its tag meanwhile: look at its history.",
        )
    return canary


def _encode(canary: Canary) -> bytes:
    record = {
        "version": canary.version,
        "parent": canary.parent,
        "share": canary.share,
        "since": canary.since.isoformat(),
    }
    return json.dumps(record).encode()


def _decode(data: bytes) -> Canary | None:
    try:
        record = json.loads(data)
        return Canary(
            version=version_id(record["version"]),
            parent=version_id(record["parent"]),
            share=float(record["share"]),
            since=datetime.fromisoformat(record["since"]),
        )
    except (ValueError, TypeError, KeyError, InvalidInputError):
        return None
