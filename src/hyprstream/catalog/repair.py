"""Mends a damaged model: sound files stay, and only what this disk has not is fetched again."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from hyprstream.catalog import checks
from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.card import FileEntry, ModelCard, Progress
from hyprstream.catalog.records import Damage, Repair
from hyprstream.catalog.shelf import Shelf
from hyprstream.catalog.staging import Staging
from hyprstream.errors import ChecksumMismatchError, CorruptManifestError, UnsupportedError
from hyprstream.files import inside, storage
from hyprstream.refs import ModelRef

Fetch = Callable[[ModelRef, Staging, Progress, Sequence[str]], ModelCard]
"""Brings a model, if its registry can choose only the files of these names."""


def repair(cache: ModelCache, fetch: Fetch, ref: ModelRef, progress: Progress) -> Repair:
    """Make one revision what it was when it was fetched.

    Files that do not belong to it go to quarantine. A registry that says before a download
    what a file will hold (`Staging.reuse`) sends the damaged files only, any other sends all.

    Args:
        cache: Where the model is.
        fetch: How its registry brings it.
        ref: The model, with its revision.
        progress: Told what is being done.

    Raises:
        ModelNotFoundError: Its registry does not have it any more.
        RegistryUnreachableError: Its registry did not answer.
        ChecksumMismatchError: Its registry has something else under this revision now.
        UnsupportedError: Its weights were removed, and the damage is in what was kept.
        StorageFullError: The disk is full.
    """
    with cache.stage(ref, progress) as staging:
        with storage(cache.shelf.root):
            damages = checks.verify_readable(cache.shelf, ref, progress)
            foreign = [damage.file for damage in damages if damage.foreign]
            moved = _quarantine(cache.shelf, ref, foreign)
        own = [damage for damage in damages if not damage.foreign]
        if own:
            _mend(cache, fetch, staging, own, progress)
    return Repair(
        ref=ref,
        damages=tuple(damages),
        fetched_bytes=staging.fetched_bytes,
        quarantined=tuple(moved),
    )


def _mend(
    cache: ModelCache, fetch: Fetch, staging: Staging, damages: list[Damage], progress: Progress
) -> None:
    ref, shelf = staging.ref, cache.shelf
    card: ModelCard | None = None
    with suppress(CorruptManifestError):  # what it was is then for its registry to say
        card = shelf.card(shelf.manifest_file(ref))
    if card is not None:
        if shelf.description_file(ref).exists():
            raise UnsupportedError(
                f"{ref} is here without its weights, and what was kept of it is damaged: "
                f"{damages[0].file} {damages[0].problem}",
                hint=f"Fetch all of it with `hyprstream model pull {ref}`.",
            )
        _trust_sound(shelf, staging, card, {damage.file for damage in damages})
    if card is None or not _take(staging, card.files):
        names = [] if card is None else [entry.name for entry in card.files]
        fetched = fetch(ref, staging, progress, names)
        card = card or fetched
        lacking = set(card.files) - set(staging.files)
        if lacking:
            raise ChecksumMismatchError(
                f"{fetched.source} has something else under {ref} now: "
                f"{sorted(entry.name for entry in lacking)[0]} is another file",
                hint="Remove the model and pull it again to take what is there now.",
            )
    cache.commit(staging, card)


def _trust_sound(shelf: Shelf, staging: Staging, card: ModelCard, damaged: set[str]) -> None:
    """Let what was found to be sound a moment ago be taken without reading it again."""
    for entry in card.files:
        if entry.name not in damaged:
            staging.trust(entry.sha256, inside(shelf.view(card.ref), entry.name))


def _take(staging: Staging, entries: Iterable[FileEntry]) -> bool:
    """Take all files from this disk, or none."""
    entries = tuple(entries)
    for entry in entries:
        file = staging.find(entry.sha256)
        if file is None:
            return False
        staging.trust(entry.sha256, file)
    return all(
        staging.reuse(entry.name, size_bytes=entry.size_bytes, sha256=entry.sha256)
        for entry in entries
    )


def _quarantine(shelf: Shelf, ref: ModelRef, names: Iterable[str]) -> list[Path]:
    """Move files out of a model, each time to a folder that is not there yet."""
    numbers = (str(number) for number in itertools.count(1))
    folders = (inside(shelf.quarantine(ref), number) for number in numbers)
    folder = next(folder for folder in folders if not folder.exists())
    moved = []
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shelf.view(ref) / name).rename(target)
        moved.append(target)
    return moved
