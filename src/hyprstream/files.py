"""The file operations that whatever is kept on disk is made of: stay inside, replace whole, lock.

Everything here is safe against a kill at any moment: a file has its final name only when all
of it is on the disk, and a lock ends with the process that holds it.
"""

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from hyprstream.errors import (
    CacheBusyError,
    InvalidReferenceError,
    InvalidSettingsError,
    StorageFullError,
    UnavailableError,
)

CHUNK_BYTES = 1 << 20

_PRIVATE_BYTES = 1 << 20  # of a private file

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV})


@runtime_checkable
class Waiting(Protocol):
    """Follows waiting: is told that a lock is held by somebody else, and when it no longer is."""

    def start(self, name: str, total_bytes: None) -> None:
        """Begin to wait for what `name` says; how long is not known."""
        ...

    def done(self) -> None:
        """End the waiting."""
        ...


def inside(root: Path, *parts: str) -> Path:
    """Join names to a folder; the one place where text becomes a path.

    Raises:
        InvalidReferenceError: The result would lie outside `root`, symbolic links followed.
    """
    path = root.joinpath(*parts)
    if not path.resolve().is_relative_to(root.resolve()):
        raise InvalidReferenceError(f"{'/'.join(parts)!r} leads out of the folder {root}")
    return path


@contextmanager
def storage(folder: Path) -> Iterator[None]:
    """Turn what the disk says into errors that tell a user what to do.

    Raises:
        StorageFullError: The disk, a quota or a limit on file sizes is exhausted.
        InvalidSettingsError: The folder may not be used.
        UnavailableError: The disk failed in another way.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise StorageFullError(
                f"no room left to write under {folder}: {reason}",
                hint=f"Free some space, or keep {folder} on another disk.",
            ) from error
        if error.errno in _FORBIDDEN:
            raise InvalidSettingsError(
                f"the folder {folder} cannot be used: {reason}",
                hint="Make the folder writable, or choose another one.",
            ) from error
        raise UnavailableError(
            f"the folder {folder} failed: {reason}",
            hint="Check the disk, or set HYPRSTREAM_HOME to a folder on another one.",
        ) from error


def write_atomic(file: Path, content: bytes, *, scratch: Path) -> None:
    """Give `file` this content: whoever looks sees all of it, or what was there before.

    Args:
        file: The final name.
        content: What it shall hold.
        scratch: A folder on the same disk for the file while it is incomplete.
    """
    temporary = scratch / f"{file.name}.new"
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Return when the names in `folder` would survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link(existing: Path, file: Path) -> None:
    """Give a file a second name; unlike a symbolic link this needs no privileges anywhere.

    Raises:
        InvalidSettingsError: The file system has no hard links.
    """
    try:
        file.hardlink_to(existing)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise InvalidSettingsError(
            f"the file system of {file.parent} has no hard links: {error.strerror}",
            hint=f"Keep {file.parent} on another disk.",
        ) from error


def sha256_of(file: Path) -> str:
    """Hash the content of `file`, in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def lock(file: Path, what: str, waiting: Waiting | None) -> Iterator[None]:
    """Hold the lock that `file` stands for, against other processes and other threads.

    Args:
        file: Made if absent, and left behind: removing it would let two holders in.
        what: What the lock guards, for the message.
        waiting: Told about waiting for another holder; None does not wait.

    Raises:
        CacheBusyError: Another holder has it, and waiting is not wanted.
    """
    descriptor = _open_lock(file)
    try:
        with storage(file.parent):
            if not _try_lock(descriptor):
                if waiting is None:
                    raise CacheBusyError(
                        f"another process is working on {what}", hint="Try again when it is done."
                    )
                waiting.start(f"waiting for another process that works on {what}", None)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                waiting.done()
        yield
    finally:
        os.close(descriptor)  # ends the lock


@contextmanager
def hold(file: Path, *, shared: bool) -> Iterator[None]:
    """Wait for the lock that `file` stands for and hold it, alone or with others that share it.

    Args:
        file: As in `lock`, with which it excludes itself.
        shared: Admit others who share it.
    """
    descriptor = _open_lock(file)
    try:
        with storage(file.parent):
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_locked(file: Path) -> bool:
    """Tell whether somebody holds the lock that `file` stands for; works on a read-only disk."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class PrivateFile:
    """A small file that nobody but its owner can read: mode 0600 in a folder of mode 0700.

    Args:
        folder: For this file alone; made with it.
        name: Of the file.
        remedy: What to do about a file that cannot be used.
        leak: What to do when others may have read it.
    """

    def __init__(self, folder: Path, name: str, *, remedy: str, leak: str) -> None:
        self._folder = folder
        self._remedy = remedy
        self._leak = leak
        self.path = folder / name

    def read(self) -> bytes | None:
        """Read it; None where there is none.

        Raises:
            InvalidSettingsError: Others may read or write it, or it cannot be read.
        """
        try:
            # A link could lead to a file that somebody else writes.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidSettingsError(
                f"{self.path} cannot be read: {error.strerror}", hint=self._remedy
            ) from error
        with os.fdopen(descriptor, "rb") as stream:
            self._check(os.fstat(descriptor))
            content = stream.read(_PRIVATE_BYTES + 1)
        if len(content) > _PRIVATE_BYTES:
            raise InvalidSettingsError(
                f"{self.path} is damaged: it is longer than {_PRIVATE_BYTES} bytes",
                hint=self._remedy,
            )
        return content

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep others from changing it; waits for them, which takes milliseconds.

        Raises:
            InvalidSettingsError: The folder cannot be written.
        """
        with storage(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.chmod(stat.S_IRWXU)
        with lock(self._folder / "lock", str(self.path), _Silent()):
            yield

    def write(self, content: bytes) -> None:
        """Replace it as a whole, while `changing`; errors as in `storage`."""
        temporary = self.path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with storage(self._folder):
            temporary.unlink(missing_ok=True)
            with os.fdopen(os.open(temporary, flags, stat.S_IRUSR | stat.S_IWUSR), "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self.path)
            sync_folder(self._folder)

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise InvalidSettingsError(
                f"{self.path} is no file of this user and is not read", hint=self._remedy
            )
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InvalidSettingsError(
                f"{self.path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}) "
                "and is not read",
                hint=f"Run `chmod 600 {self.path}`; {self._leak}",
            )


class _Silent:
    """Waits without a word."""

    def start(self, name: str, total_bytes: None) -> None:
        """Say nothing."""

    def done(self) -> None:
        """Say nothing."""


def _open_lock(file: Path) -> int:
    with storage(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o644)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
