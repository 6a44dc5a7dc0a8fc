"""Models in object stores, on a folder that fsspec shows as a store, and what such do wrong."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from hyprstream.catalog.buckets import Bucket
from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.card import SilentProgress
from hyprstream.catalog.staging import Staging
from hyprstream.errors import (
    ChecksumMismatchError,
    HyprstreamError,
    InvalidReferenceError,
    ModelNotFoundError,
    RegistryAnswerError,
    RegistryUnreachableError,
    UnsupportedFormatError,
)
from hyprstream.refs import ModelRef
from tests.catalog.fakes import Recorder, contents

TINY = ModelRef.parse("s3://bucket/team/tiny")
FILES = {
    "config.json": b"{}",
    "model.safetensors": os.urandom(3 << 20),
    "tokenizer.json": b"{ }",
    "1_Pooling/config.json": b"[]",
    "pytorch_model.bin": b"a pickle",
    "notes/of/somebody.txt": b"",
}
FETCHED = {name: FILES[name] for name in FILES if not name.endswith(".bin") and "notes" not in name}


class Store:
    """A folder as a store, that does `on_open` before a file is opened and lies about lengths."""

    def __init__(self, folder: Path) -> None:
        self._files = DirFileSystem(str(folder), LocalFileSystem(), skip_instance_cache=True)
        self.on_open: Callable[[str], None] = lambda _: None
        self.lengths: dict[str, Any] = {}

    def find(self, path: str, maxdepth: int | None = None, *, detail: bool = False) -> Any:
        found = self._files.find(path, maxdepth=maxdepth, detail=detail)
        for name, length in self.lengths.items():
            if name in found:
                found[name]["size"] = length
        return found

    def open(self, path: str, mode: str = "rb") -> Any:
        self.on_open(path)
        return self._files.open(path, mode)


@contextmanager
def _errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RegistryUnreachableError(f"{path}: {error}") from error


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Store:
    for name, content in FILES.items():
        file = folder / "bucket/team/tiny" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return Store(folder)


def _pull(cache: ModelCache, store: Store, ref: ModelRef = TINY, *, root: str = "") -> Path:
    with cache.stage(ref, SilentProgress()) as staging:
        card = Bucket(store, root, _errors).fetch(ref, staging, SilentProgress())
        return cache.commit(staging, card).path


def test_a_folder_comes_with_what_belongs_to_the_model(cache: ModelCache, store: Store):
    assert contents(_pull(cache, store)) == FETCHED
    (model,) = cache.models()
    assert model.card.source == "bucket/team/tiny"
    assert cache.verify(TINY) == []


def test_progress_is_told_by_file_and_in_total(store: Store, staging: Staging, progress: Recorder):
    Bucket(store, "", _errors).fetch(TINY, staging, progress)
    total = sum(map(len, FETCHED.values()))
    assert progress.phases[1] == ("downloading s3://bucket/team/tiny", total)
    assert dict(progress.phases[2:]) == {name: len(data) for name, data in FETCHED.items()}
    assert sum(progress.num_bytes) == total
    assert progress.num_done == len(progress.phases)


def test_one_file_is_a_model_by_its_own_name(cache: ModelCache, store: Store, folder: Path):
    (folder / "bucket/x.gguf").write_bytes(b"GGUF")
    path = _pull(cache, store, ModelRef.parse("s3://bucket/x.gguf"))
    assert (path.name, path.read_bytes()) == ("x.gguf", b"GGUF")


def test_a_registry_of_the_users_own_has_its_models_below_a_prefix(
    cache: ModelCache, store: Store, folder: Path
):
    (folder / "bucket/team/q").mkdir()
    for name in ("m-Q8_0.gguf", "m-Q4_K_M.gguf"):
        (folder / "bucket/team/q" / name).write_bytes(name.encode())
    assert contents(_pull(cache, store, ModelRef.parse("acme://tiny"), root="bucket/team"))
    path = _pull(cache, store, ModelRef.parse("acme://q:Q8_0"), root="bucket/team")
    assert path.read_bytes() == b"m-Q8_0.gguf"


def test_the_same_content_has_the_same_revision_until_it_changes(
    cache: ModelCache, store: Store, folder: Path
):
    _pull(cache, store)
    (first,) = cache.models()
    assert contents(_pull(cache, store, first.card.ref)) == FETCHED
    (folder / "bucket/team/tiny/config.json").write_bytes(b"[ ]")
    with pytest.raises(ModelNotFoundError, match="has changed") as caught:
        _pull(cache, store, first.card.ref)
    assert "s3://bucket/team/tiny." in caught.value.hint
    _pull(cache, store)
    assert len(cache.models()) == 2


def test_a_model_that_changes_meanwhile_is_not_taken(cache: ModelCache, store: Store, folder: Path):
    config = folder / "bucket/team/tiny/config.json"

    def change(name: str) -> None:
        if "tokenizer" in name:
            config.write_bytes(b"[ ]")

    store.on_open = change
    with pytest.raises(RegistryUnreachableError, match="changed while"):
        _pull(cache, store)
    assert cache.models() == []


@pytest.mark.parametrize("change", [-1, 1, 1 << 30])
def test_a_file_of_another_length_than_announced_is_refused(
    cache: ModelCache, store: Store, change: int
):
    name = "bucket/team/tiny/model.safetensors"
    store.lengths[name] = len(FILES["model.safetensors"]) + change
    with pytest.raises(ChecksumMismatchError, match=r"model\.safetensors"):
        _pull(cache, store)


@pytest.mark.parametrize("length", [None, -1, 1 << 60, "7", 2.5])
def test_a_length_that_is_none_is_refused(cache: ModelCache, store: Store, length: object):
    store.lengths["bucket/team/tiny/model.safetensors"] = length
    with pytest.raises(RegistryAnswerError):
        _pull(cache, store)


def test_a_store_that_fails_in_the_middle_leaves_nothing(cache: ModelCache, store: Store):
    def fail(name: str) -> None:
        if "safetensors" in name:
            raise ConnectionResetError(104, "reset")

    store.on_open = fail
    with pytest.raises(RegistryUnreachableError, match="reset"):
        _pull(cache, store)
    assert cache.models() == []
    assert cache.leftovers() == []


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("bucket/absent", ModelNotFoundError),
        ("bucket/team/tiny/1_Pooling", ModelNotFoundError),
        ("bucket/pickles", UnsupportedFormatError),
        ("bucket/several", InvalidReferenceError),
        ("bucket/strange", InvalidReferenceError),
    ],
)
def test_what_is_no_model_is_refused(
    cache: ModelCache, store: Store, folder: Path, name: str, error: type[HyprstreamError]
):
    others = {
        "pickles/pytorch_model.bin": b"x",
        "several/a-Q8_0.gguf": b"x",
        "several/b-Q5_0.gguf": b"x",
        "strange/config.json": b"{}",
        "strange/model.safetensors": b"x",
        "strange/1_x/config.json": b"x",
        "strange/additional_chat_templates/\x1b[2J.jinja": b"x",
    }
    for path, content in others.items():
        file = folder / "bucket" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with pytest.raises(error):
        _pull(cache, store, ModelRef(scheme="s3", name=name))
    assert cache.models() == []


def test_a_prefix_is_searched_for_models(store: Store, folder: Path):
    (folder / "bucket/team/other-tiny.gguf").write_bytes(b"GGUF")
    bucket = Bucket(store, "bucket", _errors)
    found = {str(offer.ref): offer.size_bytes for offer in bucket.search("acme", "TINY", limit=9)}
    assert found == {
        "acme://team/tiny": sum(map(len, FILES.values())),
        "acme://team/other-tiny.gguf": 4,
    }
    assert len(bucket.search("acme", "tiny", limit=1)) == 1
    assert bucket.search("acme", "absent", limit=9) == []
