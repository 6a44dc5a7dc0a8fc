"""Where a model is put together before it exists: files that no reader can see yet.

A `Staging` belongs to whoever holds the lock of its model, and to one thread.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from hyprstream.catalog.card import FileEntry
from hyprstream.errors import ChecksumMismatchError, StorageFullError
from hyprstream.files import storage
from hyprstream.refs import ModelRef


class Staging:
    """The files of one model on their way into the cache.

    Attributes:
        ref: What is being fetched, as it was asked for.
        folder: Room for whatever else a registry needs on the way; removed with the staging.
    """

    def __init__(self, ref: ModelRef, folder: Path) -> None:
        self.ref = ref
        self.folder = folder
        self._files: dict[FileEntry, Path] = {}

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """What has been written so far."""
        return tuple(self._files)

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
        file = self.folder / f"{len(self._files)}.part"
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
