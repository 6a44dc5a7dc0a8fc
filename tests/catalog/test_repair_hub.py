"""Repair and custom registries against a Hub on loopback: only what is damaged is sent again."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.many import registry_statuses, search_models
from hyprstream.refs import ModelRef
from hyprstream.runtime.models import open_catalog
from hyprstream.runtime.registries import RegistrySettings
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
        registries={
            "acme": RegistrySettings(url=hub.url, layout="hf", token_env="ACME_TOKEN"),  # noqa: S106
        },
    )
    return open_catalog(settings)


def test_only_a_damaged_shard_is_sent_again_and_only_to_who_has_the_token(
    catalog: Catalog, hub: Hub
):
    hub.add("org/tiny", FOLDER, private=True)
    ref = ModelRef.parse("acme://org/tiny")
    folder = catalog.pull(ref)
    assert contents(folder) == FOLDER
    damaged = folder / "model-00002-of-00002.safetensors"
    damaged.chmod(0o644)
    damaged.write_bytes(bytes(1 << 20))
    (pinned,) = catalog.upkeep.revisions(ref)
    assert [damage.file for damage in catalog.upkeep.verify(pinned)] == [damaged.name]
    hub.seen.clear()
    # The Hub tells no SHA-256 of small files beforehand: they come once more.
    small_bytes = sum(len(FOLDER[name]) for name in FOLDER if name.endswith(".json"))
    assert catalog.upkeep.repair(pinned).fetched_bytes == (1 << 20) + small_bytes
    large = [seen.path for seen in hub.requests("GET", "safetensors") if "index" not in seen.path]
    assert large
    assert all(damaged.name in path for path in large)
    assert catalog.upkeep.verify(pinned) == ()
    assert contents(folder) == FOLDER


def test_a_model_of_which_a_part_was_fetched_is_mended_as_a_part(catalog: Catalog, hub: Hub):
    hub.add("org/tiny", FOLDER)
    ref = ModelRef.parse("acme://org/tiny")
    names = ("config.json", "model-00001-of-00002.safetensors")
    folder = catalog.pull(ref, files=names)
    part = {name: FOLDER[name] for name in names}
    assert contents(folder) == part
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_bytes(b"")
    hub.seen.clear()
    (pinned,) = catalog.upkeep.revisions(ref)
    assert catalog.upkeep.repair(pinned).damages[0].file == "config.json"
    assert contents(folder) == part
    assert not hub.requests("GET", "safetensors|tokenizer")


def test_a_registry_of_the_users_own_is_searched_and_looked_at(catalog: Catalog, hub: Hub):
    hub.add("org/tiny", FOLDER)
    found = search_models(catalog, "tiny", registry="acme")
    assert [str(offer.ref) for offer in found.offers] == ["acme://org/tiny"]
    status = {status.scheme: status for status in registry_statuses(catalog)}["acme"]
    assert (status.state, status.address, status.authenticated) == ("ready", hub.url, True)
