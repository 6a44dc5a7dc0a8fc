"""The operations by which the store changes a disk, each on its own.

They are methods of one object, so that a test can let any of them fail, or end the program
before it, after it or in the middle of it. Looking at the disk is not among them.
"""

import os
import sqlite3
from pathlib import Path

from hyprstream import files


class Disk:
    """The disk of this machine."""

    def create(self, file: Path) -> int:
        """Make a file that does not exist yet; return its descriptor, open for writing."""
        return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write the beginning of `data`; return how many bytes that was."""
        return os.write(descriptor, data)

    def finish(self, descriptor: int) -> None:
        """Return when what was written would survive a loss of power; it is read-only then."""
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, in place of what had it."""
        source.rename(target)

    def remove(self, file: Path) -> None:
        """Take away a name; a file that is open or mapped lives on without it."""
        file.unlink()

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in `folder` would survive a loss of power."""
        files.sync_folder(folder)

    def connect(self, file: Path, *, timeout_s: float) -> sqlite3.Connection:
        """Open a database, or make one; changes of others are waited for so long."""
        return sqlite3.connect(
            file, timeout=timeout_s, isolation_level=None, check_same_thread=False
        )

    def commit(self, connection: sqlite3.Connection) -> None:
        """Make a transaction happen; it would survive a loss of power then."""
        connection.execute("COMMIT")
