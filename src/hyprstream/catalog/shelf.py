"""Where everything in a model cache lies, and looking at it: no locks, no changes.

    blobs/sha256/<hash>                      content, read-only, each only once
    models/<scheme>/<name>/<revision>/...    what loaders open: hard links to blobs
    manifests/<scheme>/<name>/<revision>.json   the model exists if and only if this does
    manifests/<scheme>/<name>/<revision>.described   what it is, if its weights were removed
    manifests/<scheme>/<name>/newest         the revision that a reference without one means
    manifests/<scheme>/<name>/<label>.label  the revision that a branch was when it was fetched
    quarantine/<scheme>+<name>/<revision>/...   files that lay in a model and are not of it
    locks/  temp/                            one lock per model and one for the whole; staging
    partial/                                 downloads that are not complete; see partials.py

A slash in a name or revision is written %2F and a tag follows after %3A, so every model has a
folder of its own. Looking works on a read-only disk.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote

from hyprstream.catalog import manifest
from hyprstream.catalog.card import ModelCard
from hyprstream.catalog.partials import Partials
from hyprstream.catalog.records import CachedModel, State
from hyprstream.errors import CorruptManifestError, InvalidReferenceError, ModelNotFoundError
from hyprstream.files import inside
from hyprstream.refs import URL_SCHEMES, ModelRef

log = logging.getLogger(__name__)

DESCRIBED = ".described"
LABEL = ".label"
_MAX_FOLDER_NAME = 210  # with a scheme before and ".lock" behind it fits a file name of 255 bytes
_MAX_DESCRIPTION_BYTES = 4 << 20


class Shelf:
    """The folder of a model cache.

    Attributes:
        root: Its path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def resolve(self, ref: ModelRef) -> ModelRef | None:
        """Give a reference the revision that it was last fetched as."""
        if ref.revision is None or not self.manifest_file(ref).exists():
            revision = self._named_in(self.label_file(ref), ref) or ref.revision
        else:
            revision = ref.revision
        return None if revision is None else replace(ref, revision=revision)

    def newest(self, ref: ModelRef) -> str | None:
        """Read which revision a reference without one means."""
        return self._named_in(self.newest_file(ref), ref)

    def model(self, manifest_file: Path) -> CachedModel | None:
        """Read what a manifest says; None if it is not there or cannot be believed."""
        try:
            card = self.card(manifest_file)
            fetched_at = datetime.fromtimestamp(manifest_file.stat().st_mtime, UTC)
            path = inside(self.view(card.ref), card.entry)
            state = self._state(card)
        except FileNotFoundError:
            return None
        except (CorruptManifestError, InvalidReferenceError) as error:
            log.warning("%s", error)
            return None
        return CachedModel(card=card, path=path, fetched_at=fetched_at, state=state)

    def card(self, manifest_file: Path) -> ModelCard:
        """Read the card of a model.

        Raises:
            FileNotFoundError: There is no such manifest.
            CorruptManifestError: It is no manifest, or that of another model.
        """
        card = manifest.load(manifest_file)
        if self.manifest_file(card.ref) != manifest_file:
            raise CorruptManifestError(manifest_file, f"it says that it is {card.ref}")
        return card

    def ref(self, manifest_file: Path) -> ModelRef | None:
        """Tell which model a manifest describes; from its place, if it cannot be read.

        None if it is gone, or neither says.
        """
        try:
            return self.card(manifest_file).ref
        except FileNotFoundError:
            return None
        except CorruptManifestError:
            scheme, name = (unquote(part) for part in manifest_file.parts[-3:-1])
            mark = "#sha256=" if scheme in URL_SCHEMES else "@"
        with suppress(InvalidReferenceError):
            ref = ModelRef.parse(f"{scheme}://{name}{mark}{unquote(manifest_file.stem)}")
            if self.manifest_file(ref) == manifest_file:
                return ref
        return None

    def present(self, card: ModelCard) -> Iterator[str]:
        """List the hashes of what a model has on the disk, as far as names and lengths tell."""
        view = self.view(card.ref)
        for entry in card.files:
            with suppress(FileNotFoundError, InvalidReferenceError):  # a link leads out of it
                file = inside(view, entry.name)
                if file.is_file() and file.stat().st_size == entry.size_bytes:
                    yield entry.sha256

    def description(self, ref: ModelRef) -> bytes | None:
        """Read what was written down of a model when its weights were removed."""
        try:
            with self.description_file(ref).open("rb") as stream:
                return stream.read(_MAX_DESCRIPTION_BYTES)
        except FileNotFoundError:
            return None

    def manifest_files(self) -> list[Path]:
        """List all manifests."""
        return sorted(self.root.glob("manifests/*/*/*.json"))

    def manifest_file(self, ref: ModelRef) -> Path:
        """Where the manifest of a model lies."""
        return self._beside(ref, f"{_escape(ref.revision or '')}.json")

    def description_file(self, ref: ModelRef) -> Path:
        """Where the description of a model without weights lies."""
        return self._beside(ref, f"{_escape(ref.revision or '')}{DESCRIBED}")

    def newest_file(self, ref: ModelRef) -> Path:
        """Where the newest revision of a model is named."""
        return self._beside(ref, "newest")

    def label_file(self, ref: ModelRef) -> Path:
        """Where it is written what a reference that may move was last fetched as."""
        if ref.revision is None:
            return self.newest_file(ref)
        return self._beside(ref, f"{_escape(ref.revision)}{LABEL}")

    def stray_labels(self, ref: ModelRef) -> list[Path]:
        """List what names a revision of a model that is not there."""
        labels = sorted(self.newest_file(ref).parent.glob(f"*{LABEL}"))
        named = [(label, self._named_in(label, ref)) for label in labels]
        return [
            label
            for label, revision in named
            if not revision or not self.manifest_file(replace(ref, revision=revision)).exists()
        ]

    def view(self, ref: ModelRef) -> Path:
        """Return the folder of a model's files."""
        revision = _escape(ref.revision or "")
        return inside(self.root, "models", ref.scheme, _folder_name(ref), revision)

    def blob(self, sha256: str) -> Path:
        """Where content lies."""
        return inside(self.root, "blobs", "sha256", sha256)

    def attempts(self, ref: ModelRef) -> Path:
        """Return the folder in which a model is put together."""
        return inside(self.root, "temp", key_of(ref))

    def quarantine(self, ref: ModelRef) -> Path:
        """Return the folder for files that lay in a model and are not of it."""
        return inside(self.root, "quarantine", key_of(ref), _escape(ref.revision or ""))

    @property
    def partials(self) -> Partials:
        """Downloads that are not complete."""
        return Partials(inside(self.root, "partial"))

    def lock_file(self, key: str) -> Path:
        """Where the lock of a model lies, or that of the `cache`."""
        return inside(self.root, "locks", f"{key}.lock")

    def _state(self, card: ModelCard) -> State:
        if len(list(self.present(card))) == len(card.files):
            return "complete"
        return "metadata only" if self.description_file(card.ref).exists() else "incomplete"

    def _named_in(self, file: Path, ref: ModelRef) -> str | None:
        try:
            return replace(ref, revision=file.read_text("ascii")).revision
        except (FileNotFoundError, InvalidReferenceError, UnicodeDecodeError):
            return None

    def _beside(self, ref: ModelRef, name: str) -> Path:
        return inside(self.root, "manifests", ref.scheme, _folder_name(ref), name)


def key_of(ref: ModelRef) -> str:
    """Name a model without its revision, as its lock does."""
    return f"{ref.scheme}+{_folder_name(ref)}"


def _escape(text: str) -> str:
    return quote(text, safe="+")


def _folder_name(ref: ModelRef) -> str:
    """Name the folder of a model; a long name is cut and its hash, after a #, put behind."""
    escaped = _escape(ref.full_name)
    if len(escaped) <= _MAX_FOLDER_NAME:
        return escaped
    return f"{escaped[:120]}#{hashlib.sha256(escaped.encode()).hexdigest()}"


def absent(ref: ModelRef) -> ModelNotFoundError:
    """Say that a model is not in the cache."""
    return ModelNotFoundError(
        f"{ref} is not in the model cache",
        hint=f"Fetch it with `hyprstream model pull {ref}`, or see `hyprstream model list`.",
    )
