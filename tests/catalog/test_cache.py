from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.card import ModelCard, SilentProgress
from hyprstream.errors import (
    CacheBusyError,
    CorruptManifestError,
    InvalidSettingsError,
    ModelNotFoundError,
)
from hyprstream.refs import ModelRef
from tests.catalog.fakes import contents, put

TINY = ModelRef.parse("pypi://tiny")
TINY_1 = ModelRef.parse("pypi://tiny@1")
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "1_Pooling/config.json": b"{ }"}


def _blobs(cache_root: Path) -> set[bytes]:
    return {file.read_bytes() for file in cache_root.glob("blobs/sha256/*")}


def _overwrite(file: Path, content: bytes) -> None:
    file.chmod(0o644)
    file.write_bytes(content)


def test_an_empty_cache_creates_nothing_when_looked_at(tmp_path: Path):
    cache = ModelCache(tmp_path / "absent")
    assert cache.find(TINY) is None
    assert cache.models() == []
    assert not (tmp_path / "absent").exists()


def test_a_committed_folder_is_found_whole(cache: ModelCache):
    model = put(cache, FILES)
    assert cache.find(TINY) == cache.find(TINY_1) == model
    assert model.path.is_dir()
    assert contents(model.path) == FILES


def test_a_committed_file_is_found_as_a_file(cache: ModelCache):
    model = put(cache, {"tiny.gguf": b"GGUF"}, entry="tiny.gguf")
    assert model.path.name == "tiny.gguf"
    assert model.path.read_bytes() == b"GGUF"


def test_a_model_knows_when_it_came(cache: ModelCache):
    age = datetime.now(UTC) - put(cache, FILES).fetched_at
    assert abs(age) < timedelta(minutes=1)


def test_nothing_is_left_of_the_staging(cache: ModelCache, tmp_path: Path):
    put(cache, FILES)
    assert list((tmp_path / "cache" / "temp").iterdir()) == []


def test_the_same_content_is_kept_once(cache: ModelCache, tmp_path: Path):
    first, second = put(cache, FILES), put(cache, FILES, name="other/tiny")
    assert (first.path / "config.json").samefile(second.path / "config.json")
    assert _blobs(tmp_path / "cache") == set(FILES.values())


def test_a_reference_without_revision_is_what_was_last_fetched_so(cache: ModelCache):
    put(cache, FILES, revision="2", pinned=True)
    assert cache.find(TINY) is None
    put(cache, FILES, revision="1")
    put(cache, FILES, revision="3", pinned=True)
    model = cache.find(TINY)
    assert model is not None
    assert model.card.ref == TINY_1


def test_names_with_a_slash_have_folders_of_their_own(cache: ModelCache):
    put(cache, {"c": b"outer"}, name="a", revision="b")
    put(cache, {"c": b"inner"}, name="a/b", revision="c")
    put(cache, {"c": b"dashed"}, name="a--b", revision="refs/c+1")
    found = {str(model.card.ref): contents(model.path) for model in cache.models()}
    assert found == {
        "pypi://a@b": {"c": b"outer"},
        "pypi://a/b@c": {"c": b"inner"},
        "pypi://a--b@refs/c+1": {"c": b"dashed"},
    }


def test_fetching_a_revision_again_replaces_it(cache: ModelCache, tmp_path: Path):
    put(cache, FILES)
    model = put(cache, {"config.json": b"[]"})
    assert contents(model.path) == {"config.json": b"[]"}
    assert _blobs(tmp_path / "cache") == {b"[]"}


def test_an_open_file_outlives_its_replacement(cache: ModelCache):
    with (put(cache, FILES).path / "model.safetensors").open("rb") as stream:
        put(cache, {"model.safetensors": b"renewed"})
        assert stream.read() == b"weights"


def test_removing_frees_what_no_other_model_has(cache: ModelCache, tmp_path: Path):
    put(cache, FILES)
    put(cache, {"config.json": b"{}"}, name="other")
    assert cache.remove(TINY) == len(b"weights") + len(b"{ }")
    assert cache.find(TINY) is None
    assert _blobs(tmp_path / "cache") == {b"{}"}
    assert contents(tmp_path / "cache" / "models") == {"pypi/other/1/config.json": b"{}"}


def test_removing_one_revision_leaves_the_others(cache: ModelCache):
    put(cache, FILES, revision="1")
    put(cache, FILES, revision="2")
    cache.remove(ModelRef.parse("pypi://tiny@2"))
    assert [str(model.card.ref) for model in cache.models()] == ["pypi://tiny@1"]
    assert cache.find(TINY) is None
    assert cache.find(TINY_1)


def test_removing_without_a_revision_removes_all(cache: ModelCache):
    put(cache, FILES, revision="1")
    put(cache, FILES, revision="2", pinned=True)
    cache.remove(TINY)
    assert cache.models() == []


@pytest.mark.parametrize("ref", ["pypi://tiny", "pypi://tiny@2", "pypi://other@1"])
def test_removing_what_is_not_there_says_so(cache: ModelCache, ref: str):
    put(cache, FILES, pinned=True, revision="1", name="some")
    with pytest.raises(ModelNotFoundError, match="is not in the model cache"):
        cache.remove(ModelRef.parse(ref))


def test_a_model_that_is_being_fetched_cannot_be_removed(cache: ModelCache):
    put(cache, FILES)
    with cache.stage(TINY, SilentProgress()), pytest.raises(CacheBusyError, match="pypi://tiny"):
        cache.remove(TINY)
    assert cache.find(TINY)


def test_what_a_killed_fetch_left_is_collected(cache: ModelCache, tmp_path: Path):
    left = tmp_path / "cache" / "temp" / "pypi+other" / "attempt"
    left.mkdir(parents=True)
    (left / "0.part").write_bytes(b"half")
    put(cache, FILES)
    assert not left.parent.exists()


def test_what_another_fetch_has_staged_is_not_collected(cache: ModelCache):
    with cache.stage(ModelRef.parse("pypi://other"), SilentProgress()) as staging:
        staging.write("a", [b"half"], size_bytes=4, sha256=None)
        put(cache, FILES)
        assert staging.content(staging.files[0]).read_bytes() == b"half"


def test_a_failed_fetch_leaves_nothing(cache: ModelCache, tmp_path: Path):
    def interrupted() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), cache.stage(TINY, SilentProgress()) as staging:
        staging.write("a", interrupted(), size_bytes=8, sha256=None)
    assert contents(tmp_path / "cache") == {"locks/pypi+tiny.lock": b""}


def test_a_sound_model_verifies(cache: ModelCache):
    put(cache, FILES)
    assert cache.verify(TINY) == []


def test_damage_is_found_and_named(cache: ModelCache, tmp_path: Path):
    files = {name: name.encode() for name in ("cut", "flipped", "gone", "linked", "sound")}
    folder = put(cache, files).path
    outside = tmp_path / "outside"
    outside.write_bytes(b"linked")
    _overwrite(folder / "cut", b"c")
    _overwrite(folder / "flipped", b"flopped")
    (folder / "gone").unlink()
    (folder / "linked").unlink()
    (folder / "linked").symlink_to(outside)
    (folder / "foreign").write_bytes(b"x")
    found = {damage.file: damage.problem for damage in cache.verify(TINY)}
    assert found == {
        "cut": "has 1 bytes instead of 3",
        "flipped": "has other content of the same length",
        "gone": "is missing",
        "linked": "is a symbolic link",
        "foreign": "does not belong there",
    }


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_an_incomplete_model_is_not_found_and_mended_by_the_next_fetch(
    cache: ModelCache, harm: str
):
    file = put(cache, FILES).path / "model.safetensors"
    if harm == "cut":
        _overwrite(file, b"wei")
    else:
        file.unlink()
    assert cache.find(TINY) is None
    put(cache, FILES)
    assert cache.verify(TINY) == []
    assert file.read_bytes() == b"weights"


def test_flipped_bits_are_mended_by_the_next_fetch(cache: ModelCache):
    file = put(cache, FILES).path / "model.safetensors"
    _overwrite(file, b"WEIGHTS")
    put(cache, FILES)
    assert cache.verify(TINY) == []


def test_a_model_that_a_link_leads_out_of_is_not_found(cache: ModelCache, tmp_path: Path):
    model = put(cache, {"tiny.gguf": b"GGUF"}, entry="tiny.gguf")
    (tmp_path / "outside").write_bytes(b"GGUF")
    model.path.unlink()
    model.path.symlink_to(tmp_path / "outside")
    assert cache.find(TINY) is None


def test_verifying_what_is_not_there_says_so(cache: ModelCache):
    for ref in (TINY, TINY_1):
        with pytest.raises(ModelNotFoundError):
            cache.verify(ref)


def test_an_unreadable_manifest_hides_the_model_and_keeps_its_content(
    cache: ModelCache, tmp_path: Path
):
    put(cache, FILES)
    (tmp_path / "cache/manifests/pypi/tiny/1.json").write_text('{"format": 2}')
    assert cache.find(TINY) is None
    assert cache.models() == []
    with pytest.raises(CorruptManifestError, match="format"):
        cache.verify(TINY)
    put(cache, {"config.json": b"new"}, name="other")
    assert _blobs(tmp_path / "cache") == {*FILES.values(), b"new"}
    cache.remove(TINY)
    assert _blobs(tmp_path / "cache") == {b"new"}


def test_a_manifest_of_another_model_is_not_believed(cache: ModelCache, tmp_path: Path):
    put(cache, FILES)
    folder = tmp_path / "cache/manifests/pypi"
    (folder / "other").mkdir()
    (folder / "other/1.json").write_bytes((folder / "tiny/1.json").read_bytes())
    assert cache.find(ModelRef.parse("pypi://other@1")) is None


def test_a_garbled_pointer_points_nowhere(cache: ModelCache, tmp_path: Path):
    put(cache, FILES)
    for text in (b"../../x", b"\xff", b""):
        (tmp_path / "cache/manifests/pypi/tiny/newest").write_bytes(text)
        assert cache.find(TINY) is None
    assert cache.find(TINY_1)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidSettingsError, match="cannot be used"):
        put(ModelCache(tmp_path / "file" / "cache"), FILES)


def test_long_names_that_differ_at_the_end_have_folders_of_their_own(cache: ModelCache):
    names = [f"host/{'long-' * 100}{end}.gguf" for end in "ab"]
    for name in names:
        ref = ModelRef(scheme="https", name=name)
        with cache.stage(ref, SilentProgress()) as staging:
            staging.write("m.gguf", [name.encode()], size_bytes=len(name), sha256=None)
            card = ModelCard(
                ref=replace(ref, revision="a" * 64),
                files=staging.files,
                entry="m.gguf",
                source="a test",
            )
            cache.commit(staging, card)
    for name in names:
        model = cache.find(ModelRef(scheme="https", name=name))
        assert model is not None
        assert model.path.read_bytes() == name.encode()
        assert cache.verify(model.card.ref) == []


def test_tags_of_one_name_are_models_of_their_own(cache: ModelCache):
    one, other = (ModelRef(scheme="ollama", name="tiny", tag=tag) for tag in ("8b", "9b"))
    with cache.stage(one, SilentProgress()) as staging:
        staging.write("m.gguf", [b"GGUF"], size_bytes=4, sha256=None)
        card = ModelCard(
            ref=replace(one, revision="1"), files=staging.files, entry="m.gguf", source="a test"
        )
        cache.commit(staging, card)
    assert cache.find(one) is not None
    assert cache.find(other) is None
    with pytest.raises(ModelNotFoundError):
        cache.remove(other)
