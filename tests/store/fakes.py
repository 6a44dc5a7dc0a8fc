"""A disk that fails, stops, or loses power when a test says so, and drafts to commit."""

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from typing_extensions import override

from hyprstream.refs import ModelFingerprint, VersionId
from hyprstream.store.disk import Disk
from hyprstream.store.manifest import Draft

BASE = ModelFingerprint(name="tiny", config_sha256="a" * 64, weights_sha256="b" * 64)


class Stopped(BaseException):
    """The program ends here: nothing above the disk may catch it, as nothing catches a kill."""


def draft(*, parent: VersionId | None = None, needs_parent: bool = False, note: str = "") -> Draft:
    return Draft(
        base=BASE,
        kinds=["low_rank"],
        spec={"rank": 8, "alpha": 16.0, "targets": ("q_proj", "v_proj")},
        codec="raw",
        parent=parent,
        needs_parent=needs_parent,
        provenance={"note": note} if note else {},
    )


class FaultyDisk(Disk):
    """Counts its operations; from the one of number `at` on it fails in the way `how` says.

    `full` raises ENOSPC once. `before`, `within` and `after` raise `Stopped` at that operation
    and at all later ones, so that no tidying up happens that a kill would not allow.

    What was not synced is remembered: `lose_power` undoes whatever of it `lost` picks. A file
    whose content was not synced is empty then, whatever it is called.
    """

    def __init__(self) -> None:
        self.count = 0
        self.at: int | None = None
        self.how = "before"
        self._stopped = False
        self._names: list[tuple[Path, Callable[[], None]]] = []  # folder, how to undo
        self._contents: dict[int, int] = {}  # inode -> descriptor

    def arm(self, at: int | None, how: str) -> None:
        self.count, self.at, self.how = 0, at, how

    @property
    def has_failed(self) -> bool:
        return self.at is not None and self.count > self.at

    def lose_power(self, lost: Callable[[], bool]) -> None:
        """Undo, last first, the changes that no sync has made safe."""
        for descriptor in self._contents.values():
            if lost():
                os.ftruncate(descriptor, 0)
            os.close(descriptor)
        for _, undo in reversed(self._names):
            if lost():
                undo()
        self._contents.clear()
        self._names.clear()

    def _step(self) -> bool:
        """Count an operation; tell whether it is the one within which to stop."""
        if self._stopped:
            raise Stopped
        number, self.count = self.count, self.count + 1
        if number != self.at:
            return False
        if self.how == "full":
            raise OSError(errno.ENOSPC, "the test says that the disk is full")
        self._stopped = True
        if self.how == "before":
            raise Stopped
        return True

    def _after(self, *, stop: bool) -> None:
        if stop:
            raise Stopped

    @override
    def create(self, file: Path) -> int:
        stop = self._step()
        descriptor = super().create(file)
        self._names.append((file.parent, lambda: file.unlink(missing_ok=True)))
        self._contents[os.fstat(descriptor).st_ino] = os.dup(descriptor)
        if stop:
            os.close(descriptor)
        self._after(stop=stop)
        return descriptor

    @override
    def write(self, descriptor: int, data: memoryview) -> int:
        stop = self._step()
        # Never all at once, so that the rest is written by another call.
        num_bytes = super().write(descriptor, data[: max(1, len(data) // 2)])
        self._after(stop=stop)
        return num_bytes

    @override
    def finish(self, descriptor: int) -> None:
        stop = self._step()
        if not (stop and self.how == "within"):
            super().finish(descriptor)
            os.close(self._contents.pop(os.fstat(descriptor).st_ino))
        self._after(stop=stop)

    @override
    def rename(self, source: Path, target: Path) -> None:
        stop = self._step()
        before = target.read_bytes() if target.exists() else None
        super().rename(source, target)

        def undo() -> None:
            if target.exists():
                target.replace(source)
            if before is not None:
                target.write_bytes(before)

        self._names.append((target.parent, undo))
        self._after(stop=stop)

    @override
    def remove(self, file: Path) -> None:
        stop = self._step()
        before = file.read_bytes()
        super().remove(file)
        self._names.append((file.parent, lambda: _restore(file, before)))
        self._after(stop=stop)

    @override
    def sync_folder(self, folder: Path) -> None:
        stop = self._step()
        if not (stop and self.how == "within"):
            super().sync_folder(folder)
            self._names = [(place, undo) for place, undo in self._names if place != folder]
        self._after(stop=stop)

    @override
    def commit(self, connection: sqlite3.Connection) -> None:
        try:
            stop = self._step()
        except OSError as error:
            raise _full_database() from error
        if not (stop and self.how == "within"):
            super().commit(connection)
        self._after(stop=stop)


def _full_database() -> sqlite3.OperationalError:
    """What SQLite says of ENOSPC; `test_index.py` fills a real database."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def _restore(file: Path, content: bytes) -> None:
    if not file.exists():
        file.write_bytes(content)
