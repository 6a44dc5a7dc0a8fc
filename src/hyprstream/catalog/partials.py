"""Downloads that are not complete yet: kept through interruptions and kills, seen by no reader.

    partial/<what>.content   what has come so far
    partial/<what>.json      what the server said of it, where no hash says what it must be
    partial/<what>.lock      held by who writes the other two; made first, removed last

`<what>` is the promised hash of the content, or the hash of its address. A partial that is
complete stays until its model is committed, so that a kill between two files of a model loses
none; then it has a second name and is never written to again.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hyprstream.errors import CacheBusyError
from hyprstream.files import CHUNK_BYTES, Waiting, inside, is_locked, storage

MAX_AGE_S = 7 * 24 * 3600.0

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a server said of content whose hash nobody promised.

    Attributes:
        validator: Its ETag, or its Last-Modified.
        size_bytes: Its length, if the server knows.
    """

    validator: str
    size_bytes: int | None


class Partial:
    """One download under way. Belongs to the holder of its lock, and to one thread.

    Attributes:
        file: What has come so far.
        num_bytes: How much that is.
        sha256: The hash of it, updated with each write.
        origin: What the server said of it, where that is known.
        is_finished: It was complete; nothing may be appended.
    """

    def __init__(self, stem: Path, *, is_promised: bool) -> None:
        self.file = stem.with_suffix(".content")
        self._about = stem.with_suffix(".json")
        self._is_promised = is_promised
        self.num_bytes = 0
        self.sha256 = hashlib.sha256()
        self.origin: Origin | None = None
        self.is_finished = False
        self._descriptor: int | None = None
        with storage(stem.parent):
            self._recall()

    def write(self, chunk: bytes) -> None:
        """Append to the content.

        Raises:
            StorageFullError: The disk is full; what was written stays.
        """
        assert not self.is_finished, f"{self.file} is complete"
        with storage(self.file.parent):
            if self._descriptor is None:
                self._descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            rest = memoryview(chunk)
            while rest:
                written = os.write(self._descriptor, rest)
                self.sha256.update(rest[:written])
                self.num_bytes += written
                rest = rest[written:]

    def restart(self, origin: Origin | None = None) -> None:
        """Throw the content away and begin anew, with what the server says of the new one."""
        self.close()
        with storage(self.file.parent):
            # A new file: the old one may have become a part of the cache.
            self.file.unlink(missing_ok=True)
            self._about.unlink(missing_ok=True)
            self.num_bytes, self.sha256, self.origin = 0, hashlib.sha256(), origin
            self.is_finished = False
            if origin is not None:
                about = {
                    "validator": origin.validator,
                    "size_bytes": origin.size_bytes,
                    "boot": _boot_id(),
                }
                self._about.write_text(json.dumps(about), "utf-8")

    def finish(self) -> None:
        """Return when the content would survive a loss of power; it is not written to again."""
        with storage(self.file.parent):
            if self._descriptor is None:
                self._descriptor = os.open(self.file, os.O_RDONLY | os.O_CREAT, 0o644)
            os.fsync(self._descriptor)
            os.fchmod(self._descriptor, 0o444)  # shared by every model that has this content
        self.is_finished = True
        self.close()

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _recall(self) -> None:
        """Take up what an earlier process left, if it can be relied on."""
        if not self.file.exists():
            return
        if not self._is_promised:
            self.origin = self._read_origin()
            if self.origin is None:
                self.restart()
                return
        self.is_finished = not self.file.stat().st_mode & 0o200
        with self.file.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                self.sha256.update(chunk)
                self.num_bytes += len(chunk)

    def _read_origin(self) -> Origin | None:
        """Read what is known of the content; None where nobody could tell if it is sound.

        A loss of power may leave zeros in a file. Where no promised hash would find them, only
        what was written since this machine started is relied on.
        """
        try:
            about = json.loads(self._about.read_text("utf-8"))
            size_bytes, boot = about["size_bytes"], about["boot"]
            origin = Origin(
                validator=str(about["validator"]),
                size_bytes=None if size_bytes is None else int(size_bytes),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return origin if boot is not None and boot == _boot_id() else None


class Partials:
    """All downloads under way below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def open(
        self, *, sha256: str | None, url: str, waiting: Waiting | None = None
    ) -> Iterator[Partial]:
        """Take up a download, alone: another process that wants the same content waits.

        Args:
            sha256: The promised hash of the content, if one is.
            url: Where it comes from; names the download where no hash does.
            waiting: Told about waiting.
        """
        name = f"url-{hashlib.sha256(url.encode()).hexdigest()}" if sha256 is None else sha256
        stem = inside(self._folder, name)
        with _locked(stem.with_suffix(".lock"), waiting):
            partial = Partial(stem, is_promised=sha256 is not None)
            try:
                yield partial
            finally:
                partial.close()
                if not partial.file.exists():
                    self._unlink(partial.file)

    def size_bytes(self, sha256: str | None) -> int:
        """How much of a content with a promised hash is here."""
        if sha256 is None:
            return 0
        try:
            return inside(self._folder, f"{sha256}.content").stat().st_size
        except FileNotFoundError:
            return 0

    def forget(self, partial: Partial) -> None:
        """Remove a download whose content has another name by now; one in use is left alone."""
        self._remove(partial.file.with_suffix(".lock"), older_than_s=0.0)

    def collect(
        self, *, older_than_s: float = MAX_AGE_S, kept: frozenset[int] = frozenset()
    ) -> int:
        """Remove downloads that nobody went on with for so long; those in use stay.

        Args:
            older_than_s: The age from which on they are removed.
            kept: The inodes of what the cache has: a download that is one of them was taken in
                by a process that was killed before it could forget it, and goes at any age.

        Returns:
            How many bytes of disk became free.
        """
        files = sorted(self._folder.glob("*.lock"))
        return sum(self._remove(file, older_than_s=older_than_s, kept=kept) for file in files)

    def idle(self, *, older_than_s: float = 0.0) -> list[tuple[Path, int]]:
        """List downloads that nobody is working on; takes no lock.

        Args:
            older_than_s: List only what was not written to for so long.

        Returns:
            What to give to `remove`, and how many bytes of disk it would free.
        """
        found = []
        for file in sorted(self._folder.glob("*.lock")):
            with suppress(FileNotFoundError):
                content = file.with_suffix(".content")
                status = (content if content.exists() else file).stat()
                if time.time() - status.st_mtime >= older_than_s and not is_locked(file):
                    found.append((file, status.st_size if status.st_nlink == 1 else 0))
        return found

    def remove(self, lock_file: Path) -> int:
        """Remove a download that `idle` listed, unless somebody works on it again.

        Returns:
            How many bytes of disk became free.
        """
        return self._remove(lock_file, older_than_s=0.0)

    def _remove(
        self, lock_file: Path, *, older_than_s: float, kept: frozenset[int] = frozenset()
    ) -> int:
        content = lock_file.with_suffix(".content")
        freed_bytes = 0
        try:
            with storage(self._folder), _locked(lock_file, None):
                try:
                    status = content.stat()
                except FileNotFoundError:
                    status = lock_file.stat()
                else:
                    freed_bytes = status.st_size if status.st_nlink == 1 else 0
                is_young = older_than_s and time.time() - status.st_mtime < older_than_s
                if is_young and status.st_ino not in kept:
                    return 0
                self._unlink(content)
        except CacheBusyError:
            return 0
        return freed_bytes

    def _unlink(self, content: Path) -> None:
        """Remove what belongs to a download, its lock last; the caller holds it."""
        with storage(self._folder):
            for file in (content, content.with_suffix(".json"), content.with_suffix(".lock")):
                file.unlink(missing_ok=True)


@contextmanager
def _locked(file: Path, waiting: Waiting | None) -> Iterator[None]:
    """Hold a lock whose file is removed by holders; None as `waiting` does not wait.

    Raises:
        CacheBusyError: Somebody else holds it, and waiting is not wanted.
    """
    descriptor = _hold(file, waiting)
    try:
        yield
    finally:
        os.close(descriptor)  # ends the lock


def _hold(file: Path, waiting: Waiting | None) -> int:
    while True:
        with storage(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _wait(descriptor, waiting)
            if _is_named(descriptor, file):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one who held it has removed it: that lock is no longer the lock


def _wait(descriptor: int, waiting: Waiting | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            raise CacheBusyError(
                "another process is downloading this", hint="Try again when it is done."
            ) from None
        waiting.start("waiting for another process that downloads the same file", None)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        waiting.done()


def _is_named(descriptor: int, file: Path) -> bool:
    try:
        named = file.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino)


def _boot_id() -> str | None:
    """Name this run of the machine; None where it has no name."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
