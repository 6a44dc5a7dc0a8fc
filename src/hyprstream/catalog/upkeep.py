"""Looks after the model cache: what it takes, what is damaged in it, and what of it can go."""

from collections.abc import Callable, Sequence

from hyprstream.catalog import checks
from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.card import Progress, SilentProgress
from hyprstream.catalog.records import CachedModel, CacheStatus, Damage, Leftover, Repair
from hyprstream.catalog.repair import Fetch, repair
from hyprstream.files import storage
from hyprstream.refs import ModelRef


class Upkeep:
    """The care of one cache.

    Args:
        cache: What is looked after.
        canonical: Writes a reference as its registry would; refuses paths.
        fetch: Brings a model from its registry.
    """

    def __init__(
        self, cache: ModelCache, *, canonical: Callable[[ModelRef], ModelRef], fetch: Fetch
    ) -> None:
        self._cache = cache
        self._canonical = canonical
        self._fetch = fetch

    def status(self) -> CacheStatus:
        """Say what the cache takes of the disk."""
        return self._cache.status()

    def leftovers(
        self, *, old_revisions: bool = False, partials: bool = False
    ) -> tuple[Leftover, ...]:
        """List what can go without harm to a model that is wanted.

        Args:
            old_revisions: List also every model of which a newer revision is there.
            partials: List also downloads that were going on within the last day.
        """
        return tuple(self._cache.leftovers(old_revisions=old_revisions, partials=partials))

    def clean(self, chosen: Sequence[Leftover]) -> int:
        """Remove what was listed, as far as it is still left over.

        Returns:
            How many bytes of disk became free.
        """
        return self._cache.clean(chosen)

    def revisions(self, ref: ModelRef | None = None) -> tuple[ModelRef, ...]:
        """List what is in the cache by its name alone, damaged or not.

        Args:
            ref: List the revisions of this model only, or this revision only.

        Raises:
            ModelNotFoundError: The model is not in the cache.
        """
        return tuple(self._cache.revisions(None if ref is None else self._canonical(ref)))

    def verify(self, ref: ModelRef, progress: Progress | None = None) -> tuple[Damage, ...]:
        """Read and hash every file of one revision; the result is empty if it is sound.

        A manifest that cannot be read is damage too.

        Raises:
            ModelNotFoundError: It is not in the cache.
        """
        shelf = self._cache.shelf
        with storage(shelf.root):
            return tuple(checks.verify_readable(shelf, ref, progress or SilentProgress()))

    def repair(self, ref: ModelRef, progress: Progress | None = None) -> Repair:
        """Make one revision what it was when it was fetched.

        Raises:
            ModelNotFoundError: It is not in the cache, or not at its registry any more.
            RegistryUnreachableError: Its registry did not answer.
            OfflineError: Something has to be fetched, and the settings forbid the network.
            ChecksumMismatchError: Its registry has something else under this revision now.
            UnsupportedError: Its weights were removed, and the damage is in what was kept.
            StorageFullError: The disk is full.
        """
        return repair(self._cache, self._fetch, ref, progress or SilentProgress())

    def remove_weights(self, ref: ModelRef, describe: Callable[[CachedModel], bytes]) -> int:
        """Remove weights and keep what they were: see `ModelCache.remove_weights`."""
        return self._cache.remove_weights(self._canonical(ref), describe)

    def description(self, ref: ModelRef) -> bytes | None:
        """Return what `describe` said when the weights of a model were removed."""
        shelf, ref = self._cache.shelf, self._canonical(ref)
        with storage(shelf.root):
            pinned = shelf.resolve(ref)
            return None if pinned is None else shelf.description(pinned)
