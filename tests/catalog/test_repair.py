"""Damage of every kind is mended, with no more fetched than is needed."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.card import ModelCard, Progress, SilentProgress
from hyprstream.catalog.records import Repair
from hyprstream.catalog.repair import repair
from hyprstream.catalog.staging import Staging
from hyprstream.errors import (
    ChecksumMismatchError,
    ModelNotFoundError,
    RegistryUnreachableError,
    UnsupportedError,
)
from hyprstream.files import sha256_of
from hyprstream.refs import ModelRef
from tests.catalog.fakes import contents, put

TINY_1 = ModelRef.parse("pypi://tiny@1")
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "1_Pooling/config.json": b"{ }"}


class Publisher:
    """A registry that says before a download what each file will hold, if it `promises`."""

    def __init__(self, files: Mapping[str, bytes], *, promises: bool = True) -> None:
        self.files = files
        self.sent: list[str] = []
        self._promises = promises

    def fetch(self, ref: ModelRef, staging: Staging, _: Progress, __: Sequence[str]) -> ModelCard:
        for name, content in self.files.items():
            size_bytes, sha256 = len(content), hashlib.sha256(content).hexdigest()
            if not (self._promises and staging.reuse(name, size_bytes=size_bytes, sha256=sha256)):
                self.sent.append(name)
                staging.write(name, [content], size_bytes=size_bytes, sha256=sha256)
        return ModelCard(ref=ref, files=staging.files, entry="", source="a publisher")


@pytest.fixture
def publisher() -> Publisher:
    return Publisher(FILES)


def _overwrite(file: Path, content: bytes) -> None:
    file.chmod(0o644)
    file.write_bytes(content)


def _repair(cache: ModelCache, publisher: Publisher) -> Repair:
    return repair(cache, publisher.fetch, TINY_1, SilentProgress())


def _files(done: Repair) -> list[str]:
    return [damage.file for damage in done.damages]


def test_a_sound_model_is_left_alone(cache: ModelCache, publisher: Publisher):
    folder = put(cache, FILES).path
    before = folder.stat().st_ino
    assert _repair(cache, publisher) == Repair(
        ref=TINY_1, damages=(), fetched_bytes=0, quarantined=()
    )
    assert (publisher.sent, folder.stat().st_ino) == ([], before)


@pytest.mark.parametrize("harm", [b"WEIGHTS", b"wei", b"weights and more", None])
def test_only_the_damaged_file_is_fetched(
    cache: ModelCache, publisher: Publisher, harm: bytes | None
):
    file = put(cache, FILES).path / "model.safetensors"
    if harm is None:
        cache.shelf.blob(sha256_of(file)).unlink()
        file.unlink()
    else:
        _overwrite(file, harm)
    done = _repair(cache, publisher)
    assert _files(done) == ["model.safetensors"]
    assert done.fetched_bytes == len(b"weights")
    assert publisher.sent == ["model.safetensors"]
    assert cache.verify(TINY_1) == []
    assert contents(file.parent) == FILES


def test_a_missing_name_of_content_that_is_here_needs_no_registry(
    cache: ModelCache, publisher: Publisher
):
    file = put(cache, FILES).path / "model.safetensors"
    file.unlink()
    assert _repair(cache, publisher).fetched_bytes == 0
    assert publisher.sent == []
    assert contents(file.parent) == FILES


def test_a_registry_that_promises_nothing_sends_all(cache: ModelCache):
    _overwrite(put(cache, FILES).path / "config.json", b"[]")
    publisher = Publisher(FILES, promises=False)
    assert _repair(cache, publisher).fetched_bytes == sum(map(len, FILES.values()))
    assert cache.verify(TINY_1) == []


def test_a_file_that_two_models_share_is_mended_for_both(cache: ModelCache, publisher: Publisher):
    put(cache, FILES)
    other = put(cache, {"copy.safetensors": b"weights"}, name="other")
    _overwrite(other.path / "copy.safetensors", b"WEIGHTS")
    _repair(cache, publisher)
    assert publisher.sent == ["model.safetensors"]
    silent = Publisher({})
    repair(cache, silent.fetch, other.card.ref, SilentProgress())  # from what was just fetched
    assert cache.verify(other.card.ref) == []
    assert (other.path / "copy.safetensors").samefile(
        cache.shelf.view(TINY_1) / "model.safetensors"
    )


def test_an_unreadable_manifest_is_written_anew(cache: ModelCache, publisher: Publisher):
    put(cache, FILES)
    cache.shelf.manifest_file(TINY_1).write_text("{")
    assert _files(_repair(cache, publisher)) == [""]
    assert publisher.sent == []
    assert cache.verify(TINY_1) == []


def test_foreign_files_are_kept_aside_and_never_on_top_of_one_another(
    cache: ModelCache, publisher: Publisher
):
    folder = put(cache, FILES).path
    for content in (b"one", b"two"):
        (folder / "sub").mkdir()
        (folder / "sub/notes.txt").write_bytes(content)
        assert len(_repair(cache, publisher).quarantined) == 1
        assert cache.verify(TINY_1) == []
        (folder / "sub").rmdir()
    quarantine = cache.shelf.quarantine(TINY_1)
    assert contents(quarantine) == {"1/sub/notes.txt": b"one", "2/sub/notes.txt": b"two"}


def test_a_foreign_link_is_moved_and_what_it_leads_to_is_not(
    cache: ModelCache, publisher: Publisher, tmp_path: Path
):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"x")
    (put(cache, FILES).path / "link").symlink_to(outside)
    _repair(cache, publisher)
    assert contents(outside) == {"x": b"x"}
    assert cache.verify(TINY_1) == []


def test_another_content_under_the_same_revision_is_refused(
    cache: ModelCache, publisher: Publisher
):
    _overwrite(put(cache, FILES).path / "config.json", b"[]")
    publisher.files = {**FILES, "config.json": b"{} "}
    with pytest.raises(ChecksumMismatchError, match="something else under pypi://tiny@1"):
        _repair(cache, publisher)


def test_what_a_registry_has_besides_does_not_join(cache: ModelCache, publisher: Publisher):
    folder = put(cache, FILES).path
    _overwrite(folder / "config.json", b"[]")
    publisher.files = {**FILES, "README.md": b"new"}
    _repair(cache, publisher)
    assert contents(folder) == FILES


def test_a_failed_repair_leaves_everything_as_it_was(cache: ModelCache):
    folder = put(cache, FILES).path
    _overwrite(folder / "config.json", b"[]")

    def fail(ref: ModelRef, _: Staging, __: Progress, ___: Sequence[str]) -> ModelCard:
        raise RegistryUnreachableError(f"no answer for {ref}")

    with pytest.raises(RegistryUnreachableError):
        repair(cache, fail, TINY_1, SilentProgress())
    assert contents(folder) == {**FILES, "config.json": b"[]"}
    assert [damage.file for damage in cache.verify(TINY_1)] == ["config.json"]


def test_damage_in_kept_metadata_does_not_bring_weights_back(
    cache: ModelCache, publisher: Publisher
):
    folder = put(cache, FILES).path
    cache.remove_weights(TINY_1, lambda _: b"")
    assert _repair(cache, publisher).damages == ()
    _overwrite(folder / "config.json", b"[]")
    with pytest.raises(UnsupportedError, match=r"config\.json has other content") as caught:
        _repair(cache, publisher)
    assert "pull pypi://tiny@1" in caught.value.hint
    assert publisher.sent == []


def test_what_is_not_there_cannot_be_mended(cache: ModelCache, publisher: Publisher):
    with pytest.raises(ModelNotFoundError):
        _repair(cache, publisher)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_is_damaged_is_what_it_was_afterwards(
    cache: ModelCache, publisher: Publisher, data: st.DataObject
):
    folder = put(cache, FILES).path
    expected_bytes = 0
    for name, content in FILES.items():
        harm = data.draw(st.sampled_from(["none", "unlink", "flip", "cut", "lose"]), name)
        if harm in {"unlink", "lose"}:
            (folder / name).unlink()
        if harm == "lose":
            for blob in cache.shelf.root.glob("blobs/sha256/*"):
                if blob.read_bytes() == content:
                    blob.unlink()
        if harm == "flip":
            at = data.draw(st.integers(0, 8 * len(content) - 1))
            flipped = int.from_bytes(content, "big") ^ 1 << at
            _overwrite(folder / name, flipped.to_bytes(len(content), "big"))
        if harm == "cut":
            _overwrite(folder / name, content[: data.draw(st.integers(0, len(content) - 1))])
        expected_bytes += len(content) if harm in {"flip", "cut", "lose"} else 0
    assert _repair(cache, publisher).fetched_bytes == expected_bytes
    assert cache.verify(TINY_1) == []
    assert contents(folder) == FILES
