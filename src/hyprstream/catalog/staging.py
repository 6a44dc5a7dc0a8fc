"""Where a model is put together before it exists: files that no reader can see yet.

A `Staging` belongs to whoever holds the lock of its model, and to one thread.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from hyprstream.catalog.card import FileEntry
from hyprstream.errors import ChecksumMismatchError, StorageFullError
from hyprstream.files import link, sha256_of, storage
from hyprstream.refs import ModelRef


class Staging:
    """The files of one model on their way into the cache.

    Attributes:
        ref: What is being fetched, as it was asked for.
        folder: Room for whatever else a registry needs on the way; removed with the staging.
    """

    def __init__(
        self, ref: ModelRef, folder: Path, *, known: Callable[[str], Path] | None = None
    ) -> None:
        """Begin with no files.

        Args:
            ref: What is being fetched.
            folder: Where to put it.
            known: Where content of a given SHA-256 lies, if it is there and sound.
        """
        self.ref = ref
        self.folder = folder
        self._files: dict[FileEntry, Path] = {}
        self._known = known
        self._sound: dict[str, Path] = {}
        self._reused: set[FileEntry] = set()
        self._numbers = itertools.count()

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """What has been written so far."""
        return tuple(self._files)

    @property
    def fetched_bytes(self) -> int:
        """How much of it was not here already."""
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

    def holds(self, sha256: str) -> bool:
        """Find out whether content is on this disk already, reading it unless it is trusted."""
        if sha256 not in self._sound and self._known is not None:
            file = self._known(sha256)
            with storage(self.folder), suppress(FileNotFoundError):  # collected a moment ago
                if sha256_of(file) == sha256:
                    self._sound[sha256] = file
        return sha256 in self._sound

    def reuse(self, name: str, *, size_bytes: int, sha256: str) -> bool:
        """Take one file from this disk if its content is here, such as that of another revision.

        Args:
            name: Its name within the model.
            size_bytes: Its length, as promised with the hash.
            sha256: Its hash.

        Returns:
            Whether it is now written; if not, it has to be fetched.

        Raises:
            InvalidReferenceError: The cache does not admit the name.
        """
        entry = FileEntry(name=name, size_bytes=size_bytes, sha256=sha256)
        if not self.holds(sha256):
            return False
        file = self._new_part()
        with storage(self.folder):
            try:
                link(self._sound[sha256], file)
            except FileNotFoundError:  # collected a moment ago
                del self._sound[sha256]
                return False
            if file.stat().st_size != size_bytes:  # a promise that cannot be kept
                return False
        self._files[entry] = file
        self._reused.add(entry)
        return True

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
        file = self._new_part()
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

    def _new_part(self) -> Path:
        """Name a file that is not there: what was there may be shared with a model."""
        return self.folder / f"{next(self._numbers)}.part"
