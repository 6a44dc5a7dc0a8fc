"""Payloads on disk: read-only files named by the SHA-256 of their content, each only once.

A payload is written under a name that means nothing, and gets its own when all of it is on
the disk. Whoever reads one holds a shared lock on the file; a lock ends with the process that
holds it, however that ends.
"""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from hyprstream.errors import ChecksumMismatchError, InvalidAdapterError
from hyprstream.files import CHUNK_BYTES, inside
from hyprstream.store.disk import Disk
from hyprstream.store.manifest import Payload


class Content:
    """The payloads below one folder. Calls are made within `files.storage`."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self._disk = disk
        self._folder = root / "payloads"
        self._temp = root / "temp"

    def prepare(self) -> None:
        """Make the folders."""
        for folder in (self._folder, self._temp):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Name the file of a payload."""
        return inside(self._folder, sha256)

    def put(self, payload: bytes | Path) -> Payload:
        """Take in a copy of a payload; it would survive a loss of power then.

        Raises:
            InvalidAdapterError: It is a file that cannot be read.
        """
        temporary = self._temp / uuid.uuid4().hex
        try:
            kept = self._write(temporary, _chunks(payload))
            file = self.path(kept.sha256)
            # One that is sound stays: readers hold locks on it. One that is damaged is healed.
            if problem(kept, file):
                self._disk.rename(temporary, file)
            else:
                self._disk.remove(temporary)
        except (OSError, InvalidAdapterError):
            temporary.unlink(missing_ok=True)  # what a full disk needs most
            raise
        # Even if the file was there: another process may have named it a moment ago.
        self._disk.sync_folder(self._folder)
        return kept

    def hold(self, payload: Payload) -> int:
        """Open a payload and lock it against collection; closing the descriptor ends that.

        Raises:
            ChecksumMismatchError: It is not there.
        """
        try:
            descriptor = os.open(self.path(payload.sha256), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise _mismatch(payload, "is missing") from error
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    def check(self, payload: Payload, descriptor: int) -> None:
        """Read a payload and compare it with what it should be.

        Raises:
            ChecksumMismatchError: It is something else.
        """
        wrong = _difference(payload, descriptor)
        if wrong:
            raise _mismatch(payload, wrong)

    def is_held(self, sha256: str) -> bool:
        """Tell whether anybody reads a payload, in this process or another one."""
        try:
            descriptor = os.open(self.path(sha256), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def unused(self, kept: set[str]) -> list[str]:
        """List the payloads that are there and not among those to keep."""
        return sorted({file.name for file in self._folder.iterdir()} - kept)

    def leftovers(self) -> list[Path]:
        """List what is being written, or was when its writer was killed."""
        return sorted(self._temp.iterdir())

    def remove(self, files: Iterable[Path]) -> int:
        """Remove files, unless another collection was faster; return the bytes freed."""
        freed_bytes = 0
        for file in files:
            try:
                size_bytes = file.lstat().st_size
                self._disk.remove(file)
            except FileNotFoundError:
                continue
            freed_bytes += size_bytes
        return freed_bytes

    def _write(self, file: Path, chunks: Iterator[bytes]) -> Payload:
        digest, size_bytes = hashlib.sha256(), 0
        descriptor = self._disk.create(file)
        try:
            for chunk in chunks:
                digest.update(chunk)
                size_bytes += len(chunk)
                rest = memoryview(chunk)
                while rest:
                    rest = rest[self._disk.write(descriptor, rest) :]
            self._disk.finish(descriptor)
        finally:
            os.close(descriptor)
        return Payload(sha256=digest.hexdigest(), size_bytes=size_bytes)


def problem(payload: Payload, file: Path) -> str:
    """Say how a file differs from the payload that it should be; "" if it does not."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return "is missing"
    try:
        return _difference(payload, descriptor)
    finally:
        os.close(descriptor)


def _difference(payload: Payload, descriptor: int) -> str:
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes != payload.size_bytes:
        return f"has {size_bytes:,} bytes instead of {payload.size_bytes:,}"
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return "" if found == payload.sha256 else "has other content of the same length"


def _mismatch(payload: Payload, wrong: str) -> ChecksumMismatchError:
    return ChecksumMismatchError(
        f"the stored payload {payload.sha256} {wrong}",
        hint="Commit or import the same adapter again; that replaces what is damaged.",
    )


def _chunks(payload: bytes | Path) -> Iterator[bytes]:
    if isinstance(payload, bytes):
        yield payload
        return
    try:
        with payload.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise InvalidAdapterError(f"{payload} cannot be read: {error.strerror}") from error
