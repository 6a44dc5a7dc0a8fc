"""The Hub's own client against a Hub on loopback."""

import hashlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from hyprstream.errors import (
    AuthenticationError,
    ChecksumMismatchError,
    HyprstreamError,
    InvalidReferenceError,
    ModelAccessDeniedError,
    ModelNotFoundError,
    OfflineError,
    RateLimitedError,
    RegistryAnswerError,
    RegistryUnreachableError,
    UnsupportedError,
)
from hyprstream.refs import ModelRef
from tests.catalog.fakes import Recorder, contents
from tests.catalog.hub_server import COMMIT, OTHER_COMMIT, Fault, Hub, hub_serving

TINY = ModelRef.parse("hf://org/tiny")
FOLDER = {
    "README.md": b"# Tiny",
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": os.urandom(3 << 20),
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"a pickle",
}
FETCHED = {name: FOLDER[name] for name in ("config.json", "model.safetensors", "tokenizer.json")}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_serving() as hub:
        hub.tokens = {"hf_secret": "alice"}
        yield hub


@pytest.fixture
def environ(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """This process's environment, with the Hub's settings of the test alone."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING")) and not name.lower().endswith("_proxy")
    }
    return {**plain, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "huggingface")}


@pytest.fixture
def catalog(cache: ModelCache, environ: dict[str, str]) -> Catalog:
    return Catalog(cache, environ=environ)


@pytest.fixture
def known(cache: ModelCache, environ: dict[str, str]) -> Catalog:
    """The catalog of somebody who is logged in."""
    return Catalog(cache, environ=environ, token={"hf": "hf_secret"}.get)


def nothing_visible(tmp_path: Path) -> bool:
    return not [name for name in contents(tmp_path / "cache") if name.startswith(("m", "b"))]


def test_a_model_comes_with_what_the_loader_needs(catalog: Catalog, hub: Hub, progress: Recorder):
    hub.add("org/tiny", FOLDER, card={"license": "apache-2.0"})
    path = catalog.pull(TINY, progress)
    assert contents(path) == FETCHED
    (model,) = catalog.list()
    assert str(model.card.ref) == f"hf://org/tiny@{COMMIT}"
    assert model.card.source == f"{hub.url}/org/tiny/tree/{COMMIT}, license apache-2.0"
    digest = hashlib.sha256(FOLDER["model.safetensors"]).hexdigest()
    assert digest in {file.sha256 for file in model.card.files}
    assert catalog.verify(TINY) == ()
    assert progress.phases == [
        ("looking for hf://org/tiny", None),
        (f"downloading hf://org/tiny@{COMMIT}", sum(map(len, FETCHED.values()))),
        *(
            (f"downloading {name} ({number} of 3)", len(content))
            for number, (name, content) in enumerate(FETCHED.items(), start=1)
        ),
    ]
    assert progress.num_bytes == [0, 0, *map(len, FETCHED.values())]
    assert progress.num_done == 5
    assert not hub.requests("GET", "bin|README")


def test_what_is_cached_needs_no_hub(catalog: Catalog, hub: Hub):
    hub.add("org/tiny", FOLDER)
    path = catalog.pull(TINY)
    hub.seen.clear()
    pinned = ModelRef.parse(f"hf://org/tiny@{COMMIT}")
    main = ModelRef.parse("hf://org/tiny@main")
    assert catalog.pull(TINY) == catalog.pull(main) == catalog.find(pinned) == path
    assert not hub.seen


def test_a_branch_is_kept_as_its_commit(catalog: Catalog, hub: Hub):
    repo = hub.add("org/tiny", FOLDER)
    repo.files[OTHER_COMMIT] = {**FOLDER, "config.json": b'{"new": 1}'}
    repo.refs["refs/pr/1"] = OTHER_COMMIT
    catalog.pull(TINY)
    new = catalog.pull(ModelRef.parse("hf://org/tiny@refs/pr/1"))
    assert (new / "config.json").read_bytes() == b'{"new": 1}'
    revisions = [model.card.ref.revision for model in catalog.list()]
    assert revisions == [COMMIT, OTHER_COMMIT]
    hub.seen.clear()
    branch, pinned = "hf://org/tiny@refs/pr/1", f"hf://org/tiny@{OTHER_COMMIT}"
    assert catalog.find(ModelRef.parse(branch)) == catalog.find(ModelRef.parse(pinned)) == new
    assert catalog.pull(ModelRef.parse(branch)) == new
    assert not hub.seen
    assert catalog.remove(ModelRef.parse(branch)) > 0
    assert [model.card.ref.revision for model in catalog.list()] == [COMMIT]
    with pytest.raises(ModelNotFoundError):
        catalog.find(ModelRef.parse(branch))


def test_a_tag_chooses_a_gguf_file(catalog: Catalog, hub: Hub):
    hub.add(
        "org/x-GGUF", {"README.md": b"", "q/x-Q4_K_M.gguf": b"GGUF4", "q/x-Q8_0.gguf": b"GGUF8"}
    )
    path = catalog.pull(ModelRef.parse("hf://org/x-GGUF:q8_0"))
    assert (path.name, path.read_bytes()) == ("x-Q8_0.gguf", b"GGUF8")
    assert [str(model.card.ref) for model in catalog.list()] == [f"hf://org/x-GGUF:Q8_0@{COMMIT}"]
    assert catalog.pull(ModelRef.parse("hf://org/x-GGUF")).read_bytes() == b"GGUF4"


def test_patterns_choose_files(catalog: Catalog, hub: Hub):
    hub.add("org/tiny", FOLDER)
    catalog.pull(TINY)
    path = catalog.pull(TINY, files=["config.json", "*.safetensors", "README.*"])
    assert sorted(contents(path)) == ["README.md", "config.json", "model.safetensors"]
    with pytest.raises(InvalidReferenceError, match="tag"):
        catalog.pull(ModelRef.parse("hf://org/tiny:Q4_0"), files=["*"])
    with pytest.raises(UnsupportedError, match="whole"):
        catalog.pull(ModelRef.parse("pypi://tiny"), files=["*"])


def test_the_token_goes_to_the_hub_and_nowhere_else(known: Catalog, hub: Hub):
    hub.add("org/tiny", FOLDER, private=True)
    assert contents(known.pull(TINY)) == FETCHED
    for request in hub.seen:
        shown = "hf_secret" in str(request.headers)
        assert shown == (request.server == "hub"), request
    assert {request.server for request in hub.seen} == {"hub", "cdn"}


def test_what_a_server_says_of_the_token_is_not_told(known: Catalog, hub: Hub):
    body = b'{"error": "hf_secret is not welcome"}'
    hub.faults["/api/models"] = Fault(status=403, content=body)
    with pytest.raises(ModelAccessDeniedError) as caught:
        known.pull(TINY)
    assert "is not welcome" in str(caught.value)
    assert "hf_secret" not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"


def test_a_gated_model_asks_to_accept_and_to_log_in(
    catalog: Catalog, known: Catalog, hub: Hub, tmp_path: Path
):
    hub.add("org/tiny", FOLDER, gated=True)
    with pytest.raises(AuthenticationError, match="gated") as caught:
        catalog.pull(TINY)
    assert f"{hub.url}/org/tiny" in caught.value.hint
    assert "hyprstream auth login --provider hf" in caught.value.hint
    with pytest.raises(ModelAccessDeniedError, match="gated"):
        known.pull(TINY)
    assert nothing_visible(tmp_path)
    hub.accepted.add("alice")
    assert contents(known.pull(TINY)) == FETCHED


@pytest.mark.parametrize(
    ("ref", "token", "error", "says"),
    [
        ("hf://org/none", None, ModelNotFoundError, "private"),
        ("hf://org/none", "hf_secret", ModelNotFoundError, "may see"),
        ("hf://org/tiny", "hf_wrong", AuthenticationError, "auth status"),
        ("hf://org/tiny@v9", None, ModelNotFoundError, "no such revision"),
        ("hf://org/tiny:Q4_K_M", None, ModelNotFoundError, "without a tag"),
        ("hf://a/b/c", None, InvalidReferenceError, "hf://ORGANISATION/NAME"),
        ("hf://a--b/c", None, InvalidReferenceError, "on the model's page"),
    ],
)
def test_what_is_not_there_is_told_apart(
    cache: ModelCache, environ: dict[str, str], hub: Hub, ref, token, error, says
):
    hub.add("org/tiny", FOLDER)
    catalog = Catalog(cache, environ=environ, token=lambda _: token)
    with pytest.raises(error) as caught:
        catalog.pull(ModelRef.parse(ref))
    assert says in f"{caught.value} {caught.value.hint}"
    assert "hf_wrong" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("path", "fault", "error"),
    [
        ("/api/models", Fault(status=429, headers={"Retry-After": "7"}), RateLimitedError),
        ("/api/models", Fault(content=b"<html>"), RegistryAnswerError),
        ("/api/models", Fault(reset=True, cut_at=3), RegistryUnreachableError),
        ("/lfs/", Fault(reset=True, cut_at=1 << 10), RegistryUnreachableError),
        ("/lfs/", Fault(content=bytes(3 << 20)), ChecksumMismatchError),
        ("/lfs/", Fault(content=bytes(1 << 20)), ChecksumMismatchError),
        ("/lfs/", Fault(endless=True), ChecksumMismatchError),
        ("/lfs/", Fault(packed=True, content=bytes(64 << 20)), ChecksumMismatchError),
        ("resolve-cache.*config", Fault(content=b'{"model_type": "LLAMA"}'), ChecksumMismatchError),
        ("/lfs/", Fault(status=404), RegistryAnswerError),
    ],
)
def test_what_goes_wrong_leaves_nothing_and_is_said(
    catalog: Catalog,
    hub: Hub,
    tmp_path: Path,
    path: str,
    fault: Fault,
    error: type[HyprstreamError],
):
    hub.add("org/tiny", FOLDER)
    hub.faults[path] = fault
    with pytest.raises(error) as caught:
        catalog.pull(TINY)
    assert caught.value.hint
    assert nothing_visible(tmp_path)
    if isinstance(caught.value, RateLimitedError):
        assert caught.value.retry_after_s == 7.0


def test_an_answer_that_ends_early_is_asked_for_from_there(catalog: Catalog, hub: Hub):
    hub.add("org/tiny", FOLDER)
    hub.faults["/lfs/"] = Fault(cut_at=1_500_000, times=1)
    assert contents(catalog.pull(TINY)) == FETCHED
    first, second = hub.requests("GET", "/lfs/")
    assert "Range" not in first.headers
    assert second.headers["Range"].startswith("bytes=1")


def interrupt(catalog: Catalog, hub: Hub) -> None:
    hub.faults = {"/lfs/": Fault(cut_at=2_500_000, times=1), "lfs": Fault(status=500)}
    with pytest.raises(RegistryUnreachableError, match="500"):
        catalog.pull(TINY)
    hub.faults.clear()
    hub.seen.clear()


def test_the_next_pull_goes_on_where_one_was_interrupted(
    catalog: Catalog, hub: Hub, progress: Recorder
):
    hub.add("org/tiny", FOLDER)
    interrupt(catalog, hub)
    assert contents(catalog.pull(TINY, progress)) == FETCHED
    (request,) = hub.requests("GET", "/lfs/")
    assert int(request.headers["Range"].removeprefix("bytes=").removesuffix("-")) >= 1 << 20
    assert progress.num_bytes == [0, 0, *map(len, FETCHED.values())]


def test_a_server_that_knows_no_ranges_begins_again(catalog: Catalog, hub: Hub, progress: Recorder):
    hub.add("org/tiny", FOLDER)
    interrupt(catalog, hub)
    hub.faults["/lfs/"] = Fault(no_ranges=True)
    assert contents(catalog.pull(TINY, progress)) == FETCHED
    assert progress.num_bytes == [0, 0, *map(len, FETCHED.values())]


def test_what_was_damaged_after_it_came_is_fetched_again(
    catalog: Catalog, hub: Hub, tmp_path: Path
):
    hub.add("org/tiny", FOLDER)
    interrupt(catalog, hub)
    digest = hashlib.sha256(FOLDER["model.safetensors"]).hexdigest()
    partial = tmp_path / "cache" / "partial" / f"{digest}.content"
    partial.write_bytes(bytes(partial.stat().st_size))
    assert contents(catalog.pull(TINY)) == FETCHED
    assert len(hub.requests("GET", "/lfs/")) == 2


def test_a_new_commit_brings_only_what_changed(catalog: Catalog, hub: Hub):
    repo = hub.add("org/tiny", FOLDER)
    catalog.pull(TINY)
    repo.files[OTHER_COMMIT] = {**FOLDER, "config.json": b'{"new": 1}'}
    repo.refs["main"] = OTHER_COMMIT
    hub.seen.clear()
    path = catalog.pull(TINY, force=True)
    assert contents(path) == {**FETCHED, "config.json": b'{"new": 1}'}
    assert not hub.requests("GET", "/lfs/")


@pytest.mark.parametrize(
    ("promised", "error"),
    [
        ({"lfs": {"sha256": "0" * 64, "size": 3 << 20, "pointerSize": 1}}, ChecksumMismatchError),
        ({"lfs": None, "blobId": "f" * 40}, ChecksumMismatchError),
        ({"lfs": {"sha256": "0" * 64, "size": 1 << 62, "pointerSize": 1}}, UnsupportedError),
        ({"lfs": {"sha256": "0" * 63, "size": 3 << 20, "pointerSize": 1}}, RegistryAnswerError),
        ({"lfs": None, "blobId": None}, RegistryAnswerError),
    ],
)
def test_promises_that_are_false_leave_nothing(
    catalog: Catalog, hub: Hub, tmp_path: Path, promised: dict[str, object], error: type[Exception]
):
    repo = hub.add("org/tiny", FOLDER)
    repo.promised["model.safetensors"] = promised
    with pytest.raises(error):
        catalog.pull(TINY)
    assert nothing_visible(tmp_path)
    assert not list((tmp_path / "cache" / "partial").glob("0*.content"))


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", None])
def test_offline_no_socket_is_touched(
    cache: ModelCache,
    environ: dict[str, str],
    hub: Hub,
    variable: str | None,
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a process or a connection was begun: {arguments} {options}")

    hub.add("org/tiny", FOLDER)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    settings = {variable: "1"} if variable else {}
    catalog = Catalog(cache, environ={**environ, **settings}, offline=variable is None)
    for act in (
        lambda: catalog.pull(TINY),
        lambda: catalog.search("hf", "tiny", limit=3),
        lambda: catalog.whoami("hf", "hf_secret"),
    ):
        with pytest.raises(OfflineError, match=variable or "HYPRSTREAM_OFFLINE"):
            act()
    assert catalog.status("hf").state == "offline"
    assert not hub.seen


def test_search_lists_what_the_hub_has(catalog: Catalog, hub: Hub):
    hub.add("org/tiny", FOLDER, gated=True)
    hub.add("org/Tiny-GGUF", {"x.gguf": b"GGUF"})
    hub.add("other", FOLDER)
    gated, gguf = catalog.search("hf", "TINY", limit=5)
    assert (str(gated.ref), gated.description) == ("hf://org/tiny", "text-generation, gated")
    assert (str(gguf.ref), gguf.downloads) == ("hf://org/Tiny-GGUF", 10)
    assert gguf.description == "text-generation, gguf"
    assert gguf.updated_at is not None
    assert gguf.updated_at.isoformat() == "2026-01-02T03:04:05+00:00"
    assert len(catalog.search("hf", "", limit=2)) == 2
    assert catalog.search("hf", "nothing like it", limit=2) == ()


def test_status_tells_the_reachable_from_the_rest(
    cache: ModelCache, catalog: Catalog, known: Catalog, environ: dict[str, str], hub: Hub
):
    assert (catalog.status("hf").state, catalog.status("hf").authenticated) == ("ready", False)
    assert (known.status("hf").state, known.status("hf").authenticated) == ("ready", True)
    stranger = Catalog(cache, environ=environ, token=lambda _: "hf_wrong")
    assert stranger.status("hf").state == "unauthorized"
    assert catalog.status("hf").address == hub.url
    hub.faults["/api"] = Fault(status=500)
    assert catalog.status("hf").state == "unreachable"
    assert known.whoami("pypi", "hf_secret") is None


def test_another_hub_is_a_registry_of_the_settings(cache: ModelCache, hub: Hub, tmp_path: Path):
    hub.add("org/tiny", FOLDER, private=True)
    catalog = Catalog(
        cache,
        environ={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        token={"corp": "hf_secret"}.get,
        custom={"corp": {"layout": "hf", "url": f"{hub.url}/"}},
    )
    assert contents(catalog.pull(ModelRef.parse("corp://org/tiny"))) == FETCHED


def test_what_the_hubs_own_tools_fetched_is_used_there(
    catalog: Catalog, hub: Hub, environ: dict[str, str]
):
    snapshot = Path(environ["HF_HOME"]) / "hub" / "models--org--tiny" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    for name, content in FETCHED.items():
        (snapshot / name).write_bytes(content)
    assert catalog.pull(TINY) == catalog.find(TINY) == snapshot
    assert not hub.seen
    hub.add("org/tiny", FOLDER)
    ours = catalog.pull(TINY, force=True)
    assert ours != snapshot
    assert catalog.find(TINY) == ours


def test_progress_bars_can_be_switched_off(
    cache: ModelCache, environ: dict[str, str], hub: Hub, progress: Recorder
):
    hub.add("org/tiny", FOLDER)
    environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    Catalog(cache, environ=environ).pull(TINY, progress)
    assert progress.phases == []
