"""Turns a reference into a path that a loader can open, fetching what is not here yet.

Knows nothing of networks and layouts: registries bring files, the cache keeps them.
Synchronous; `pull` may take minutes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from hyprstream import lookup
from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.card import ModelCard, Progress, SilentProgress
from hyprstream.catalog.connection import Connection, no_token
from hyprstream.catalog.offer import Offer, RegistryStatus
from hyprstream.catalog.records import CachedModel, Damage
from hyprstream.catalog.staging import Staging
from hyprstream.catalog.upkeep import Upkeep
from hyprstream.errors import (
    InvalidReferenceError,
    ModelNotFoundError,
    UnsupportedError,
    UnsupportedRegistryError,
)
from hyprstream.refs import ModelRef

REGISTRIES = "hyprstream.catalog.registries"


@runtime_checkable
class Registry(Protocol):
    """A place that models come from.

    A module of `catalog/registries` serves the scheme of its name, with a function
    `connect(connection: Connection) -> Registry`. Locking, verifying, storing and
    listing are not its business.
    """

    def canonical(self, ref: ModelRef) -> ModelRef:
        """Write the reference as the registry would, so that one model has one name.

        Raises:
            InvalidReferenceError: The registry has no such names.
        """
        ...

    def locate(self, ref: ModelRef) -> Path | None:
        """Find a model that lies on this machine outside the cache, without any network."""
        ...

    def fetch(self, ref: ModelRef, staging: Staging, progress: Progress) -> ModelCard:
        """Bring the model's files into `staging` and say what they are."""
        ...

    def search(self, text: str, *, limit: int) -> Sequence[Offer]:
        """Look for models by words.

        Raises:
            UnsupportedError: The place cannot be searched.
            OfflineError: The settings forbid the network.
        """
        ...

    def status(self) -> RegistryStatus:
        """Say how it stands with the registry; what is wrong is part of the answer."""
        ...


@runtime_checkable
class ChoosesFiles(Protocol):
    """A registry of which parts of a model can be fetched."""

    def fetch_files(
        self, ref: ModelRef, staging: Staging, progress: Progress, patterns: Sequence[str]
    ) -> ModelCard:
        """Bring the files that fit one of the shell patterns, such as `*.json`."""
        ...


@runtime_checkable
class KnowsAccounts(Protocol):
    """A registry that says whose a token is."""

    def whoami(self, token: str) -> str:
        """Name the account that a token belongs to.

        Raises:
            AuthenticationError: To none.
        """
        ...


class Catalog:
    """Every model that can be named.

    Args:
        cache: Where fetched models are kept.
        environ: The environment that registries take the user's configuration from.
        token: Gives the stored credential of a provider, or None.
        custom: Registries of the user's own: the scheme of each, and its options, among
            which `layout` names the module of `catalog/registries` that serves it.
        offline: Forbids every use of the network.
    """

    def __init__(
        self,
        cache: ModelCache,
        *,
        environ: Mapping[str, str],
        token: Callable[[str], str | None] = no_token,
        custom: Mapping[str, Mapping[str, str]] | None = None,
        offline: bool = False,
    ) -> None:
        self._cache = cache
        self._connection = Connection(environ=environ, token=token, offline=offline)
        self._custom = dict(custom or {})

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that references may have, sorted."""
        return tuple(sorted({*lookup.names(REGISTRIES), *self._custom}))

    @property
    def upkeep(self) -> Upkeep:
        """The care of the cache."""
        return Upkeep(self._cache, canonical=self._cached, fetch=self._fetch)

    def address(self, scheme: str) -> str:
        """Say where the settings put a registry of the user's own; "" of any other."""
        return self._custom.get(scheme, {}).get("url", "")

    def search(self, scheme: str, text: str, *, limit: int) -> tuple[Offer, ...]:
        """Look in a registry for models by words.

        Raises:
            UnsupportedRegistryError: There is no such registry.
            UnsupportedError: It cannot be searched.
            RegistryUnreachableError: It did not answer.
            OfflineError: The settings forbid the network.
        """
        return tuple(self._connect(scheme).search(text, limit=limit))

    def status(self, scheme: str) -> RegistryStatus:
        """Say how it stands with a registry.

        Raises:
            UnsupportedRegistryError: There is no such registry.
        """
        return self._connect(scheme).status()

    def whoami(self, scheme: str, token: str) -> str | None:
        """Ask a registry whose a token is; None if it cannot be asked.

        Raises:
            AuthenticationError: It is nobody's.
            RegistryUnreachableError: The registry did not answer.
            OfflineError: The settings forbid the network.
        """
        registry = self._connect(scheme)
        return registry.whoami(token) if isinstance(registry, KnowsAccounts) else None

    def resolve(self, text: str) -> ModelRef:
        """Read a reference as a person types it, in its canonical form.

        Raises:
            InvalidReferenceError: It is not a reference.
            UnsupportedRegistryError: No registry serves its scheme.
        """
        ref = ModelRef.parse(text)
        return self._registry(ref).canonical(ref)

    def find(self, ref: ModelRef) -> Path:
        """Find what a loader opens, on this machine only.

        Raises:
            ModelNotFoundError: The model is not here.
        """
        registry = self._registry(ref)
        ref = registry.canonical(ref)
        path = self._here(registry, ref)
        if path is None:
            others = [
                str(model.card.ref)
                for model in self._cache.models()
                if replace(model.card.ref, revision=None) == replace(ref, revision=None)
            ]
            also = f" Here is: {', '.join(others)}." if others else ""
            raise ModelNotFoundError(
                f"{ref} is not on this machine",
                hint=f"Fetch it with `hyprstream model pull {ref}`.{also}",
            )
        return path

    def pull(
        self,
        ref: ModelRef,
        progress: Progress | None = None,
        *,
        force: bool = False,
        files: Sequence[str] = (),
    ) -> Path:
        """Find what a loader opens, fetching it if it is not here.

        Two processes that pull the same model share one download.

        Args:
            ref: The model.
            progress: Told what is being done; None tells nobody.
            force: Fetch even what the cache has.
            files: Fetch the files that fit one of these shell patterns, in place of what the
                cache has of the model.

        Raises:
            UnsupportedError: Its registry knows no parts of models.
            ModelNotFoundError: Its registry does not have it.
            RegistryUnreachableError: Its registry did not answer.
            OfflineError: It is not here, and the settings forbid the network.
            AccessError: Its registry does not let the user have it.
            ChecksumMismatchError: What came is not what was promised.
            CorruptArchiveError: What came cannot be trusted.
            StorageFullError: The disk is full.
        """
        registry = self._registry(ref)
        ref = registry.canonical(ref)
        fresh = force or bool(files)
        if files and not isinstance(registry, ChoosesFiles):
            raise UnsupportedError(
                f"models of {ref.scheme}:// come whole, no files of them can be chosen",
                hint="Leave away what chooses files.",
            )
        path = self._here(registry, ref, fresh=fresh)
        if path is not None:
            return path

        self._connection.require_network(f"fetching {ref}")
        progress = progress or SilentProgress()
        with self._cache.stage(ref, progress) as staging:
            # The process that held the lock before may have brought the model.
            path = self._here(registry, ref, fresh=fresh)
            if path is None:
                if files and isinstance(registry, ChoosesFiles):
                    card = registry.fetch_files(ref, staging, progress, files)
                else:
                    card = registry.fetch(ref, staging, progress)
                path = self._cache.commit(staging, card).path
        return path

    def remove(self, ref: ModelRef) -> int:
        """Remove a model from the cache; without a revision, all of them.

        Returns:
            How many bytes of disk became free.

        Raises:
            ModelNotFoundError: It is not in the cache.
            CacheBusyError: It is being fetched right now.
        """
        return self._cache.remove(self._cached(ref))

    def verify(self, ref: ModelRef) -> tuple[Damage, ...]:
        """Read and hash every file of a cached model; the result is empty if it is sound.

        Raises:
            ModelNotFoundError: It is not in the cache.
            CorruptManifestError: What should be in it cannot be known.
        """
        return tuple(self._cache.verify(self._cached(ref)))

    def list(self) -> tuple[CachedModel, ...]:
        """List the models in the cache, by reference."""
        return tuple(self._cache.models())

    def _fetch(
        self, ref: ModelRef, staging: Staging, progress: Progress, names: Sequence[str]
    ) -> ModelCard:
        """Bring a model once more; of one without a tag, the files of these names if it can."""
        self._connection.require_network(f"fetching {ref}")
        registry = self._registry(ref)
        if names and ref.tag is None and isinstance(registry, ChoosesFiles):
            return registry.fetch_files(ref, staging, progress, [escape(name) for name in names])
        return registry.fetch(ref, staging, progress)

    def _here(self, registry: Registry, ref: ModelRef, *, fresh: bool = False) -> Path | None:
        if ref.is_path:
            return registry.locate(ref)
        if fresh:
            return None
        model = self._cache.find(ref)
        return registry.locate(ref) if model is None else model.path

    def _cached(self, ref: ModelRef) -> ModelRef:
        if ref.is_path:
            raise InvalidReferenceError(
                f"{ref} is a path, not a model in the cache",
                hint="See `hyprstream model list` for what is there.",
            )
        return self._registry(ref).canonical(ref)

    def _registry(self, ref: ModelRef) -> Registry:
        return self._connect(ref.scheme)

    def _connect(self, scheme: str) -> Registry:
        options = self._custom.get(scheme, {})
        module = lookup.load(
            REGISTRIES,
            options.get("layout", scheme),
            kind="registry",
            error=UnsupportedRegistryError,
        )
        connection = replace(self._connection, options={**options, "scheme": scheme})
        return cast("Registry", module.connect(connection))
