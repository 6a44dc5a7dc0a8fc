"""Whether cached files are what was fetched: reads and hashes them. Changes nothing."""

import hashlib
from pathlib import Path

from hyprstream.catalog.card import FileEntry, Progress, holds_weights
from hyprstream.catalog.records import Damage
from hyprstream.catalog.shelf import Shelf, absent
from hyprstream.errors import CorruptManifestError
from hyprstream.files import CHUNK_BYTES
from hyprstream.refs import ModelRef

_MAX_ATTEMPTS = 3


def verify(shelf: Shelf, ref: ModelRef, progress: Progress) -> list[Damage]:
    """Compare the files of one revision with its manifest; takes no lock.

    A model that is fetched again meanwhile is looked at again.

    Raises:
        ModelNotFoundError: It is not in the cache, or not for long enough.
        CorruptManifestError: What should be in it cannot be known.
    """
    file = shelf.manifest_file(ref)
    for _ in range(_MAX_ATTEMPTS):
        try:
            before = file.stat()
            damages = _compare(shelf, ref, progress)
            after = file.stat()
        except FileNotFoundError:
            continue
        if (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
            return damages
    raise absent(ref)


def problem(entry: FileEntry, file: Path | None, progress: Progress) -> str:
    """Say how a file differs from what it should be; "" if it does not."""
    if file is None:
        return "is missing"
    if file.is_symlink():
        return "is a symbolic link"
    if not file.is_file():
        return "is not a file"
    size_bytes = file.stat().st_size
    if size_bytes != entry.size_bytes:
        return f"has {size_bytes:,} bytes instead of {entry.size_bytes:,}"
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            progress.advance(len(chunk))
    same = digest.hexdigest() == entry.sha256
    return "" if same else "has other content of the same length"


def _compare(shelf: Shelf, ref: ModelRef, progress: Progress) -> list[Damage]:
    card, view = shelf.card(shelf.manifest_file(ref)), shelf.view(ref)
    found = {
        file.relative_to(view).as_posix(): file
        for file in view.rglob("*")
        if file.is_symlink() or not file.is_dir()
    }
    entries = {entry.name: entry for entry in card.files}
    if shelf.description_file(ref).exists():  # its weights were removed on purpose
        entries = {
            name: entry
            for name, entry in entries.items()
            if name in found or not holds_weights(name)
        }
    damages = []
    progress.start(f"verifying {ref}", sum(entry.size_bytes for entry in entries.values()))
    for name, entry in entries.items():
        progress.start(name, entry.size_bytes)
        if wrong := problem(entry, found.get(name), progress):
            damages.append(Damage(ref=ref, file=name, problem=wrong))
        progress.done()
    progress.done()
    foreign = [
        Damage(ref=ref, file=name, problem="does not belong there", foreign=True)
        for name in found.keys() - {entry.name for entry in card.files}
    ]
    return sorted([*damages, *foreign], key=lambda damage: damage.file)


def verify_readable(shelf: Shelf, ref: ModelRef, progress: Progress) -> list[Damage]:
    """Do as `verify`; a manifest that cannot be read is damage too."""
    try:
        return verify(shelf, ref, progress)
    except CorruptManifestError as error:
        return [Damage(ref=ref, file="", problem=f"its manifest cannot be read: {error}")]
