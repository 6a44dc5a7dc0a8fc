"""Files and folders that appear whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyprstream.errors import InvalidInputError, StorageFullError, UnavailableError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK})


@contextmanager
def replacing(target: Path, *, force: bool, is_folder: bool) -> Iterator[Path]:
    """Give a place to write to, which becomes `target` when all of it is on the disk.

    If the block fails, nothing is left of it, and what was at `target` is still there.

    Args:
        target: The final name. Its folder is made if it is missing.
        force: Replace what is there: a file by a file, a folder by a folder.
        is_folder: The place is a folder that exists; otherwise a file that does not.

    Raises:
        InvalidInputError: There is something, and it may not be replaced.
        StorageFullError: The disk is full.
        UnavailableError: The disk refused.
    """
    check_free(target, force=force, is_folder=is_folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            place = scratch / "new"
            if is_folder:
                place.mkdir()
            yield place
            _sync(place)
            _put(place, target, scratch, force=force, is_folder=is_folder)
            _sync_one(target.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise StorageFullError(
                f"no room left to write {target}: {reason}", hint="Free some space."
            ) from error
        raise UnavailableError(
            f"{target} cannot be written: {reason}",
            hint="Check its folder and who may write there.",
        ) from error


def check_free(target: Path, *, force: bool, is_folder: bool) -> None:
    """Make sure that `target` may be written.

    Raises:
        InvalidInputError: There is something, and it may not be replaced.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise InvalidInputError(
            f"{target} is there already", hint="Choose another name, or ask to replace it."
        )
    if target.is_symlink() or target.is_dir() != is_folder:
        what = "folder" if is_folder else "file"
        raise InvalidInputError(
            f"{target} is there already and is no {what}", hint="Choose another name."
        )


def _put(place: Path, target: Path, scratch: Path, *, force: bool, is_folder: bool) -> None:
    if is_folder:
        _put_folder(place, target, scratch / "old", force=force)
    elif force:
        place.replace(target)
    else:
        _put_file(place, target)


def _put_folder(place: Path, target: Path, old: Path, *, force: bool) -> None:
    """Rename a folder; two cannot be exchanged in one step, so for a moment there is neither."""
    if not target.exists():
        place.rename(target)
        return
    if not force:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    target.rename(old)
    try:
        place.rename(target)
    except OSError:
        old.rename(target)
        raise


def _put_file(place: Path, target: Path) -> None:
    """Name a file, unless somebody else has put one there in the meantime."""
    try:
        target.hardlink_to(place)
    except OSError as error:
        if error.errno not in _NO_LINKS or target.exists():
            raise
        place.replace(target)


def _sync(path: Path) -> None:
    """Return when a file, or a folder and its files, would survive a loss of power."""
    for file in (path, *(path.rglob("*") if path.is_dir() else ())):
        _sync_one(file)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
