"""Where a model is put together before it exists: files that no reader can see yet.

A `Staging` belongs to whoever holds the lock of its model, and to one thread.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from hyprstream.catalog.card import FileEntry
from hyprstream.catalog.partials import Partial, Partials
from hyprstream.errors import ChecksumMismatchError, StorageFullError
from hyprstream.files import link, sha256_of, storage
from hyprstream.refs import ModelRef


class Staging:
    """The files of one model on their way into the cache.

    Attributes:
        ref: What is being fetched, as it was asked for.
        folder: Room for whatever else a registry needs on the way; removed with the staging.
        partials: Downloads that are not complete; they outlive the staging.
    """

    def __init__(
        self,
        ref: ModelRef,
        folder: Path,
        *,
        partials: Partials | None = None,
        blobs: Path | None = None,
    ) -> None:
        self.ref = ref
        self.folder = folder
        self.partials = partials or Partials(folder / "partial")
        self._blobs = blobs
        self._files: dict[FileEntry, Path] = {}
        self._taken: list[Partial] = []
        self._sound: dict[str, Path] = {}
        self._reused: set[FileEntry] = set()
        self._numbers = itertools.count()

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """What has been written so far."""
        return tuple(self._files)

    @property
    def fetched_bytes(self) -> int:
        """How much of it the cache did not have already."""
        return sum(entry.size_bytes for entry in self._files if entry not in self._reused)

    def content(self, entry: FileEntry) -> Path:
        """Where the bytes of a written file lie; its name there means nothing."""
        return self._files[entry]

    def reserve(self, num_bytes: int) -> None:
        """Refuse early what cannot fit; a disk may still fill up later.

        Raises:
            StorageFullError: The disk has less room than that.
        """
        free_bytes = shutil.disk_usage(self.folder).free
        if num_bytes > free_bytes:
            raise StorageFullError(
                f"{self.ref} needs {num_bytes:,} bytes, {free_bytes:,} are free at {self.folder}",
                hint="Free some space, or keep the model cache on another disk.",
            )

    def trust(self, sha256: str, file: Path) -> None:
        """Name a file of which is known that it has this content."""
        self._sound[sha256] = file

    def find(self, sha256: str) -> Path | None:
        """Look for content on this disk, reading it unless it is trusted."""
        if sha256 in self._sound or self._blobs is None:
            return self._sound.get(sha256)
        blob = self._blobs / sha256
        try:
            return blob if sha256_of(blob) == sha256 else None
        except OSError:
            return None  # whatever the reason is, a download may still succeed

    def reuse(self, name: str, *, size_bytes: int | None, sha256: str) -> bool:
        """Take in a file whose content the cache has already; False if it has not, or damaged."""
        found, file = self.find(sha256), self._next_file()
        if found is None:
            return False
        try:
            file.hardlink_to(found)
            found_bytes = file.stat().st_size
        except OSError:  # collected a moment ago, perhaps
            return False
        if size_bytes not in (None, found_bytes):  # a promise that cannot be kept
            return False
        entry = FileEntry(name=name, size_bytes=found_bytes, sha256=sha256)
        self._files[entry] = file
        self._reused.add(entry)
        return True

    def take(self, name: str, partial: Partial) -> None:
        """Take in a download that is complete; it is forgotten when the model exists."""
        entry = FileEntry(
            name=name, size_bytes=partial.num_bytes, sha256=partial.sha256.hexdigest()
        )
        file = self._next_file()
        with storage(self.folder):
            link(partial.file, file)
        self._files[entry] = file
        self._taken.append(partial)

    def forget_partials(self) -> None:
        """Remove the downloads that were taken in: the model exists and has them."""
        for partial in self._taken:
            self.partials.forget(partial)
        self._taken.clear()

    def write(
        self, name: str, chunks: Iterable[bytes], *, size_bytes: int, sha256: str | None
    ) -> None:
        """Take in one file, checking it on the way.

        Args:
            name: Its name within the model.
            chunks: Its content.
            size_bytes: Its length as promised; never is more than this written.
            sha256: Its hash as promised; None if none was.

        Raises:
            ChecksumMismatchError: Length or hash are not as promised.
            InvalidReferenceError: The cache does not admit the name.
            StorageFullError: The disk is full.
        """
        file = self._next_file()
        digest, num_bytes = hashlib.sha256(), 0
        with storage(self.folder), file.open("wb") as stream:
            for chunk in chunks:
                num_bytes += len(chunk)
                if num_bytes > size_bytes:
                    break
                digest.update(chunk)
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
            os.fchmod(stream.fileno(), 0o444)  # shared by every model that has this content
        if num_bytes != size_bytes:
            more = "more than " if num_bytes > size_bytes else ""
            raise ChecksumMismatchError(
                f"{name} of {self.ref} has {more}{min(num_bytes, size_bytes):,} bytes, "
                f"{size_bytes:,} were promised",
                hint="Pull it again; if that does not help, report it to the publisher.",
            )
        if sha256 not in (None, digest.hexdigest()):
            raise ChecksumMismatchError(
                f"{name} of {self.ref} has the SHA-256 {digest.hexdigest()}, not {sha256}",
                hint="Pull it again; if that does not help, report it to the publisher.",
            )
        entry = FileEntry(name=name, size_bytes=size_bytes, sha256=digest.hexdigest())
        self._files[entry] = file

    def _next_file(self) -> Path:
        # One that is there is never opened again: it may be shared with a model.
        return self.folder / f"{next(self._numbers)}.part"
