"""s3fs against a store on loopback; moto judges what is said to it."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.connection import Connection
from hyprstream.catalog.many import registry_statuses, search_models
from hyprstream.catalog.registries.s3 import connect
from hyprstream.errors import (
    AccessError,
    InvalidReferenceError,
    ModelNotFoundError,
    OfflineError,
    RegistryUnreachableError,
    UnsupportedError,
)
from hyprstream.refs import ModelRef
from tests.catalog.fakes import contents

TINY = ModelRef.parse("s3://models/team/tiny")
FILES = {
    "config.json": b"{}",
    "model.safetensors": os.urandom(9 << 20),  # of several parts
    "tokenizer.json": b"{}",
}
needs_store = pytest.mark.skipif(
    not (find_spec("s3fs") and find_spec("moto")),
    reason="needs `pip install s3fs 'moto[s3,server]'`",
)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def environ(endpoint: str) -> Mapping[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def bucket(endpoint: str) -> Any:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="key",
        aws_secret_access_key="secret",  # noqa: S106
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="models")
    for name, content in FILES.items():
        client.put_object(Bucket="models", Key=f"team/tiny/{name}", Body=content)
    # A folder, as consoles make it:
    client.put_object(Bucket="models", Key="team/tiny/", Body=b"")
    yield client
    client.close()


@pytest.fixture
def catalog(cache: ModelCache, environ: Mapping[str, str]) -> Catalog:
    custom = {"acme": {"layout": "s3", "url": "s3://models/team"}}
    return Catalog(cache, environ=environ, custom=custom)


@needs_store
@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("text", ["s3://models/team/tiny", "acme://tiny"])
def test_a_model_comes_out_of_a_bucket(catalog: Catalog, text: str):
    ref = catalog.resolve(text)
    assert contents(catalog.pull(ref)) == FILES
    assert catalog.verify(ref) == ()
    (model,) = catalog.list()
    assert model.card.source == "models/team/tiny"


@needs_store
def test_the_revision_follows_the_etags(catalog: Catalog, bucket: Any):
    catalog.pull(TINY)
    (first,) = catalog.list()
    config = bucket.get_object(Bucket="models", Key="team/tiny/config.json")
    bucket.put_object(Bucket="models", Key="team/tiny/config.json", Body=config["Body"].read())
    # The same content, written again:
    assert contents(catalog.pull(first.card.ref, force=True)) == FILES
    bucket.put_object(Bucket="models", Key="team/tiny/config.json", Body=b"[]")
    with pytest.raises(ModelNotFoundError, match="has changed"):
        catalog.pull(first.card.ref, force=True)
    catalog.pull(TINY, force=True)
    assert len(catalog.list()) == 2


@needs_store
@pytest.mark.usefixtures("bucket")
def test_a_damaged_model_is_mended(catalog: Catalog):
    folder = catalog.pull(TINY)
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_bytes(b"[]")
    (pinned,) = catalog.upkeep.revisions(TINY)
    assert catalog.upkeep.repair(pinned).damages[0].file == "config.json"
    assert contents(folder) == FILES


@needs_store
@pytest.mark.usefixtures("bucket")
def test_a_bucket_of_the_users_own_is_searched_and_looked_at(catalog: Catalog):
    found = search_models(catalog, "tin", registry="acme")
    assert [str(offer.ref) for offer in found.offers] == ["acme://tiny"]
    states = {status.scheme: status.state for status in registry_statuses(catalog)}
    assert (states["acme"], states["s3"]) == ("ready", "unchecked")


@needs_store
@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("text", ["s3://models/absent", "s3://absent/x"])
def test_what_is_not_there_is_not_found(catalog: Catalog, text: str):
    with pytest.raises(ModelNotFoundError, match="nothing at"):
        catalog.pull(ModelRef.parse(text))
    assert catalog.list() == ()


@needs_store
def test_without_keys_the_next_step_is_said(cache: ModelCache, endpoint: str):
    catalog = Catalog(cache, environ={"AWS_ENDPOINT_URL": endpoint})
    with pytest.raises(AccessError) as caught:
        catalog.pull(TINY)
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


@pytest.mark.slow
@needs_store
def test_a_store_that_is_away_is_unreachable(cache: ModelCache, environ: Mapping[str, str]):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{free.getsockname()[1]}"
    custom = {"acme": {"layout": "s3", "url": "s3://models"}}
    catalog = Catalog(cache, environ={**environ, "AWS_ENDPOINT_URL": away}, custom=custom)
    with pytest.raises(RegistryUnreachableError, match="did not answer"):
        catalog.pull(TINY)
    states = {status.scheme: status.state for status in registry_statuses(catalog, limit_s=60)}
    assert states["acme"] == "unreachable"


def test_a_bucket_alone_is_no_model(catalog_without_store: Catalog):
    with pytest.raises(InvalidReferenceError, match="model"):
        catalog_without_store.resolve("s3://models")
    with pytest.raises(UnsupportedError, match="cannot be searched"):
        search_models(catalog_without_store, "x", registry="s3")


@pytest.fixture
def catalog_without_store(cache: ModelCache) -> Catalog:
    return Catalog(cache, environ={})


def test_offline_nobody_is_asked(tmp_path: Path):
    registry = connect(Connection(environ={}, offline=True, options={"url": "s3://models"}))
    with pytest.raises(OfflineError):
        registry.search("x", limit=1)
    assert registry.status().state == "offline"
    catalog = Catalog(ModelCache(tmp_path), environ={}, offline=True)
    with pytest.raises(OfflineError):
        catalog.pull(TINY)


def test_without_the_library_the_extra_is_named(
    catalog_without_store: Catalog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UnsupportedError, match="s3fs, which is not installed") as caught:
        catalog_without_store.pull(TINY)
    assert "pip install 'hyprstream[s3]'" in caught.value.hint
    (status,) = [s for s in registry_statuses(catalog_without_store) if s.scheme == "s3"]
    assert "s3fs" in (status.problem or "")
