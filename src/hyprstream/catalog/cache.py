"""Models on this disk: shared content, one folder per model, nothing half visible.

    blobs/sha256/<hash>                      content, read-only, each only once
    models/<scheme>/<name>/<revision>/...    what loaders open: hard links to blobs
    manifests/<scheme>/<name>/<revision>.json   the model exists if and only if this does
    manifests/<scheme>/<name>/newest         the revision that a reference without one means
    locks/  temp/                            one lock per model and one for the whole; staging
    partial/                                 downloads that are not complete; see partials.py

A slash in a name or revision is written %2F and a tag follows after %3A, so every model has a
folder of its own. A model is built in temp/ and moved into place whole; its manifest is
written last and removed first. Downloading happens under the model's lock only, the short
moves also under the cache's, so that the collection of unused content never meets a model
half put together. Looking takes no lock and works on a read-only disk. POSIX only (flock).
"""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from hyprstream.catalog import manifest
from hyprstream.catalog.card import FileEntry, ModelCard, Progress, SilentProgress
from hyprstream.catalog.partials import Partials
from hyprstream.catalog.staging import Staging
from hyprstream.errors import (
    CacheBusyError,
    CorruptManifestError,
    InvalidReferenceError,
    ModelNotFoundError,
)
from hyprstream.files import (
    inside,
    link,
    lock,
    sha256_of,
    storage,
    sync_folder,
    write_atomic,
)
from hyprstream.refs import ModelRef

log = logging.getLogger(__name__)

_MAX_FOLDER_NAME = 210  # with a scheme before and ".lock" behind it fits a file name of 255 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """A model that is in the cache.

    Attributes:
        card: Its reference with revision, and its files.
        path: What to give to a loader: a file, or a folder.
        fetched_at: When it came in.
    """

    card: ModelCard
    path: Path
    fetched_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A file of a cached model that is not what was fetched.

    Attributes:
        ref: The model, with its revision.
        file: The file's name in the model.
        problem: What is wrong with it.
    """

    ref: ModelRef
    file: str
    problem: str


class ModelCache:
    """The models below one folder.

    Invariants, checked by `test_cache_properties.py`: a model that is found has every file
    whole; models with the same content share it; content that no model has is gone after
    the next `remove` or `commit`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, ref: ModelRef) -> CachedModel | None:
        """Look for a model whose files are all there, in their full length."""
        with storage(self._root):
            pinned = self._resolve(ref)
            model = None if pinned is None else self._model(self._manifest_file(pinned))
            if model is None:
                return None
            view = self._view(model.card.ref)
            for entry in model.card.files:
                file = inside(view, entry.name)
                if not file.is_file() or file.stat().st_size != entry.size_bytes:
                    log.warning("%s is incomplete: %s", model.card.ref, entry.name)
                    return None
            return model

    def models(self) -> list[CachedModel]:
        """List what is there, by reference."""
        with storage(self._root):
            models = [model for file in self._manifest_files() if (model := self._model(file))]
        return sorted(models, key=lambda model: str(model.card.ref))

    @contextmanager
    def stage(self, ref: ModelRef, progress: Progress) -> Iterator[Staging]:
        """Hold a model's lock and a fresh place to put it together; both end with the block.

        Args:
            ref: The model to be fetched.
            progress: Told about waiting, if another process is fetching it.
        """
        with lock(self._lock_file(_key(ref)), str(ref), progress):
            with storage(self._root):
                attempts = inside(self._root, "temp", _key(ref))
                # What a killed process left. Its children may live on and still write there:
                # hence a folder of a new name for this attempt.
                shutil.rmtree(attempts, ignore_errors=True)
                attempts.mkdir(parents=True, exist_ok=True)
                folder = Path(tempfile.mkdtemp(dir=attempts))
            try:
                yield Staging(
                    ref,
                    folder,
                    partials=self._partials(),
                    blobs=inside(self._root, "blobs", "sha256"),
                )
            finally:
                shutil.rmtree(attempts, ignore_errors=True)

    def commit(self, staging: Staging, card: ModelCard) -> CachedModel:
        """Make a staged model exist, in place of what had the same revision.

        Raises:
            StorageFullError: The disk is full; the model then does not exist.
        """
        view, name = staging.folder / "view", self._view(card.ref)
        manifest_file = self._manifest_file(card.ref)
        with self._locked(), storage(self._root):
            for entry in card.files:
                self._keep(entry, staging.content(entry))
                file = inside(view, entry.name)
                file.parent.mkdir(parents=True, exist_ok=True)
                link(self._blob(entry.sha256), file)
            for folder in (name.parent, manifest_file.parent):
                folder.mkdir(parents=True, exist_ok=True)
            manifest_file.unlink(missing_ok=True)
            if name.exists():
                name.replace(staging.folder / "replaced")
            view.replace(name)
            sync_folder(name.parent)
            write_atomic(manifest_file, manifest.encode(card), scratch=staging.folder)
            if staging.ref.revision is None:
                newest = (card.ref.revision or "").encode()
                write_atomic(self._newest_file(card.ref), newest, scratch=staging.folder)
            self._collect()
        staging.forget_partials()
        model = self.find(card.ref)
        assert model is not None, f"{card.ref} was committed and is not there"
        return model

    def remove(self, ref: ModelRef) -> int:
        """Remove a revision, or all of them if the reference names none.

        Returns:
            How many bytes of disk became free; content that other models share stays.

        Raises:
            ModelNotFoundError: It is not in the cache.
            CacheBusyError: It is being fetched right now.
        """
        folder = self._newest_file(ref).parent
        files = [self._manifest_file(ref)] if ref.revision else sorted(folder.glob("*.json"))
        if not any(file.exists() for file in files):
            raise _absent(ref)
        model_lock = lock(self._lock_file(_key(ref)), str(ref), None)
        with model_lock, self._locked(), storage(self._root):
            if ref.revision in (None, self._newest(ref)):
                self._newest_file(ref).unlink(missing_ok=True)
            for file in files:
                file.unlink(missing_ok=True)
            sync_folder(folder)
            return self._collect()

    def verify(self, ref: ModelRef) -> list[Damage]:
        """Read and hash every file of a model.

        Returns:
            What is wrong; empty if it is exactly what was fetched.

        Raises:
            ModelNotFoundError: It is not in the cache.
            CorruptManifestError: What should be in it cannot be known.
        """
        pinned = self._resolve(ref)
        if pinned is None or not self._manifest_file(pinned).exists():
            raise _absent(ref)
        with storage(self._root):
            card, view = manifest.load(self._manifest_file(pinned)), self._view(pinned)
            found = {
                file.relative_to(view).as_posix(): file
                for file in view.rglob("*")
                if file.is_symlink() or not file.is_dir()
            }
            problems = {entry.name: _problem(entry, found.get(entry.name)) for entry in card.files}
        problems |= dict.fromkeys(found.keys() - problems.keys(), "does not belong there")
        return [
            Damage(ref=pinned, file=name, problem=problem)
            for name, problem in sorted(problems.items())
            if problem
        ]

    def _keep(self, entry: FileEntry, staged: Path) -> None:
        """Move content to its place, unless it is there and sound."""
        blob = self._blob(entry.sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists() or _problem(entry, blob):
            staged.replace(blob)
            sync_folder(blob.parent)

    def _collect(self) -> int:
        """Remove what no manifest stands for; the caller holds the cache's lock."""
        blobs = [file.stat().st_ino for file in self._root.glob("blobs/sha256/*")]
        freed_bytes = self._collect_temp() + self._partials().collect(kept=frozenset(blobs))
        for view in self._root.glob("models/*/*/*"):
            scheme, name, revision = view.parts[-3:]
            if not inside(self._root, "manifests", scheme, name, f"{revision}.json").exists():
                shutil.rmtree(view, ignore_errors=True)
        used: set[str] = set()
        for file in self._manifest_files():
            model = self._model(file)
            if model is None:
                # A newer version of this program may understand it: its content stays.
                return freed_bytes
            used |= {entry.sha256 for entry in model.card.files}
        for blob in self._root.glob("blobs/sha256/*"):
            if blob.name not in used:
                freed_bytes += blob.stat().st_size
                blob.unlink()
        return freed_bytes

    def _collect_temp(self) -> int:
        """Remove what killed processes left in temp/."""
        freed_bytes = 0
        for folder in self._root.glob("temp/*"):
            try:
                with lock(self._lock_file(folder.name), folder.name, None):
                    freed_bytes += sum(
                        file.lstat().st_size for file in folder.rglob("*") if not file.is_dir()
                    )
                    shutil.rmtree(folder, ignore_errors=True)
            except CacheBusyError:
                continue
        return freed_bytes

    def _model(self, manifest_file: Path) -> CachedModel | None:
        try:
            card = manifest.load(manifest_file)
            if self._manifest_file(card.ref) != manifest_file:
                raise CorruptManifestError(manifest_file, f"it says that it is {card.ref}")
            fetched_at = datetime.fromtimestamp(manifest_file.stat().st_mtime, UTC)
            path = inside(self._view(card.ref), card.entry)
        except FileNotFoundError:
            return None
        except (CorruptManifestError, InvalidReferenceError) as error:
            log.warning("%s", error)
            return None
        return CachedModel(card=card, path=path, fetched_at=fetched_at)

    def _resolve(self, ref: ModelRef) -> ModelRef | None:
        """Give a reference the revision that it was last fetched as."""
        revision = ref.revision or self._newest(ref)
        return None if revision is None else replace(ref, revision=revision)

    def _newest(self, ref: ModelRef) -> str | None:
        try:
            revision = self._newest_file(ref).read_text("ascii")
            return replace(ref, revision=revision).revision
        except (FileNotFoundError, InvalidReferenceError, UnicodeDecodeError):
            return None

    def _partials(self) -> Partials:
        return Partials(inside(self._root, "partial"))

    def _locked(self) -> AbstractContextManager[None]:
        return lock(self._lock_file("cache"), "the model cache", SilentProgress())

    def _manifest_files(self) -> list[Path]:
        return sorted(self._root.glob("manifests/*/*/*.json"))

    def _manifest_file(self, ref: ModelRef) -> Path:
        name = f"{_escape(ref.revision or '')}.json"
        return inside(self._root, "manifests", ref.scheme, _folder_name(ref), name)

    def _newest_file(self, ref: ModelRef) -> Path:
        return inside(self._root, "manifests", ref.scheme, _folder_name(ref), "newest")

    def _view(self, ref: ModelRef) -> Path:
        revision = _escape(ref.revision or "")
        return inside(self._root, "models", ref.scheme, _folder_name(ref), revision)

    def _blob(self, sha256: str) -> Path:
        return inside(self._root, "blobs", "sha256", sha256)

    def _lock_file(self, key: str) -> Path:
        return inside(self._root, "locks", f"{key}.lock")


def _escape(text: str) -> str:
    return quote(text, safe="+")


def _folder_name(ref: ModelRef) -> str:
    """Name the folder of a model; a long name is cut and its hash, after a #, put behind."""
    escaped = _escape(ref.full_name)
    if len(escaped) <= _MAX_FOLDER_NAME:
        return escaped
    return f"{escaped[:120]}#{hashlib.sha256(escaped.encode()).hexdigest()}"


def _key(ref: ModelRef) -> str:
    return f"{ref.scheme}+{_folder_name(ref)}"


def _problem(entry: FileEntry, file: Path | None) -> str:
    """Say how a file differs from what it should be; "" if it does not."""
    if file is None:
        return "is missing"
    if file.is_symlink():
        return "is a symbolic link"
    size_bytes = file.stat().st_size
    if size_bytes != entry.size_bytes:
        return f"has {size_bytes:,} bytes instead of {entry.size_bytes:,}"
    return "" if sha256_of(file) == entry.sha256 else "has other content of the same length"


def _absent(ref: ModelRef) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{ref} is not in the model cache",
        hint=f"Fetch it with `hyprstream model pull {ref}`, or see `hyprstream model list`.",
    )
