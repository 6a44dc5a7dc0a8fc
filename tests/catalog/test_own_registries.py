"""Registries that the settings name, of three layouts: only what is damaged is sent again."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.many import registry_statuses, search_models
from hyprstream.refs import ModelRef
from hyprstream.runtime.models import open_catalog
from hyprstream.runtime.registries import Layout, RegistrySettings
from hyprstream.runtime.settings import Settings
from tests.catalog.fakes import contents
from tests.catalog.hub_server import Hub, hub_serving
from tests.catalog.servers.faults import FaultServer, serving
from tests.catalog.servers.ollama import OllamaServer

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
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, Layout], Catalog]:
    """Open a catalog with acme:// at an address, as the settings of a user would."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "OLLAMA"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HYPRSTREAM_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("ACME_TOKEN", "acme_secret")

    def open_one(url: str, layout: Layout) -> Catalog:
        acme = RegistrySettings(url=url, layout=layout, token_env="ACME_TOKEN")  # noqa: S106
        return open_catalog(Settings(home=tmp_path, keyring=False, registries={"acme": acme}))

    return open_one


@pytest.fixture
def catalog(hub: Hub, own: Callable[[str, Layout], Catalog]) -> Catalog:
    return own(hub.url, "hf")


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


def _damage(file: Path) -> None:
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(bytes(len(content)))


def test_only_a_damaged_layer_is_sent_again(own: Callable[[str, Layout], Catalog]):
    weights, template = b"GGUF" + os.urandom(1 << 20), b"{{ .Prompt }}"
    with serving(OllamaServer()) as server:
        server.add("library/tiny", "8b", [("model", weights), ("template", template)])
        server.tokens = {"/v2/": "acme_secret"}
        catalog = own(server.url(""), "ollama")
        ref = catalog.resolve("acme://tiny:8b")
        path = catalog.pull(ref)
        _damage(path)
        server.seen.clear()
        (pinned,) = catalog.upkeep.revisions(ref)
        assert catalog.upkeep.repair(pinned).fetched_bytes == len(weights)
        assert path.read_bytes() == weights
        assert catalog.upkeep.verify(pinned) == ()
        digest = hashlib.sha256(template).hexdigest()
        assert not [seen for seen in server.seen if digest in seen.path]
        statuses = {status.scheme: status for status in registry_statuses(catalog)}
        assert (statuses["acme"].state, statuses["acme"].authenticated) == ("ready", True)


def test_only_a_damaged_file_of_a_folder_is_sent_again(own: Callable[[str, Layout], Catalog]):
    with serving(FaultServer()) as server:
        for name, content in FOLDER.items():
            server.put(f"/models/tiny/{name}", content)
        entries = [
            {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in FOLDER.items()
        ]
        server.put("/models/tiny/index.json", json.dumps({"files": entries}).encode())
        server.tokens = {"/models/": "acme_secret"}
        catalog = own(server.url("/models"), "folder")
        ref = catalog.resolve("acme://tiny")
        folder = catalog.pull(ref)
        assert contents(folder) == FOLDER
        _damage(folder / "model-00002-of-00002.safetensors")
        server.seen.clear()
        (pinned,) = catalog.upkeep.revisions(ref)
        assert catalog.upkeep.repair(pinned).fetched_bytes == 1 << 20
        assert contents(folder) == FOLDER
        assert {seen.path.split("/")[-1] for seen in server.seen} == {
            "index.json",
            "model-00002-of-00002.safetensors",
        }
