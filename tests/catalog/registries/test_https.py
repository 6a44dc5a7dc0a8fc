import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from hyprstream.errors import (
    AuthenticationError,
    ChecksumMismatchError,
    CorruptArchiveError,
    HyprstreamError,
    InvalidReferenceError,
    ModelNotFoundError,
    RegistryAnswerError,
    UnsupportedError,
    UnsupportedFormatError,
)
from tests.catalog.fakes import contents
from tests.catalog.servers.faults import Fault, FaultServer, serving

GGUF = b"GGUF" + os.urandom(100_000)
SHA256 = hashlib.sha256(GGUF).hexdigest()
FOLDER = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": os.urandom(1000),
    "tokenizer.json": b"{}",
    "1_Pooling/config.json": b"{}",
}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with serving(FaultServer()) as server:
        server.put("/m/tiny.gguf", GGUF, etag='"1"')
        yield server


@pytest.fixture
def catalog(cache: ModelCache) -> Catalog:
    return Catalog(cache, environ={})


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _put(server: FaultServer, files: Mapping[str, bytes], *, index: bool) -> None:
    for name, content in files.items():
        server.put(f"/m/{name}", content, etag=f'"{name}"')
    if index:
        entries = [_entry(name, content) for name, content in files.items()]
        server.put("/m/index.json", json.dumps({"files": entries}).encode())


def test_a_file_is_fetched_and_its_hash_is_the_revision(server: FaultServer, catalog: Catalog):
    ref = catalog.resolve(server.url("/m/tiny.gguf"))
    path = catalog.pull(ref)
    assert (path.name, path.read_bytes()) == ("tiny.gguf", GGUF)
    (model,) = catalog.list()
    assert str(model.card.ref) == f"{server.url('/m/tiny.gguf')}#sha256={SHA256}"
    assert catalog.pull(ref) == catalog.pull(model.card.ref) == path
    assert len(server.seen) == 1


def test_a_pin_is_held_to(server: FaultServer, catalog: Catalog):
    url = server.url("/m/tiny.gguf")
    assert catalog.pull(catalog.resolve(f"{url}#sha256={SHA256}")).read_bytes() == GGUF
    with pytest.raises(ChecksumMismatchError, match=SHA256):
        catalog.pull(catalog.resolve(f"{url}#sha256={'0' * 64}"))


def test_a_name_with_other_characters_is_written_in_ours(server: FaultServer, catalog: Catalog):
    server.put("/m/a%20b%20(1).gguf", GGUF, etag='"1"')
    path = catalog.pull(catalog.resolve(server.url("/m/a%20b%20(1).gguf")))
    assert path.name == "a_b__1_.gguf"


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.zip", "x.tar.gz", "x.pt"])
def test_files_of_other_kinds_are_refused_before_they_are_fetched(
    server: FaultServer, catalog: Catalog, name: str
):
    with pytest.raises(UnsupportedFormatError, match="not fetched alone") as caught:
        catalog.pull(catalog.resolve(server.url(f"/m/{name}")))
    assert ".gguf" in caught.value.hint
    assert server.seen == []


@pytest.mark.parametrize("index", [True, False])
def test_a_folder_is_fetched_and_pinned(
    server: FaultServer, catalog: Catalog, tmp_path: Path, index: bool
):
    _put(server, FOLDER, index=index)
    path = catalog.pull(catalog.resolve(server.url("/m/")))
    assert contents(path) == FOLDER
    (model,) = catalog.list()
    for name, content in FOLDER.items():
        file = tmp_path / "sums" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    printed = subprocess.check_output(  # noqa: S602 - nothing in it is from outside
        "LC_ALL=C; export LC_ALL; find * -type f | sort | xargs sha256sum",  # noqa: S607
        shell=True,
        cwd=tmp_path / "sums",
    )
    assert model.card.ref.revision == hashlib.sha256(printed).hexdigest()
    pinned = catalog.resolve(str(model.card.ref))
    assert contents(catalog.pull(pinned, force=True)) == FOLDER
    wrong = catalog.resolve(f"{server.url('/m')}#sha256={'0' * 64}")
    with pytest.raises(ChecksumMismatchError, match="has other content"):
        catalog.pull(wrong)


def test_the_index_and_the_revision_are_those_that_the_page_for_users_says(
    server: FaultServer, catalog: Catalog, tmp_path: Path
):
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text("utf-8")
    program = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[0]
    command = re.findall(r"^\$ (find .*)$", page, re.MULTILINE)[0]
    for name, content in FOLDER.items():
        file = tmp_path / "folder" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    printed = subprocess.check_output(
        ["bash", "-c", f"{program}\n{command}"],  # noqa: S607
        cwd=tmp_path / "folder",
        text=True,
    )
    _put(server, FOLDER, index=False)
    server.put("/m/index.json", (tmp_path / "folder" / "index.json").read_bytes())
    catalog.pull(catalog.resolve(server.url("/m")))
    (model,) = catalog.list()
    assert [model.card.ref.revision, "-"] == printed.split()


def test_shards_are_found_by_their_own_index(server: FaultServer, catalog: Catalog):
    shards = {f"model-0000{n}-of-00002.safetensors": os.urandom(100) for n in (1, 2)}
    weight_map = {f"layer.{n}": name for n, name in enumerate(shards)}
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        **shards,
    }
    _put(server, files, index=False)
    assert contents(catalog.pull(catalog.resolve(server.url("/m")))) == files


def test_a_server_may_refuse_what_it_does_not_have(server: FaultServer, catalog: Catalog):
    _put(server, {name: FOLDER[name] for name in ("config.json", "model.safetensors")}, index=False)
    server.fail("/m/tokenizer.json", Fault(status=403))
    assert set(contents(catalog.pull(catalog.resolve(server.url("/m"))))) == {
        "config.json",
        "model.safetensors",
    }


def test_a_folder_without_a_model_says_what_was_looked_for(server: FaultServer, catalog: Catalog):
    with pytest.raises(ModelNotFoundError, match=r"neither index\.json nor config\.json"):
        catalog.pull(catalog.resolve(server.url("/m")))
    _put(server, {"config.json": b"{}"}, index=True)
    with pytest.raises(ModelNotFoundError, match="lists no model"):
        catalog.pull(catalog.resolve(server.url("/m")))
    _put(server, {"a.gguf": GGUF, "b.gguf": GGUF}, index=True)
    with pytest.raises(InvalidReferenceError, match=r"several models: a\.gguf, b\.gguf"):
        catalog.pull(catalog.resolve(server.url("/m")))


@pytest.mark.parametrize(
    ("index", "kind"),
    [
        (b"<html>", RegistryAnswerError),
        (b"[" * 100_000, RegistryAnswerError),
        (b'{"files": []}', RegistryAnswerError),
        (b'{"files": [{"name": "a.gguf"}]}', RegistryAnswerError),
        (b" " * (5 << 20), RegistryAnswerError),
        *(
            (json.dumps({"files": [_entry(name, GGUF)]}).encode(), InvalidReferenceError)
            for name in ("../x.gguf", "/x.gguf", "a/../x.gguf", "con.gguf", "a\\b.gguf", ".x.gguf")
        ),
        (
            json.dumps({"files": [_entry(name, GGUF) for name in ("a.gguf", "A.gguf")]}).encode(),
            InvalidReferenceError,
        ),
        (
            json.dumps(
                {"files": [_entry(name, GGUF) for name in ("a.gguf", "x.txt", "X.txt")]}
            ).encode(),
            CorruptArchiveError,
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_index_that_plays_tricks_is_refused(
    server: FaultServer, catalog: Catalog, index: bytes, kind: type[HyprstreamError]
):
    server.put("/m/index.json", index)
    with pytest.raises(kind):
        catalog.pull(catalog.resolve(server.url("/m")))
    assert len(server.seen) == 1
    assert catalog.list() == ()


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "con"])
def test_shards_may_not_lie_elsewhere(server: FaultServer, catalog: Catalog, shard: str):
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps({"weight_map": {"a": shard}}).encode(),
    }
    _put(server, files, index=False)
    with pytest.raises(InvalidReferenceError):
        catalog.pull(catalog.resolve(server.url("/m")))


def test_a_server_of_the_settings_gets_its_token(server: FaultServer, cache: ModelCache):
    server.tokens["/m/"] = "secret"
    options = {"layout": "https", "url": server.url("/m"), "token_env": "ACME_TOKEN"}
    catalog = Catalog(cache, environ={"ACME_TOKEN": "secret"}, custom={"acme": options})
    assert catalog.pull(catalog.resolve("acme://tiny.gguf")).read_bytes() == GGUF
    (model,) = catalog.list()
    assert str(model.card.ref) == f"acme://tiny.gguf@{SHA256}"
    status = catalog.status("acme")
    assert (status.state, status.authenticated, status.address) == (
        "ready",
        True,
        server.url("/m"),
    )
    stranger = Catalog(cache, environ={}, custom={"acme": options})
    assert stranger.status("acme").state == "unauthorized"
    with pytest.raises(AuthenticationError):
        stranger.pull(stranger.resolve(server.url("/m/tiny.gguf")))
    with pytest.raises(InvalidReferenceError, match="has a tag"):
        catalog.resolve("acme://tiny:8b")


def test_addresses_cannot_be_searched(catalog: Catalog):
    with pytest.raises(UnsupportedError, match="have no search"):
        catalog.search("https", "tiny", limit=3)
    assert catalog.status("https").state == "unchecked"
