"""`hyprstream cache` on a real cache."""

import json
from pathlib import Path

import pytest

from hyprstream.catalog.cache import ModelCache
from tests.catalog.fakes import contents, put
from tests.runtime.adapted_models import make_folder

FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


def _damage(cache: ModelCache, revision: str = "1") -> Path:
    file = put(cache, FILES, revision=revision).path / "model.safetensors"
    file.chmod(0o644)
    file.write_bytes(b"WEIGHTS")
    return file


def test_the_status_of_an_empty_cache(hyprstream):
    result = hyprstream("cache", "status")
    assert (result.code, result.err) == (0, "")
    assert ["models", "none"] in [line.split() for line in result.out.splitlines()]


@pytest.mark.parametrize("group", [("cache",), ("model", "cache")])
def test_the_status_counts_models_bytes_and_leftovers(hyprstream, cache, group):
    put(cache, FILES)
    put(cache, {"config.json": b"{}"}, name="other")
    left = cache.shelf.root / "temp/pypi+gone/x"
    left.mkdir(parents=True)
    (left / "0.part").write_bytes(b"half")
    data = json.loads(hyprstream(*group, "status", "--format", "json").out)
    assert data["folder"] == str(cache.shelf.root)
    assert [(row["ref"], row["size_bytes"], row["unique_bytes"]) for row in data["models"]] == [
        ("pypi://other@1", 2, 0),
        ("pypi://tiny@1", 9, 7),
    ]
    assert (data["unique_bytes"], data["shared_bytes"]) == (7, 2)
    assert data["leftovers"] == [{"kind": "abandoned fetch", "name": "pypi+gone", "size_bytes": 4}]
    result = hyprstream(*group, "status")
    assert "2 complete" in result.out
    assert "cache cleanup" in result.err


def test_cleanup_asks_shows_and_removes(hyprstream, cache):
    for revision in ("1", "2"):
        put(cache, {"a.gguf": revision.encode()}, revision=revision)
    assert "nothing is left over" in hyprstream("cache", "cleanup", "--yes").err
    dry = hyprstream("cache", "cleanup", "--old-revisions", "--dry-run")
    assert dry.out.splitlines()[1].split() == ["old", "revision", "pypi://tiny@1", "1", "B"]
    assert dry.err == "1 would go, 1 B would be free; nothing was removed\n"
    refused = hyprstream("cache", "cleanup", "--old-revisions")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert len(cache.models()) == 2
    done = hyprstream("cache", "cleanup", "--old-revisions", "--yes", "--format", "json")
    assert [row["name"] for row in json.loads(done.out)] == ["pypi://tiny@1"]
    assert done.err == "1 B freed\n"
    assert [str(model.card.ref) for model in cache.models()] == ["pypi://tiny@2"]


def test_sound_models_verify(hyprstream, cache):
    put(cache, FILES)
    put(cache, FILES, name="other")
    result = hyprstream("cache", "verify")
    assert (result.code, result.out) == (0, "")
    assert result.err.splitlines()[-1] == "2 verified: 2 sound"
    assert result.err.splitlines()[0] == "verifying 2 models (18 B)"


def test_damage_is_named_with_a_next_step_and_a_failing_exit_code(hyprstream, cache):
    (_damage(cache).parent / "foreign").write_bytes(b"x")
    put(cache, FILES, name="sound")
    result = hyprstream("cache", "verify", "--format", "table")
    assert result.code == 1
    assert [line.split() for line in result.out.splitlines()[1:]] == [
        ["pypi://tiny@1", "foreign", "does", "not", "belong", "there", "damaged"],
        [
            *("pypi://tiny@1", "model.safetensors"),
            *("has", "other", "content", "of", "the", "same", "length", "damaged"),
        ],
    ]
    assert "2 verified: 1 sound, 1 damaged\nhint: Add --repair" in result.err
    assert hyprstream("cache", "verify", "-q").out == "pypi://tiny@1\n"


def test_one_model_or_all_its_revisions_are_verified(hyprstream, cache):
    _damage(cache, "1")
    put(cache, FILES, revision="2")
    assert hyprstream("cache", "verify", "pypi://tiny@2").code == 0
    data = hyprstream("cache", "verify", "pypi://tiny", "--format", "json")
    assert data.code == 1
    assert [(row["ref"], row["sound"]) for row in json.loads(data.out)] == [
        ("pypi://tiny@1", False),
        ("pypi://tiny@2", True),
    ]
    missing = hyprstream("cache", "verify", "pypi://absent")
    assert (missing.code, missing.out) == (3, "")


def test_what_this_disk_still_has_is_mended_without_a_network(hyprstream, cache, monkeypatch):
    monkeypatch.setenv("HYPRSTREAM_OFFLINE", "1")
    folder = put(cache, FILES).path
    (folder / "config.json").unlink()
    (folder / "foreign").write_bytes(b"x")
    result = hyprstream("cache", "verify", "--repair", "--format", "json")
    assert result.code == 0
    assert result.err.splitlines()[-1] == "1 verified: 0 sound, 1 mended"
    [row] = json.loads(result.out)
    assert (row["repaired"], row["fetched_bytes"]) == (True, 0)
    [quarantined] = row["quarantined"]
    assert Path(quarantined).read_bytes() == b"x"
    assert contents(folder) == FILES


def test_what_cannot_be_mended_does_not_stop_the_rest(hyprstream, cache, monkeypatch):
    monkeypatch.setenv("HYPRSTREAM_OFFLINE", "1")
    _damage(cache)
    other = put(cache, {"config.json": b"{}", "x.gguf": b"x"}, name="zzz").path
    (other / "x.gguf").unlink()
    result = hyprstream("cache", "verify", "--repair")
    assert result.code == 1
    assert "needs the network" in result.err
    assert "hint: Unset HYPRSTREAM_OFFLINE" in result.err
    assert "2 verified: 0 sound, 1 mended, 1 damaged" in result.err
    assert (other / "x.gguf").read_bytes() == b"x"


def test_a_manifest_that_cannot_be_read_is_damage(hyprstream, cache):
    ref = put(cache, FILES).card.ref
    cache.shelf.manifest_file(ref).write_text("{")
    result = hyprstream("cache", "verify")
    assert result.code == 1
    assert "(manifest)" in result.out
    assert "1 unreadable" in hyprstream("cache", "status").out


def test_weights_go_and_the_list_and_info_still_know_the_model(hyprstream, cache, tmp_path_factory):
    files = contents(make_folder(tmp_path_factory.mktemp("model") / "tiny"))
    put(cache, files)
    before = json.loads(hyprstream("model", "info", "pypi://tiny", "--format", "json").out)
    assert hyprstream("model", "remove", "pypi://tiny", "--keep-metadata", "--yes").code == 0
    assert "metadata only" in hyprstream("ls").out
    after = json.loads(hyprstream("model", "info", "pypi://tiny", "--format", "json").out)
    assert after == before
    put(cache, files, pinned=True)
    assert "complete" in hyprstream("ls").out
