"""Names, tags and moves: which version an adapter is, was, and becomes when rolled back.

Each move of a name remembers the move below it. Creating has none, promoting lies on the
move before it, and a rollback takes the place of the move that it returns to. Rolling back
twice thus goes back two promotions, and every move stays in the history.

Functions on an open transaction; `AdapterStore` is what opens it.
"""

import sqlite3
from datetime import datetime

from hyprstream.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    InvalidReferenceError,
    StaleParentError,
    VersionNotFoundError,
)
from hyprstream.refs import AdapterName, AdapterRef, VersionId, adapter_name, version_id
from hyprstream.store.records import Action, Adapter, Move, Note


def create(
    db: sqlite3.Connection, name: AdapterName, to: VersionId, at: datetime, note: Note
) -> None:
    """Give a new name to a version.

    Raises:
        AdapterExistsError: The name is taken.
        VersionNotFoundError: There is no such version.
    """
    if _pointer(db, name) is not None:
        raise AdapterExistsError(
            f"there is an adapter {name!r} already",
            hint="Choose another name, or delete the adapter first.",
        )
    require(db, to)
    # The name first: the move refers to it.
    db.execute("INSERT INTO names (name, version, move) VALUES (?, ?, 0)", (name, to))
    _move(db, name, Move(action="create", version=to, at=at, note=note), below=None)


def current(db: sqlite3.Connection, name: AdapterName) -> VersionId:
    """Tell which version a name points at.

    Raises:
        AdapterNotFoundError: There is no such name.
    """
    return _found(db, name)[0]


def promote(db: sqlite3.Connection, name: AdapterName, move: Move, *, expected: VersionId) -> None:
    """Move a name, if it still points where it is expected to.

    Raises:
        AdapterNotFoundError: There is no such name.
        StaleParentError: It points at another version.
        VersionNotFoundError: The new version does not exist.
    """
    version, number = _found(db, name)
    _check_current(name, version, expected)
    require(db, move.version)
    if move.version != version:
        _move(db, name, move, below=number)


def rollback(
    db: sqlite3.Connection,
    name: AdapterName,
    at: datetime,
    note: Note,
    *,
    expected: VersionId | None = None,
) -> VersionId:
    """Move a name back to where it was before it was last promoted.

    Raises:
        AdapterNotFoundError: There is no such name.
        StaleParentError: It points at another version than is expected.
        VersionNotFoundError: It was never promoted, or the version was collected.
    """
    version, number = _found(db, name)
    if expected is not None:
        _check_current(name, version, expected)
    row = db.execute(
        "SELECT lower.version, lower.below FROM moves AS upper "
        "JOIN moves AS lower ON lower.number = upper.below WHERE upper.number = ?",
        (number,),
    ).fetchone()
    if row is None:
        raise VersionNotFoundError(
            f"adapter {name!r} has no earlier version to return to",
            hint=f"`hyprstream lora history {name}` lists where it has pointed.",
        )
    to, below = VersionId(row[0]), row[1]
    require(db, to)
    _move(db, name, Move(action="rollback", version=to, at=at, note=note), below=below)
    return to


def history(db: sqlite3.Connection, name: AdapterName) -> list[Move]:
    """List the moves of a name, the first one first.

    Raises:
        AdapterNotFoundError: There is no such name.
    """
    _found(db, name)
    rows = db.execute(
        "SELECT action, version, at, by, why FROM moves WHERE name = ? ORDER BY number", (name,)
    )
    return [_read_move(*row) for row in rows]


def moves_after(db: sqlite3.Connection, after: str, most: int) -> list[tuple[AdapterName, Move]]:
    """List the latest moves of all names that came after a moment, the first one first.

    By time, since numbers are given anew when a name is deleted with its moves.
    """
    rows = db.execute(
        "SELECT name, action, version, at, by, why FROM moves WHERE at > ? "
        "ORDER BY at DESC, number DESC LIMIT ?",
        (after, most),
    ).fetchall()
    return [(AdapterName(name), _read_move(*row)) for name, *row in reversed(rows)]


def tag(db: sqlite3.Connection, ref: AdapterRef, to: VersionId) -> None:
    """Let a tag stand for a version, whatever it stood for before.

    Raises:
        InvalidReferenceError: The reference has no tag.
        AdapterNotFoundError: There is no such name.
        VersionNotFoundError: There is no such version.
    """
    if ref.tag is None:
        raise InvalidReferenceError(
            f"'{ref}' has no tag", hint="Write name:tag, as in support:stable."
        )
    _found(db, ref.name)
    require(db, to)
    db.execute(
        "INSERT INTO tags (name, tag, version) VALUES (?, ?, ?) "
        "ON CONFLICT (name, tag) DO UPDATE SET version = excluded.version",
        (ref.name, ref.tag, to),
    )


def untag(db: sqlite3.Connection, ref: AdapterRef) -> None:
    """Take a tag away.

    Raises:
        VersionNotFoundError: There is no such tag.
    """
    done = db.execute("DELETE FROM tags WHERE name = ? AND tag = ?", (ref.name, ref.tag))
    if not done.rowcount:
        raise _no_tag(ref)


def tags(db: sqlite3.Connection, name: AdapterName) -> dict[str, VersionId]:
    """List the tags of a name.

    Raises:
        AdapterNotFoundError: There is no such name.
    """
    _found(db, name)
    rows = db.execute("SELECT tag, version FROM tags WHERE name = ? ORDER BY tag", (name,))
    return {tag: VersionId(version) for tag, version in rows}


def adapters(db: sqlite3.Connection) -> list[Adapter]:
    """List the names in their order, each with what its version is."""
    rows = db.execute(
        "SELECT n.name, n.version, m.at, json_extract(v.manifest, '$.base.name'), "
        "json_extract(v.manifest, '$.codec'), json_extract(v.manifest, '$.payload.size_bytes') "
        "FROM names AS n JOIN moves AS m ON m.number = n.move "
        "JOIN versions AS v ON v.id = n.version ORDER BY n.name"
    )
    return [
        Adapter(
            name=AdapterName(name),
            version=VersionId(version),
            moved_at=datetime.fromisoformat(at),
            base=base,
            codec=codec,
            size_bytes=size_bytes,
        )
        for name, version, at, base, codec, size_bytes in rows
    ]


def delete(db: sqlite3.Connection, name: AdapterName) -> set[VersionId]:
    """Take a name away, with its tags and its history; return the versions that it led to.

    Raises:
        AdapterNotFoundError: There is no such name.
    """
    _found(db, name)
    rows = db.execute(
        "SELECT version FROM moves WHERE name = ? UNION SELECT version FROM tags WHERE name = ?",
        (name, name),
    ).fetchall()
    db.execute("DELETE FROM names WHERE name = ?", (name,))
    return {VersionId(version) for (version,) in rows}


def resolve(db: sqlite3.Connection, ref: AdapterRef) -> VersionId:
    """Tell which version a reference means.

    Raises:
        AdapterNotFoundError: There is no such name.
        VersionNotFoundError: It has no such tag, or no version that begins so.
        InvalidReferenceError: Several of its versions begin so.
    """
    version = current(db, ref.name)
    if ref.tag is not None:
        row = db.execute(
            "SELECT version FROM tags WHERE name = ? AND tag = ?", (ref.name, ref.tag)
        ).fetchone()
        if row is None:
            raise _no_tag(ref)
        return VersionId(row[0])
    return version if ref.prefix is None else _with_prefix(db, ref, ref.prefix)


def require(db: sqlite3.Connection, version: VersionId) -> None:
    """Demand that a version exists.

    Raises:
        VersionNotFoundError: It does not.
    """
    manifest(db, version)


def manifest(db: sqlite3.Connection, version: VersionId) -> str:
    """Give the manifest of a version as text.

    Raises:
        VersionNotFoundError: There is no such version.
    """
    query = "SELECT manifest FROM versions WHERE id = ?"
    row = db.execute(query, (version_id(version),)).fetchone()
    if row is None:
        raise VersionNotFoundError(
            f"there is no version {version} in the store",
            hint="It was never committed here, or collected because nothing led to it.",
        )
    return str(row[0])


def _with_prefix(db: sqlite3.Connection, ref: AdapterRef, prefix: str) -> VersionId:
    rows = db.execute(
        "SELECT id FROM versions WHERE substr(id, 1, ?) = ? AND id IN ("
        "SELECT version FROM moves WHERE name = ? UNION SELECT version FROM tags WHERE name = ?)",
        (len(prefix), prefix, ref.name, ref.name),
    ).fetchall()
    if not rows:
        raise VersionNotFoundError(
            f"adapter {ref.name!r} has no version that begins with {prefix}",
            hint="Its history lists its versions.",
        )
    if len(rows) > 1:
        raise InvalidReferenceError(
            f"{len(rows)} versions of adapter {ref.name!r} begin with {prefix}",
            hint="Write more digits.",
        )
    return VersionId(rows[0][0])


def _pointer(db: sqlite3.Connection, name: AdapterName) -> tuple[VersionId, int] | None:
    query = "SELECT version, move FROM names WHERE name = ?"
    row = db.execute(query, (adapter_name(name),)).fetchone()
    return None if row is None else (VersionId(row[0]), row[1])


def _found(db: sqlite3.Connection, name: AdapterName) -> tuple[VersionId, int]:
    pointer = _pointer(db, name)
    if pointer is None:
        raise AdapterNotFoundError(
            f"there is no adapter {name!r}", hint="`hyprstream lora list` shows those there are."
        )
    return pointer


def _check_current(name: AdapterName, version: VersionId, expected: VersionId) -> None:
    if version != expected:
        raise StaleParentError(
            f"adapter {name!r} points at version {version[:12]}, not at {expected[:12]}",
            hint="Somebody moved it meanwhile: look at its history and decide again.",
        )


def _no_tag(ref: AdapterRef) -> VersionNotFoundError:
    return VersionNotFoundError(
        f"adapter {ref.name!r} has no tag {ref.tag!r}",
        hint=f"`hyprstream lora tag {ref.name}` lists its tags.",
    )


def _read_move(action: Action, version: str, at: str, by: str, why: str) -> Move:
    return Move(
        action=action,
        version=VersionId(version),
        at=datetime.fromisoformat(at),
        note=Note(by=by, why=why),
    )


def _move(db: sqlite3.Connection, name: AdapterName, move: Move, *, below: int | None) -> None:
    done = db.execute(
        "INSERT INTO moves (name, action, version, below, at, by, why) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            *(name, move.action, move.version, below, move.at.isoformat()),
            *(move.note.by, move.note.why),
        ),
    )
    db.execute(
        "UPDATE names SET version = ?, move = ? WHERE name = ?",
        (move.version, done.lastrowid, name),
    )
