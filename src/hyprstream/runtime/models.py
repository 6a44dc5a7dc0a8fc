"""The catalog of this machine, as the settings place it, and the tokens that it may use."""

import os

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.credentials import Credentials, Provider, system_keyring
from hyprstream.catalog.providers import providers
from hyprstream.runtime.settings import Settings


def open_catalog(settings: Settings) -> Catalog:
    """Open the model cache; nothing is created until something is pulled."""
    credentials, known = open_credentials(settings), known_providers(settings)

    def token(name: str) -> str | None:
        found = credentials.find(known[name]) if name in known else None
        return None if found is None else found.secret.reveal()

    return Catalog(
        ModelCache(settings.cache_folder),
        environ=os.environ,
        token=token,
        custom={name: registry.options() for name, registry in settings.registries.items()},
        offline=settings.offline,
    )


def known_providers(settings: Settings) -> dict[str, Provider]:
    """List who asks for tokens: built-in registries and those of the user's own.

    A bucket is not among them: what reads it has credentials of its own.
    """
    registries = settings.registries.items()
    own = {name: registry.options() for name, registry in registries if registry.layout != "s3"}
    return providers(os.environ, own)


def open_credentials(settings: Settings) -> Credentials:
    """Open the user's tokens; nothing is read until one is asked for."""
    return Credentials(
        settings.credentials_folder,
        environ=os.environ,
        keyring=system_keyring if settings.keyring else lambda: None,
    )
