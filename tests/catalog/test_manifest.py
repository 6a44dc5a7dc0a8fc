import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.catalog import manifest
from hyprstream.catalog.card import FileEntry, ModelCard
from hyprstream.errors import CorruptManifestError
from hyprstream.refs import ModelRef

CARD = ModelCard(
    ref=ModelRef.parse("pypi://tiny@1.0"),
    files=(FileEntry(name="m/x.gguf", size_bytes=7, sha256="ab" * 32),),
    entry="m/x.gguf",
    source="tiny-1.0.whl",
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def _load(folder: Path, content: bytes) -> ModelCard:
    file = folder / "x.json"
    file.write_bytes(content)
    return manifest.load(file)


def test_a_card_survives_being_written_and_read(tmp_path: Path):
    assert _load(tmp_path, manifest.encode(CARD)) == CARD


def test_what_is_absent_is_not_corrupt(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        manifest.load(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 2}, "format"),
        ({"ref": "pypi://tiny"}, "has no revision"),
        ({"ref": "tiny.gguf"}, "has no revision"),
        ({"ref": "pypi://../x@1"}, "not a model name"),
        ({"entry": "y.gguf"}, "no file"),
        ({"files": []}, "files"),
        ({"files": [{"name": "../x", "size_bytes": 1, "sha256": "ab" * 32}]}, "not a file name"),
        ({"files": [{"name": "x", "size_bytes": -1, "sha256": "ab" * 32}]}, "size_bytes"),
        ({"files": [{"name": "x", "size_bytes": "1", "sha256": "ab" * 32}]}, "size_bytes"),
        ({"files": [{"name": "x", "size_bytes": 1, "sha256": "../x"}]}, "SHA-256"),
        ({"new": 1}, "new"),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path: Path, change: dict[str, object], problem: str):
    content = json.loads(manifest.encode(CARD)) | change
    with pytest.raises(CorruptManifestError, match=problem):
        _load(tmp_path, json.dumps(content).encode())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_text_that_is_no_manifest_is_refused(tmp_path: Path, content: bytes):
    with pytest.raises(CorruptManifestError, match="does not describe a model"):
        _load(tmp_path, content)


def test_a_huge_manifest_is_not_read(tmp_path: Path):
    with (tmp_path / "x.json").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CorruptManifestError, match="longer than"):
        manifest.load(tmp_path / "x.json")


@given(key=st.sampled_from(["format", "ref", "entry", "source", "files"]), value=VALUES)
def test_any_value_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
):
    content = json.loads(manifest.encode(CARD)) | {key: value}
    try:
        card = _load(tmp_path_factory.mktemp("manifest"), json.dumps(content).encode())
    except CorruptManifestError:
        return
    assert json.loads(manifest.encode(card)) == content
