import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.connection import Connection
from hyprstream.catalog.registries.ollama import OllamaRegistry
from hyprstream.errors import (
    AuthenticationError,
    ChecksumMismatchError,
    HyprstreamError,
    InvalidReferenceError,
    ModelNotFoundError,
    RegistryAnswerError,
    UnsupportedError,
    UnsupportedFormatError,
)
from hyprstream.refs import ModelRef
from tests.catalog.fakes import Recorder, contents
from tests.catalog.servers.faults import Fault, serving
from tests.catalog.servers.ollama import KIND, TOKEN, OllamaServer

GGUF = b"GGUF" + os.urandom(100_000)
TEMPLATE = b"{{ .Prompt }}"
LAYERS = [
    ("model", GGUF),
    ("template", TEMPLATE),
    ("license", b"MIT"),
    ("license", b"Apache"),
    ("params", b'{"stop": []}'),
    ("system", b"Be brief."),
]
FILES = {
    "tiny-8b.gguf": GGUF,
    "template.txt": TEMPLATE,
    "license.txt": b"MIT",
    "license-2.txt": b"Apache",
    "params.json": b'{"stop": []}',
    "system.txt": b"Be brief.",
}
MANIFEST = "/v2/library/tiny/manifests/8b"


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with serving(OllamaServer()) as server:
        server.add("library/tiny", "8b", LAYERS)
        yield server


@pytest.fixture
def catalog(cache: ModelCache, server: OllamaServer) -> Catalog:
    return open_catalog(cache, server)


def open_catalog(cache: ModelCache, server: OllamaServer, **environ: str) -> Catalog:
    options = {"layout": "ollama", "url": server.url(""), "token_env": "ACME_TOKEN"}
    return Catalog(cache, environ=environ, custom={"acme": options})


TINY = ModelRef.parse("acme://tiny:8b")


def test_the_layers_become_files_and_the_manifest_the_revision(
    catalog: Catalog, server: OllamaServer, progress: Recorder
):
    path = catalog.pull(TINY, progress)
    assert path.name == "tiny-8b.gguf"
    assert contents(path.parent) == FILES
    (model,) = catalog.list()
    digest = hashlib.sha256(server._resources[MANIFEST].content).hexdigest()
    assert str(model.card.ref) == f"acme://tiny:8b@{digest}"
    assert catalog.verify(TINY) == ()
    assert progress.phases[1] == ("downloading acme://tiny:8b", sum(map(len, FILES.values())))
    assert progress.phases[2] == ("downloading tiny-8b.gguf (1 of 6)", len(GGUF))
    assert progress.num_done == len(progress.phases)
    assert server.seen[0].headers["accept"].startswith("application/vnd.docker.distribution")


def test_a_pinned_manifest_is_fetched_by_its_digest(catalog: Catalog, server: OllamaServer):
    digest = hashlib.sha256(server._resources[MANIFEST].content).hexdigest()
    server.add("library/tiny", "8b", [("model", b"GGUF, but newer")])
    path = catalog.pull(catalog.resolve(f"acme://tiny:8b@{digest}"))
    assert path.read_bytes() == GGUF
    assert server.seen[0].path == f"/v2/library/tiny/blobs/sha256:{digest}"


def test_a_pinned_manifest_of_other_content_is_refused(catalog: Catalog, server: OllamaServer):
    path = f"/v2/library/tiny/manifests/sha256:{'0' * 64}"  # as other registries keep them
    server.put(path, server._resources[MANIFEST].content)
    with pytest.raises(ChecksumMismatchError, match="the manifest of"):
        catalog.pull(catalog.resolve(f"acme://tiny:8b@{'0' * 64}"))


def test_models_of_the_same_weights_share_them(catalog: Catalog, server: OllamaServer):
    catalog.pull(TINY)
    server.add("library/tiny", "chat", [("model", GGUF), ("template", b"other")])
    before = server.sent_bytes()
    path = catalog.pull(ModelRef.parse("acme://tiny:chat"))
    assert path.read_bytes() == GGUF
    assert server.sent_bytes() - before < len(GGUF)


def test_a_cut_download_is_resumed(catalog: Catalog, server: OllamaServer):
    blob = f"/v2/library/tiny/blobs/sha256:{hashlib.sha256(GGUF).hexdigest()}"
    server.fail(blob, Fault(cut_at=60_000), times=1)
    assert catalog.pull(TINY).read_bytes() == GGUF
    assert server.sent_bytes(blob) == len(GGUF)


def test_a_registry_may_ask_for_a_token_that_strangers_get(catalog: Catalog, server: OllamaServer):
    server.wants_token = True
    assert catalog.pull(TINY).read_bytes() == GGUF
    assert catalog.status("acme").state == "ready"


def test_a_token_of_the_user_is_sent_as_it_is(cache: ModelCache, server: OllamaServer):
    server.wants_token = True
    assert open_catalog(cache, server, ACME_TOKEN=TOKEN).pull(TINY).read_bytes() == GGUF
    assert not any(seen.path.startswith("/token") for seen in server.seen)


@pytest.mark.parametrize(
    "challenge",
    [
        "",
        "Basic",
        "Bearer",
        'Bearer realm="http://example.org/token"',
        'Bearer realm="//"',
        'Bearer realm="http://[::1"',
        'Bearer realm="https://me:secret@127.0.0.1/token"',
    ],
)
def test_a_challenge_that_cannot_be_met_ends(
    catalog: Catalog, server: OllamaServer, challenge: str
):
    server.fail(MANIFEST, Fault(status=401, headers={"WWW-Authenticate": challenge}))
    with pytest.raises((AuthenticationError, RegistryAnswerError)):
        catalog.pull(TINY)


def test_what_is_not_there_is_not_found(catalog: Catalog):
    with pytest.raises(ModelNotFoundError, match="has no acme://nothing:latest"):
        catalog.pull(catalog.resolve("acme://nothing"))


def _broken(**changes: Any) -> bytes:
    layer = {"mediaType": f"{KIND}model", "digest": f"sha256:{'0' * 64}", "size": 4, **changes}
    return json.dumps({"layers": [layer]}).encode()


@pytest.mark.parametrize(
    ("manifest", "kind"),
    [
        (b"", RegistryAnswerError),
        (b"<html>", RegistryAnswerError),
        (b"[" * 100_000, RegistryAnswerError),
        (b'{"layers": ' + b"[" * 100_000, RegistryAnswerError),
        (b'{"layers": []}', RegistryAnswerError),
        (b'{"layers": 7}', RegistryAnswerError),
        (b"{" + b" " * (2 << 20) + b"}", RegistryAnswerError),
        (_broken(digest="sha256:../../../../etc/passwd"), RegistryAnswerError),
        (_broken(digest=f"sha256:{'0' * 63}/"), RegistryAnswerError),
        (_broken(digest=f"sha256:{'0' * 64}\n"), RegistryAnswerError),
        (_broken(digest=f"sha256:{'A' * 64}"), RegistryAnswerError),
        (_broken(digest=f"sha512:{'0' * 64}"), RegistryAnswerError),
        (_broken(size=-1), RegistryAnswerError),
        (_broken(size=1 << 60), RegistryAnswerError),
        (_broken(size="4"), RegistryAnswerError),
        (json.dumps({"layers": [{}] * 1000}).encode(), RegistryAnswerError),
        (_broken(mediaType=f"{KIND}license"), UnsupportedFormatError),
        (_broken(mediaType=f"{KIND}tensor; name=a"), UnsupportedFormatError),
    ],
    ids=lambda value: str(value)[:40],
)
def test_manifests_that_break_the_format_are_refused(
    catalog: Catalog, server: OllamaServer, manifest: bytes, kind: type[HyprstreamError]
):
    server.put(MANIFEST, manifest)
    with pytest.raises(kind):
        catalog.pull(TINY)
    assert len(server.seen) == 1


def test_a_blob_of_other_content_is_refused(catalog: Catalog, server: OllamaServer):
    blob = f"/v2/library/tiny/blobs/sha256:{hashlib.sha256(GGUF).hexdigest()}"
    server.put(blob, bytes(len(GGUF)))
    with pytest.raises(ChecksumMismatchError):
        catalog.pull(TINY)
    assert catalog.list() == ()


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ollama://smollm2", "ollama://smollm2:latest"),
        ("ollama://library/smollm2:135m", "ollama://smollm2:135m"),
        ("ollama://registry.ollama.ai/library/smollm2:135m", "ollama://smollm2:135m"),
        ("ollama://team/smollm2:135m", "ollama://team/smollm2:135m"),
        ("ollama://HOST.example:5000/team/x:1", "ollama://host.example:5000/team/x:1"),
    ],
)
def test_one_model_has_one_name(text: str, canonical: str):
    registry = OllamaRegistry(Connection(environ={}))
    assert str(registry.canonical(ModelRef.parse(text))) == canonical


@pytest.mark.parametrize(
    "text", ["ollama://a/b/c/d", "ollama://host:5000/x", "ollama://x@main", "ollama://x:1@ABCD"]
)
def test_other_names_are_refused(text: str):
    with pytest.raises(InvalidReferenceError):
        OllamaRegistry(Connection(environ={})).canonical(ModelRef.parse(text))


def test_another_host_gets_no_token(cache: ModelCache, server: OllamaServer):
    with serving(OllamaServer()) as other:
        other.add("library/tiny", "8b", [("model", GGUF)])
        catalog = open_catalog(cache, server, ACME_TOKEN="secret")  # noqa: S106
        ref = catalog.resolve(f"acme://{other.host}/library/tiny:8b")
        assert catalog.pull(ref).read_bytes() == GGUF
        assert all("authorization" not in seen.headers for seen in other.seen)
    assert server.seen == []


def test_a_registry_cannot_be_searched(catalog: Catalog):
    for scheme in ("acme", "ollama"):
        with pytest.raises(UnsupportedError, match="has no search"):
            catalog.search(scheme, "tiny", limit=3)


def test_a_registry_says_whether_it_answers(cache: ModelCache, server: OllamaServer):
    catalog = open_catalog(cache, server, ACME_TOKEN="wrong")  # noqa: S106
    status = catalog.status("acme")
    assert (status.state, status.authenticated) == ("ready", True)
    server.wants_token = True
    assert catalog.status("acme").state == "unauthorized"
    server.fail("/v2/", Fault(status=500))
    status = catalog.status("acme")
    assert (status.state, status.scheme) == ("unreachable", "acme")
    assert "answers 500" in (status.problem or "")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Make the store of a local Ollama that has pulled one model."""
    folder = tmp_path / "ollama"
    digest = hashlib.sha256(GGUF).hexdigest()
    manifest = {
        "layers": [{"mediaType": f"{KIND}model", "digest": f"sha256:{digest}", "size": len(GGUF)}]
    }
    for name, content in {
        f"blobs/sha256-{digest}": GGUF,
        "manifests/registry.ollama.ai/library/tiny/8b": json.dumps(manifest).encode(),
    }.items():
        file = folder / name
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    return folder


def test_what_a_local_ollama_has_is_used_where_it_lies(
    cache: ModelCache, store: Path, tmp_path: Path
):
    catalog = Catalog(cache, environ={"OLLAMA_MODELS": str(store)}, offline=True)
    ref = catalog.resolve("ollama://tiny:8b")
    path = catalog.find(ref)
    assert path == catalog.pull(ref)
    assert path.parent == store / "blobs"
    assert path.read_bytes() == GGUF
    manifest = store / "manifests/registry.ollama.ai/library/tiny/8b"
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert catalog.find(catalog.resolve(f"ollama://tiny:8b@{digest}")) == path
    for other in (f"ollama://tiny:8b@{'0' * 64}", "ollama://tiny:9b", "ollama://team/tiny:8b"):
        with pytest.raises(ModelNotFoundError):
            catalog.find(catalog.resolve(other))
    shutil.copytree(store, tmp_path / ".ollama/models")
    at_home = Catalog(cache, environ={"HOME": str(tmp_path)})
    assert at_home.find(ref).is_relative_to(tmp_path / ".ollama/models/blobs")


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[" * 100_000, _broken(digest="sha256:../../x"), b" " * (2 << 20), _broken()],
    ids=["empty", "deep", "climbing", "long", "absent"],
)
def test_a_broken_store_is_not_used(cache: ModelCache, store: Path, manifest: bytes):
    (store / "manifests/registry.ollama.ai/library/tiny/8b").write_bytes(manifest)
    catalog = Catalog(cache, environ={"OLLAMA_MODELS": str(store)})
    with pytest.raises(ModelNotFoundError, match="is not on this machine"):
        catalog.find(catalog.resolve("ollama://tiny:8b"))


def test_a_blob_that_is_cut_short_is_not_used(cache: ModelCache, store: Path):
    (blob,) = (store / "blobs").iterdir()
    blob.write_bytes(GGUF[:-1])
    catalog = Catalog(cache, environ={"OLLAMA_MODELS": str(store)})
    with pytest.raises(ModelNotFoundError):
        catalog.find(catalog.resolve("ollama://tiny:8b"))
