"""What lies in a model cache and leads nowhere, and how it is removed.

The functions that remove are called by whoever holds the cache's lock.
"""

import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from hyprstream.catalog.records import CachedModel, Leftover
from hyprstream.catalog.shelf import DESCRIBED, Shelf
from hyprstream.errors import CacheBusyError
from hyprstream.files import inside, is_locked, lock
from hyprstream.refs import ModelRef

_STALE_S = 24 * 3600.0  # a download that nobody went on with for so long


def collect(shelf: Shelf) -> int:
    """Remove what no manifest stands for; return how many bytes went free."""
    rest = [*abandoned(shelf), *unused_folders(shelf), *unused_content(shelf)]
    kept = frozenset(file.stat().st_ino for file in shelf.root.glob("blobs/sha256/*"))
    return shelf.partials.collect(kept=kept) + sum(remove(shelf, leftover) for leftover in rest)


def found(shelf: Shelf, *, partials: bool) -> list[Leftover]:
    """List everything that can go, old revisions of models excepted.

    Args:
        shelf: Where to look.
        partials: List also downloads that were going on within the last day.
    """
    return [
        *abandoned(shelf),
        *unused_folders(shelf),
        *unused_content(shelf),
        *_stopped(shelf, older_than_s=0.0 if partials else _STALE_S),
        *_quarantined(shelf),
    ]


def remove(shelf: Shelf, leftover: Leftover) -> int:
    """Remove one leftover; return how many bytes went free, 0 if it is in use again."""
    path = leftover.path
    if leftover.kind == "partial download":
        return shelf.partials.remove(path)
    if leftover.kind == "abandoned fetch":
        try:
            with lock(shelf.lock_file(path.name), path.name, None):
                shutil.rmtree(path, ignore_errors=True)
        except CacheBusyError:
            return 0
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return leftover.size_bytes


def abandoned(shelf: Shelf) -> Iterator[Leftover]:
    """List what killed processes left in temp/: a living one holds the lock of its model."""
    for folder in sorted(shelf.root.glob("temp/*")):
        if not is_locked(shelf.lock_file(folder.name)):
            yield Leftover(
                kind="abandoned fetch",
                name=folder.name,
                path=folder,
                size_bytes=alone(folder),
            )


def unused_folders(shelf: Shelf) -> Iterator[Leftover]:
    """List folders of models, and descriptions of models, whose manifests are gone."""
    for view in sorted(shelf.root.glob("models/*/*/*")):
        scheme, name, revision = view.parts[-3:]
        if not inside(shelf.root, "manifests", scheme, name, f"{revision}.json").exists():
            yield Leftover(
                kind="unused folder",
                name="/".join(view.parts[-3:]),
                path=view,
                size_bytes=alone(view),
            )
    for file in sorted(shelf.root.glob(f"manifests/*/*/*{DESCRIBED}")):
        if not file.with_suffix(".json").exists():
            yield Leftover(
                kind="unused folder",
                name="/".join(file.parts[-3:]),
                path=file,
                size_bytes=size_of(file),
            )


def unused_content(shelf: Shelf) -> Iterator[Leftover]:
    """List content that no model has; none if a manifest cannot be read.

    A newer version of this program may understand that manifest: its content stays.
    """
    used = used_content(shelf)
    if used is None:
        return
    for blob in sorted(shelf.root.glob("blobs/sha256/*")):
        if blob.name not in used:
            yield Leftover(
                kind="unused content",
                name=blob.name,
                path=blob,
                size_bytes=size_of(blob),
            )


def used_content(shelf: Shelf) -> set[str] | None:
    """List the hashes of content that models have; None if a manifest cannot be read."""
    used: set[str] = set()
    for file in shelf.manifest_files():
        model = shelf.model(file)
        if model is None:
            return None
        used |= wanted(shelf, model)
    return used


def wanted(shelf: Shelf, model: CachedModel) -> set[str]:
    """List the hashes of content that a model needs; of one without weights, what is there."""
    if model.state == "metadata only":
        return set(shelf.present(model.card))
    return {entry.sha256 for entry in model.card.files}


def old_revisions(shelf: Shelf, models: Iterable[CachedModel]) -> list[CachedModel]:
    """List models of which a newer revision is there.

    Newest is what a reference without a revision means or, if there is no such, what was
    fetched last.
    """
    families: dict[ModelRef, list[CachedModel]] = {}
    for model in models:
        families.setdefault(replace(model.card.ref, revision=None), []).append(model)
    old = []
    for family in families.values():
        named = shelf.newest(family[0].card.ref)
        latest = max(family, key=lambda model: model.fetched_at).card.ref.revision
        revisions = {model.card.ref.revision for model in family}
        newest = named if named in revisions else latest
        old += [model for model in family if model.card.ref.revision != newest]
    return old


def as_leftovers(
    shelf: Shelf, old: Iterable[CachedModel], models: Iterable[CachedModel]
) -> list[Leftover]:
    """Say of old revisions how much of the disk they alone take, each byte counted once."""
    old = list(old)
    kept = {str(model.card.ref) for model in models} - {str(model.card.ref) for model in old}
    counted: set[str] = set()
    for model in models:
        if str(model.card.ref) in kept:
            counted |= wanted(shelf, model)
    leftovers = []
    for model in old:
        alone = wanted(shelf, model) - counted
        counted |= alone
        sizes = {entry.sha256: entry.size_bytes for entry in model.card.files}
        leftovers.append(
            Leftover(
                kind="old revision",
                name=str(model.card.ref),
                path=shelf.view(model.card.ref),
                size_bytes=sum(sizes[sha256] for sha256 in alone),
            )
        )
    return leftovers


def _stopped(shelf: Shelf, *, older_than_s: float) -> Iterator[Leftover]:
    for lock_file, size_bytes in shelf.partials.idle(older_than_s=older_than_s):
        yield Leftover(
            kind="partial download", name=lock_file.stem, path=lock_file, size_bytes=size_bytes
        )


def _quarantined(shelf: Shelf) -> Iterator[Leftover]:
    for folder in sorted(shelf.root.glob("quarantine/*/*")):
        yield Leftover(
            kind="quarantined file",
            name="/".join(folder.parts[-2:]),
            path=folder,
            size_bytes=alone(folder),
        )


def alone(folder: Path) -> int:
    """Length of the files in a folder that have no other name, such as one in blobs/."""
    return sum(size_of(file, max_names=1) for file in folder.rglob("*"))


def size_of(file: Path, *, max_names: int | None = None) -> int:
    """Length of a file; 0 if it is none, is gone meanwhile, or has more names than asked for."""
    try:
        status = file.lstat()
    except FileNotFoundError:
        return 0
    named = max_names is None or status.st_nlink <= max_names
    return status.st_size if named and not stat.S_ISDIR(status.st_mode) else 0
