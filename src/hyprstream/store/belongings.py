"""What is kept with a name rather than with its versions: small pieces of data, by their keys.

They stay when the name moves, and go with it in one transaction when it is deleted, so that an
adapter that takes the name later finds nothing of the one before.
"""

import re
import sqlite3
from collections.abc import Mapping

from hyprstream.errors import InvalidRequestError
from hyprstream.refs import AdapterName
from hyprstream.store import names
from hyprstream.store.index import Index

MAX_BYTES = 32 << 20
"""Most bytes of one piece."""

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?")
_MAX_KEY_LENGTH = 200


class Belongings:
    """The belongings of all names of a store. Every call is one transaction."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def put(self, name: AdapterName, key: str, value: bytes) -> None:
        """Keep a piece of data with a name, instead of what it had under that key.

        Raises:
            AdapterNotFoundError: There is no such name.
            InvalidRequestError: The key is not one or two plain words, or the piece is too large.
            StorageFullError: The disk is full; what was there before is still there.
        """
        if len(key) > _MAX_KEY_LENGTH or not _KEY.fullmatch(key):
            raise InvalidRequestError(
                f"{key[:80]!r} cannot name what belongs to an adapter",
                hint="Use letters, digits, '.', '_' and '-'.",
            )
        if len(value) > MAX_BYTES:
            raise InvalidRequestError(
                f"{key} has {len(value)} bytes, {MAX_BYTES} are kept with an adapter",
                hint="Shorten it.",
            )
        with self._index.change() as db:
            names.current(db, name)
            db.execute(
                "INSERT INTO belongings (name, key, value) VALUES (?, ?, ?) "
                "ON CONFLICT (name, key) DO UPDATE SET value = excluded.value",
                (name, key, value),
            )

    def get(self, name: AdapterName, key: str) -> bytes | None:
        """Return a piece of data; None if the name has none of that key.

        Raises:
            AdapterNotFoundError: There is no such name.
        """
        with self._index.look() as db:
            names.current(db, name)
            row = _row(db, name, key)
        return None if row is None else bytes(row[0])

    def sizes(self, name: AdapterName) -> Mapping[str, int]:
        """List the keys of a name, with the bytes of each.

        Raises:
            AdapterNotFoundError: There is no such name.
        """
        query = "SELECT key, length(value) FROM belongings WHERE name = ? ORDER BY key"
        with self._index.look() as db:
            names.current(db, name)
            return dict(db.execute(query, (name,)).fetchall())

    def remove(self, name: AdapterName, key: str) -> bool:
        """Forget a piece of data; tell whether there was one.

        Raises:
            AdapterNotFoundError: There is no such name.
        """
        with self._index.change() as db:
            names.current(db, name)
            query = "DELETE FROM belongings WHERE name = ? AND key = ?"
            return db.execute(query, (name, key)).rowcount > 0


def _row(db: sqlite3.Connection, name: AdapterName, key: str) -> tuple[bytes] | None:
    query = "SELECT value FROM belongings WHERE name = ? AND key = ?"
    row: tuple[bytes] | None = db.execute(query, (name, key)).fetchone()
    return row
