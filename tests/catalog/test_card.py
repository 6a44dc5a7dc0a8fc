from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.catalog.card import FileEntry, ModelCard, Progress, SilentProgress, model_entries
from hyprstream.errors import CorruptArchiveError, InvalidReferenceError
from hyprstream.refs import ModelRef
from tests.catalog.fakes import Recorder

HASH = "0" * 64
REF = ModelRef.parse("pypi://tiny@1")


@given(st.text(st.sampled_from("abA01._-+/\\:~ \0\n") | st.characters(), max_size=40))
def test_a_name_that_is_admitted_stays_in_its_folder(name: str):
    try:
        FileEntry(name=name, size_bytes=1, sha256=HASH)
    except InvalidReferenceError:
        return
    root = Path("/srv/models")
    assert (root / name).resolve().is_relative_to(root)
    assert (root / name).resolve() == root / name


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/etc/passwd", "a/../b", "a//b", ".hidden", "a\\b", "C:x", "", "a/", "nul.txt"),
        *("a/CON", "x.", "x\0y", "a" * 256, "/".join("abcdefghi")),
    ],
)
def test_names_that_could_do_harm_are_refused(name: str):
    with pytest.raises(InvalidReferenceError, match="is not a file name"):
        FileEntry(name=name, size_bytes=1, sha256=HASH)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "../" + "0" * 61])
def test_a_hash_that_is_none_is_refused(digest: str):
    with pytest.raises(InvalidReferenceError, match="is not the SHA-256"):
        FileEntry(name="x", size_bytes=1, sha256=digest)


def _card(*names: str, entry: str = "") -> ModelCard:
    files = tuple(FileEntry(name=name, size_bytes=3, sha256=HASH) for name in names)
    return ModelCard(ref=REF, files=files, entry=entry, source="test.whl")


def test_a_card_knows_its_length():
    assert _card("a", "b").size_bytes == 6


def test_names_that_differ_only_in_case_are_refused():
    with pytest.raises(CorruptArchiveError, match="only in case"):
        _card("Config.json", "config.json")


def test_an_entry_that_is_no_file_is_refused():
    with pytest.raises(CorruptArchiveError, match=r"no file 'b\.gguf'"):
        _card("a.gguf", entry="b.gguf")


@pytest.mark.parametrize(
    ("names", "entries"),
    [
        ([], []),
        (["a.bin", "config.json"], []),
        (["m/model.safetensors"], []),
        (["m/config.json", "n/model.safetensors"], []),
        (["config.json", "model.safetensors"], [""]),
        (["m/config.json", "m/model-00001-of-00002.safetensors"], ["m"]),
        (["m/x.gguf", "n/config.json", "n/a.safetensors"], ["m/x.gguf", "n"]),
        (["x.gguf/config.json"], []),
    ],
)
def test_models_are_recognised_among_files(names: list[str], entries: list[str]):
    assert model_entries(names) == entries


@pytest.mark.parametrize("follower", [SilentProgress(), Recorder()])
def test_followers_follow(follower: Progress):
    assert isinstance(follower, Progress)
    follower.start("phase", None)
    follower.advance(1)
    follower.done()
