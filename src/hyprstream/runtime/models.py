"""The catalog of this machine, as the settings place it."""

import os

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from hyprstream.runtime.settings import Settings


def open_catalog(settings: Settings) -> Catalog:
    """Open the model cache; nothing is created until something is pulled."""
    registries = settings.registries

    def token(provider: str) -> str | None:
        """Find the token of a registry of the user's own."""
        variable = registries[provider].token_env if provider in registries else None
        return (os.environ.get(variable) or None) if variable else None

    return Catalog(
        ModelCache(settings.cache_folder),
        environ=os.environ,
        token=token,
        custom={name: registry.options() for name, registry in registries.items()},
        offline=settings.offline,
    )
