"""Adapters on this disk: versions that never change, and names that move between them.

    payloads/<sha256>     content of versions, read-only, each only once
    names.db              manifests, names with their tags, history and belongings (SQLite)
    temp/                 payloads that are being written
    store.lock            shared by whoever adds or begins to read, held alone by `collect`
    names.lock            held while a new store is made

What was acknowledged survives a kill and a loss of power; what was not is there whole or not
at all. Any number of processes and threads may use a store at once. POSIX only (flock), and on
a local disk: write-ahead databases and these locks need one.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hyprstream.errors import ChecksumMismatchError, InvalidAdapterError
from hyprstream.files import hold, storage
from hyprstream.refs import AdapterName, AdapterRef, VersionId
from hyprstream.store import canaries, manifest, names
from hyprstream.store.belongings import Belongings
from hyprstream.store.canaries import Canaries
from hyprstream.store.collect import unreachable
from hyprstream.store.content import Content, problem
from hyprstream.store.disk import Disk
from hyprstream.store.index import Index
from hyprstream.store.manifest import Draft, Manifest
from hyprstream.store.records import Adapter, Collected, Damage, Move, Note

GRACE = timedelta(days=1)
"""How long a version that nothing points at yet is kept."""

_BATCH = 32  # files removed before others get a turn; some file systems take 3 ms for each


class AdapterStore:
    """The adapters below one folder.

    Invariants, checked by `test_store_properties.py` with a failure at any step: a version
    that exists can be read, and is what was committed; a name always points at a version that
    exists; of several that move a name from the same version, one succeeds.

    Attributes:
        belongings: What is kept with names.
        canaries: Versions that answer a share of the requests. Whoever moves a name, or the tag
            `canary`, ends the canary of that name.
    """

    def __init__(
        self,
        root: Path,
        *,
        disk: Disk | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._root = root
        self._clock = clock
        disk = disk or Disk()
        self._content = Content(root, disk)
        with storage(root):
            self._content.prepare()
            self._index = Index(root / "names.db", disk)
        self.belongings = Belongings(self._index)
        self.canaries = Canaries(self._index, clock)

    def close(self) -> None:
        """Let go of the files; the store is of no use then."""
        self._index.close()

    def commit(self, payload: bytes | Path, draft: Draft) -> VersionId:
        """Add a version. It is on the disk when this returns; no name points at it yet.

        Args:
            payload: Its content, or a file that holds it, which is copied.
            draft: What it is.

        Raises:
            InvalidAdapterError: The draft says something that a manifest does not admit, or
                the file cannot be read.
            VersionNotFoundError: It needs a parent that is not there.
            StorageFullError: The disk is full; nothing was added.
        """
        with self._adding(), storage(self._root):
            now = self._clock()
            kept = self._content.put(payload)
            made = draft.complete(kept, now)
            version = made.version
            needed = draft.parent if draft.needs_parent else None
            with self._index.change() as db:
                if needed is not None:
                    names.require(db, needed)
                db.execute(
                    "INSERT INTO versions (id, manifest, recorded, payload, needed) "
                    "VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (id) DO UPDATE SET recorded = excluded.recorded",
                    (version, made.encode().decode(), now.isoformat(), kept.sha256, needed),
                )
        return version

    def manifest(self, version: VersionId) -> Manifest:
        """Tell what a version is.

        Raises:
            VersionNotFoundError: There is no such version.
            ChecksumMismatchError: The manifest is not the one that was committed.
        """
        with self._index.look() as db:
            text = names.manifest(db, version)
        return _manifest(version, text)

    @contextmanager
    def open(self, version: VersionId) -> Iterator[Path]:
        """Give the file of a version's payload, which was read and checked; it stays so long.

        A file that is still mapped after the block stays readable, even if it is collected.

        Raises:
            VersionNotFoundError: There is no such version.
            ChecksumMismatchError: The payload is not the one that was committed.
        """
        with storage(self._root):
            with self._adding():
                payload = self.manifest(version).payload
                descriptor = self._content.hold(payload)
            try:
                self._content.check(payload, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        try:
            yield self._content.path(payload.sha256)
        finally:
            os.close(descriptor)

    def create(self, name: AdapterName, to: VersionId, note: Note = Note()) -> None:  # noqa: B008 - frozen
        """Give a new name to a version; errors as in `names.create`."""
        with self._index.change() as db:
            names.create(db, name, to, self._clock(), note)

    def current(self, name: AdapterName) -> VersionId:
        """Tell which version a name points at.

        Raises:
            AdapterNotFoundError: There is no such name.
        """
        with self._index.look() as db:
            return names.current(db, name)

    def resolve(self, ref: AdapterRef, key: str | None = None) -> VersionId:
        """Tell which version a reference means; see `canaries.serving`."""
        with self._index.look() as db:
            return canaries.serving(db, ref, key)

    def promote(
        self,
        name: AdapterName,
        to: VersionId,
        *,
        expected: VersionId,
        note: Note = Note(),  # noqa: B008 - frozen
    ) -> None:
        """Move a name to another version, if it still points at the one that is expected.

        Raises:
            AdapterNotFoundError: There is no such name.
            StaleParentError: Somebody moved it meanwhile.
            VersionNotFoundError: There is no such version.
        """
        with self._index.change() as db:
            move = Move(action="promote", version=to, at=self._clock(), note=note)
            names.promote(db, name, move, expected=expected)
            canaries.end(db, name)

    def rollback(
        self,
        name: AdapterName,
        note: Note = Note(),  # noqa: B008 - frozen
        *,
        expected: VersionId | None = None,
    ) -> VersionId:
        """Undo the last promotion that was not undone yet; return the version that is back.

        Args:
            name: The name.
            note: For the history.
            expected: Where the name has to point; None takes it wherever it points.

        Raises:
            AdapterNotFoundError: There is no such name.
            StaleParentError: Somebody moved it meanwhile.
            VersionNotFoundError: There is nothing to undo, or the version was collected.
        """
        with self._index.change() as db:
            version = names.rollback(db, name, self._clock(), note, expected=expected)
            canaries.end(db, name)
            return version

    def history(self, name: AdapterName) -> list[Move]:
        """List the moves of a name, the first one first.

        Raises:
            AdapterNotFoundError: There is no such name.
        """
        with self._index.look() as db:
            return names.history(db, name)

    def moves_after(self, moment: datetime, most: int) -> list[tuple[AdapterName, Move]]:
        """List the latest moves of all names after a moment (UTC), the first one first."""
        with self._index.look() as db:
            return names.moves_after(db, moment.isoformat(), most)

    def tag(self, ref: AdapterRef, to: VersionId) -> None:
        """Let a tag, `name:tag`, stand for a version; errors as in `names.tag`."""
        with self._index.change() as db:
            if ref.tag == canaries.TAG:
                canaries.end(db, ref.name)
            names.tag(db, ref, to)

    def untag(self, ref: AdapterRef) -> None:
        """Take a tag away; errors as in `names.untag`."""
        with self._index.change() as db:
            names.untag(db, ref)
            if ref.tag == canaries.TAG:
                canaries.end(db, ref.name)

    def tags(self, name: AdapterName) -> dict[str, VersionId]:
        """List the tags of a name.

        Raises:
            AdapterNotFoundError: There is no such name.
        """
        with self._index.look() as db:
            return names.tags(db, name)

    def delete(self, name: AdapterName) -> set[VersionId]:
        """Take a name away, with its tags and history; its versions stay until `collect`.

        Returns:
            The versions that it led to.

        Raises:
            AdapterNotFoundError: There is no such name.
        """
        with self._index.change() as db:
            return names.delete(db, name)

    def list(self) -> tuple[Adapter, ...]:
        """List the adapters by name."""
        with self._index.look() as db:
            return tuple(names.adapters(db))

    def collect(
        self,
        *,
        keep_history: int | None = None,
        grace: timedelta = GRACE,
        given_up: Collection[VersionId] = (),
    ) -> Collected:
        """Remove the versions that nothing leads to, and what killed processes left.

        Args:
            keep_history: How many rollbacks and how many of the latest moves of each name keep
                their versions; None keeps those of all moves.
            grace: What was committed so short a time ago stays: its name may be on the way.
            given_up: Versions whose name was deleted: they go however new they are.
        """
        with storage(self._root):
            with self._alone():
                with self._index.change() as db:
                    gone = unreachable(
                        db,
                        self._content.is_held,
                        keep_history=keep_history,
                        recorded_since=self._clock() - grace,
                        given_up=given_up,
                    )
                    db.executemany("DELETE FROM versions WHERE id = ?", [(v,) for v in gone])
                    kept = {payload for (payload,) in db.execute("SELECT payload FROM versions")}
                # Files go only now that no version needs them, on the disk as well.
                unused = self._content.unused(kept)
                leftovers = self._content.leftovers()  # nobody is writing now
            freed_bytes = self._content.remove(leftovers)
            for start in range(0, len(unused), _BATCH):
                freed_bytes += self._remove_unused(unused[start : start + _BATCH])
        return Collected(versions=tuple(map(VersionId, gone)), freed_bytes=freed_bytes)

    def _remove_unused(self, payloads: Sequence[str]) -> int:
        """Remove payloads that are still unused; return the bytes freed."""
        query = "SELECT 1 FROM versions WHERE payload = ?"
        with self._alone():
            with self._index.look() as db:
                unused = [sha for sha in payloads if db.execute(query, (sha,)).fetchone() is None]
            return self._content.remove(map(self._content.path, unused))

    def verify(self) -> tuple[Damage, ...]:
        """Read everything; list what is not as it was committed.

        Raises:
            CorruptStoreError: The database itself is damaged.
        """
        with self._adding(), storage(self._root):
            with self._index.look() as db:
                rows = db.execute("SELECT id, manifest FROM versions ORDER BY id").fetchall()
            damages = []
            for version, text in rows:
                try:
                    payload = _manifest(version, text).payload
                    wrong = problem(payload, self._content.path(payload.sha256))
                except ChecksumMismatchError as error:
                    wrong = str(error)
                if wrong:
                    damages.append(Damage(version=VersionId(version), problem=wrong))
        return tuple(damages)

    def _adding(self) -> AbstractContextManager[None]:
        """Keep `collect` away."""
        return hold(self._root / "store.lock", shared=True)

    def _alone(self) -> AbstractContextManager[None]:
        """Keep away whoever adds a version or begins to read one."""
        return hold(self._root / "store.lock", shared=False)


def _manifest(version: str, text: str) -> Manifest:
    """Read a manifest from the database."""
    try:
        found = manifest.decode(text.encode())
    except InvalidAdapterError as error:
        raise _damaged(version) from error
    if found.version != version:
        raise _damaged(version)
    return found


def _damaged(version: str) -> ChecksumMismatchError:
    return ChecksumMismatchError(
        f"the manifest of version {version} is not the one that was committed",
        hint="Restore the store from a copy, or commit the adapter again.",
    )
