"""The catalog of this machine, as the settings place it."""

import os

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from hyprstream.runtime.settings import Settings


def open_catalog(settings: Settings) -> Catalog:
    """Open the model cache; nothing is created until something is pulled."""
    return Catalog(ModelCache(settings.cache_folder), environ=os.environ, offline=settings.offline)
