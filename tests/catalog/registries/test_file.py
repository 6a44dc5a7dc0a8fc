from pathlib import Path

import pytest

from hyprstream.catalog.card import SilentProgress
from hyprstream.catalog.registries.file import FileRegistry
from hyprstream.catalog.staging import Staging
from hyprstream.errors import InvalidReferenceError, ModelNotFoundError, UnsupportedRegistryError
from hyprstream.refs import ModelRef


def _locate(path: Path) -> Path:
    return FileRegistry().locate(ModelRef.parse(str(path)))


def _folder(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_a_file_is_used_where_it_lies(tmp_path: Path):
    (tmp_path / "tiny.gguf").write_bytes(b"")
    assert _locate(tmp_path / "tiny.gguf") == tmp_path / "tiny.gguf"


def test_a_folder_with_a_model_is_used_as_a_folder(tmp_path: Path):
    folder = _folder(tmp_path / "m", "config.json", "model.safetensors", "also.gguf")
    assert _locate(folder) == folder


def test_a_folder_with_one_gguf_file_means_that_file(tmp_path: Path):
    folder = _folder(tmp_path / "m", "README.md", "tiny.gguf")
    assert _locate(folder) == folder / "tiny.gguf"


def test_a_folder_with_several_gguf_files_is_ambiguous(tmp_path: Path):
    folder = _folder(tmp_path / "m", "a.gguf", "b.gguf")
    with pytest.raises(InvalidReferenceError, match=r"a\.gguf, b\.gguf") as caught:
        _locate(folder)
    assert str(folder / "a.gguf") in caught.value.hint


def test_a_folder_without_a_model_says_what_was_looked_for(tmp_path: Path):
    folder = _folder(tmp_path / "m", "config.json", "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match=r"looked for \*\.gguf"):
        _locate(folder)


@pytest.mark.parametrize("path", ["tiny.gguf", "a/b/tiny.gguf", "file/x"])
def test_a_missing_path_says_which_part_is_missing(tmp_path: Path, path: str):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="there is no file or folder") as caught:
        _locate(tmp_path / path)
    parent, missing = ("file", "x") if path == "file/x" else ("", path.split("/", maxsplit=1)[0])
    assert caught.value.hint.startswith(f"{tmp_path / parent} holds no {missing!r}.")
    assert "pypi://NAME" in caught.value.hint


def test_a_path_that_cannot_be_looked_at_is_not_found(tmp_path: Path):
    with pytest.raises(ModelNotFoundError, match="cannot be read: File name too long"):
        _locate(tmp_path / ("x" * 300))


def test_home_is_expanded_and_the_path_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    registry = FileRegistry()
    for text in ("~/m", "m", "file://m", str(tmp_path / "m")):
        assert registry.canonical(ModelRef.parse(text)).name == str(tmp_path / "m")


def test_an_unknown_home_is_refused():
    with pytest.raises(InvalidReferenceError, match="names no home folder"):
        FileRegistry().canonical(ModelRef.parse("~no-such-user-here/m"))


def test_a_path_is_never_fetched(staging: Staging):
    with pytest.raises(UnsupportedRegistryError, match="is a path"):
        FileRegistry().fetch(ModelRef.parse("x"), staging, SilentProgress())
