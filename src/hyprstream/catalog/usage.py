"""What a model cache takes of the disk, told without changing it."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hyprstream.catalog.leftovers import alone, found, size_of, wanted
from hyprstream.catalog.records import CachedModel, CacheStatus, ModelUsage
from hyprstream.catalog.shelf import Shelf
from hyprstream.files import is_locked


def measure(shelf: Shelf, models: Sequence[CachedModel]) -> CacheStatus:
    """Count what the cache holds.

    Args:
        shelf: Its folder.
        models: The models in it.
    """
    sizes = {blob.name: size_of(blob) for blob in shelf.root.glob("blobs/sha256/*")}
    contents = [wanted(shelf, model) & sizes.keys() for model in models]
    owners = Counter(sha256 for content in contents for sha256 in content)
    num_owners = dict.fromkeys(sizes, 0) | owners

    def total(count: int) -> int:
        return sum(sizes[sha256] for sha256, owned in num_owners.items() if owned == count)

    unique_bytes, unused_bytes = total(1), total(0)
    return CacheStatus(
        folder=shelf.root,
        models=tuple(
            ModelUsage(
                ref=model.card.ref,
                state=model.state,
                size_bytes=sum(sizes[sha256] for sha256 in content),
                unique_bytes=sum(sizes[sha256] for sha256 in content if owners[sha256] == 1),
            )
            for model, content in zip(models, contents, strict=True)
        ),
        num_unreadable=len(shelf.manifest_files()) - len(models),
        total_bytes=_on_disk(shelf.root),
        unique_bytes=unique_bytes,
        shared_bytes=sum(sizes.values()) - unique_bytes - unused_bytes,
        unused_bytes=unused_bytes,
        staged_bytes=sum(
            _on_disk(folder)
            for folder in shelf.root.glob("temp/*")
            if is_locked(shelf.lock_file(folder.name))
        ),
        partial_bytes=alone(shelf.root / "partial"),
        leftovers=tuple(found(shelf, partials=False)),
        free_bytes=shutil.disk_usage(_existing(shelf.root)).free,
    )


def _on_disk(folder: Path) -> int:
    """Length of all files below a folder, a file with several names counted once."""
    sizes = {}
    for file in folder.rglob("*"):
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        if not file.is_dir():
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
