"""Repair and custom registries against a Hub on loopback: only what is damaged is sent again."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.many import registry_statuses, search_models
from hyprstream.refs import ModelRef
from hyprstream.runtime.models import open_catalog
from hyprstream.runtime.settings import Settings
from tests.catalog.fakes import contents
from tests.catalog.hub_server import Hub, hub_serving

FOLDER = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": os.urandom(3 << 20),
    "model-00002-of-00002.safetensors": os.urandom(1 << 20),
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_serving() as hub:
        hub.tokens = {"acme_secret": "alice"}
        yield hub


@pytest.fixture
def catalog(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Catalog:
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HYPRSTREAM_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("ACME_TOKEN", "acme_secret")
    settings = Settings(
        home=tmp_path,
        keyring=False,
        registries={"acme": {"url": hub.url, "layout": "hf", "token_env": "ACME_TOKEN"}},  # type: ignore[dict-item]  # as a file gives it
    )
    return open_catalog(settings)
