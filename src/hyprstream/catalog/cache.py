"""Models on this disk: shared content, one folder per model, nothing half visible.

`shelf.py` says what lies where. A model is built in temp/ and moved into place whole; its
manifest is written last and removed first. Downloading happens under the model's lock only,
the short moves also under the cache's, so that the collection of unused content never meets a
model half put together. Looking takes no lock and works on a read-only disk. POSIX only (flock).
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from hyprstream.catalog import checks, leftovers, manifest
from hyprstream.catalog.card import (
    FileEntry,
    ModelCard,
    Progress,
    SilentProgress,
    holds_weights,
)
from hyprstream.catalog.records import CachedModel, CacheStatus, Damage, Leftover
from hyprstream.catalog.shelf import DESCRIBED, Shelf, absent, key_of
from hyprstream.catalog.staging import Staging
from hyprstream.catalog.usage import measure
from hyprstream.errors import CacheBusyError, ModelNotFoundError
from hyprstream.files import inside, link, lock, storage, sync_folder, write_atomic
from hyprstream.refs import ModelRef

log = logging.getLogger(__name__)


class ModelCache:
    """The models below one folder.

    Invariants, checked by `test_cache_properties.py`: a model that is found has every file
    whole; models with the same content share it; content that no model has is gone after
    the next `remove` or `commit`.

    Attributes:
        shelf: What lies where, for looking.
    """

    def __init__(self, root: Path) -> None:
        self.shelf = Shelf(root)

    def find(self, ref: ModelRef) -> CachedModel | None:
        """Look for a model whose files are all there, in their full length."""
        model = self.look(ref)
        if model is None or model.state == "complete":
            return model
        if model.state == "incomplete":
            log.warning("%s is incomplete", model.card.ref)
        return None

    def look(self, ref: ModelRef) -> CachedModel | None:
        """Look for a model, whatever of it is there."""
        with storage(self.shelf.root):
            pinned = self.shelf.resolve(ref)
            return None if pinned is None else self.shelf.model(self.shelf.manifest_file(pinned))

    def models(self) -> list[CachedModel]:
        """List what is there, by reference."""
        with storage(self.shelf.root):
            files = self.shelf.manifest_files()
            models = [model for file in files if (model := self.shelf.model(file))]
        return sorted(models, key=lambda model: str(model.card.ref))

    def revisions(self, ref: ModelRef | None = None) -> list[ModelRef]:
        """List what has a manifest, readable or not: all, one model's, or one revision.

        Raises:
            ModelNotFoundError: The model is not in the cache.
        """
        with storage(self.shelf.root):
            files = self.shelf.manifest_files()
            if ref is not None:
                if ref.revision is not None:
                    ref = self.shelf.resolve(ref) or ref
                folder, wanted = self.shelf.newest_file(ref).parent, self.shelf.manifest_file(ref)
                files = [
                    file
                    for file in files
                    if file.parent == folder and (ref.revision is None or file == wanted)
                ]
                if not files:
                    raise absent(ref)
            return [known for file in files if (known := self.shelf.ref(file))]

    @contextmanager
    def stage(self, ref: ModelRef, progress: Progress | None) -> Iterator[Staging]:
        """Hold a model's lock and a fresh place to put it together; both end with the block.

        Args:
            ref: The model to be fetched.
            progress: Told about waiting, if another process is fetching it; None does not wait.

        Raises:
            CacheBusyError: Another process is fetching it, and waiting is not wanted.
        """
        shelf = self.shelf
        with lock(shelf.lock_file(key_of(ref)), str(ref), progress):
            attempts = shelf.attempts(ref)
            with storage(shelf.root):
                # What a killed process left. Its children may live on and still write there:
                # hence a folder of a new name for this attempt.
                shutil.rmtree(attempts, ignore_errors=True)
                attempts.mkdir(parents=True, exist_ok=True)
                folder = Path(tempfile.mkdtemp(dir=attempts))
            try:
                yield Staging(
                    ref,
                    folder,
                    partials=shelf.partials,
                    blobs=inside(shelf.root, "blobs", "sha256"),
                )
            finally:
                shutil.rmtree(attempts, ignore_errors=True)

    def commit(self, staging: Staging, card: ModelCard) -> CachedModel:
        """Make a staged model exist, in place of what had the same revision.

        Raises:
            StorageFullError: The disk is full; the model then does not exist.
        """
        view, name = staging.folder / "view", self.shelf.view(card.ref)
        manifest_file = self.shelf.manifest_file(card.ref)
        with self._locked(), storage(self.shelf.root):
            for entry in card.files:
                self._keep(entry, staging.content(entry))
                file = inside(view, entry.name)
                file.parent.mkdir(parents=True, exist_ok=True)
                link(self.shelf.blob(entry.sha256), file)
            for folder in (name.parent, manifest_file.parent):
                folder.mkdir(parents=True, exist_ok=True)
            manifest_file.unlink(missing_ok=True)
            self.shelf.description_file(card.ref).unlink(missing_ok=True)
            if name.exists():
                name.replace(staging.folder / "replaced")
            view.replace(name)
            sync_folder(name.parent)
            write_atomic(manifest_file, manifest.encode(card), scratch=staging.folder)
            if staging.ref.revision != card.ref.revision:
                label = self.shelf.label_file(replace(card.ref, revision=staging.ref.revision))
                revision = (card.ref.revision or "").encode()
                write_atomic(label, revision, scratch=staging.folder)
            leftovers.collect(self.shelf)
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
        shelf = self.shelf
        if ref.revision is not None:
            ref = shelf.resolve(ref) or ref
        folder = shelf.newest_file(ref).parent
        files = [shelf.manifest_file(ref)] if ref.revision else sorted(folder.glob("*.json"))
        if not any(file.exists() for file in files):
            raise absent(ref)
        model_lock = lock(shelf.lock_file(key_of(ref)), str(ref), None)
        with model_lock, self._locked(), storage(shelf.root):
            if ref.revision in (None, shelf.newest(ref)):
                shelf.newest_file(ref).unlink(missing_ok=True)
            for file in files:
                file.unlink(missing_ok=True)
                file.with_suffix(DESCRIBED).unlink(missing_ok=True)
            for label in shelf.stray_labels(ref):
                label.unlink(missing_ok=True)
            sync_folder(folder)
            return leftovers.collect(shelf)

    def remove_weights(self, ref: ModelRef, describe: Callable[[CachedModel], bytes]) -> int:
        """Remove the weights of a revision, or of all; what it is and where it is from stays.

        Args:
            ref: The model.
            describe: Says for later what a model is, while its weights are still there.

        Returns:
            How many bytes of disk became free; content that other models share stays.

        Raises:
            ModelNotFoundError: It is not in the cache.
            CorruptManifestError: What it consists of cannot be known.
            CacheBusyError: It is being fetched right now.
        """
        return sum(self._remove_weights(pinned, describe) for pinned in self.revisions(ref))

    def _remove_weights(self, ref: ModelRef, describe: Callable[[CachedModel], bytes]) -> int:
        shelf, view = self.shelf, self.shelf.view(ref)
        with storage(shelf.root):
            card = shelf.card(shelf.manifest_file(ref))
            weights = [Path(entry.name) for entry in card.files if holds_weights(entry.name)]
            files = [inside(view, str(name.parent)) / name.name for name in weights]
            is_done = shelf.description(ref) is not None and not any(map(os.path.lexists, files))
            model = shelf.model(shelf.manifest_file(ref))
        if is_done or model is None:
            return 0
        description = describe(model)
        with self.stage(ref, None) as staging, self._locked(), storage(shelf.root):
            # From here on what lacks is lacking on purpose.
            write_atomic(shelf.description_file(ref), description, scratch=staging.folder)
            for file in files:
                file.unlink(missing_ok=True)
            sync_folder(view)
            return leftovers.collect(shelf)

    def verify(self, ref: ModelRef, progress: Progress | None = None) -> list[Damage]:
        """Read and hash every file of a model.

        Returns:
            What is wrong; empty if it is exactly what was fetched. Weights that were removed
            on purpose are not missed.

        Raises:
            ModelNotFoundError: It is not in the cache.
            CorruptManifestError: What should be in it cannot be known.
        """
        pinned = self.shelf.resolve(ref)
        if pinned is None:
            raise absent(ref)
        with storage(self.shelf.root):
            return checks.verify(self.shelf, pinned, progress or SilentProgress())

    def status(self) -> CacheStatus:
        """Say what the cache takes of the disk."""
        models = self.models()
        with storage(self.shelf.root):
            return measure(self.shelf, models)

    def leftovers(self, *, old_revisions: bool = False, partials: bool = False) -> list[Leftover]:
        """List what `clean` would remove.

        Args:
            old_revisions: List also every model of which a newer revision is there.
            partials: List also downloads that were going on within the last day.
        """
        models = self.models() if old_revisions else []
        with storage(self.shelf.root):
            old = leftovers.old_revisions(self.shelf, models)
            return [
                *leftovers.as_leftovers(self.shelf, old, models),
                *leftovers.found(self.shelf, partials=partials),
            ]

    def clean(self, chosen: Sequence[Leftover]) -> int:
        """Remove what was listed, as far as it is still left over.

        Returns:
            How many bytes of disk became free.
        """
        if not chosen:
            return 0
        freed_bytes = 0
        old = leftovers.old_revisions(self.shelf, self.models())
        still_old = {self.shelf.view(model.card.ref): model.card.ref for model in old}
        for leftover in chosen:
            if leftover.kind == "old revision" and leftover.path in still_old:
                try:
                    freed_bytes += self.remove(still_old[leftover.path])
                except (CacheBusyError, ModelNotFoundError) as error:
                    log.warning("%s", error)
        with self._locked(), storage(self.shelf.root):
            places = {leftover.path for leftover in chosen}
            for leftover in leftovers.found(self.shelf, partials=True):
                if leftover.path in places:
                    freed_bytes += leftovers.remove(self.shelf, leftover)
        return freed_bytes

    def _keep(self, entry: FileEntry, staged: Path) -> None:
        """Move content to its place, unless it is there and sound."""
        blob = self.shelf.blob(entry.sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        if blob.exists() and staged.samefile(blob):
            return
        if not blob.exists() or checks.problem(entry, blob, SilentProgress()):
            staged.replace(blob)
            sync_folder(blob.parent)

    def _locked(self) -> AbstractContextManager[None]:
        return lock(self.shelf.lock_file("cache"), "the model cache", SilentProgress())
