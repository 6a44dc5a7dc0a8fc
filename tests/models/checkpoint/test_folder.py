import gzip
import io
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch

from hyprstream.errors import (
    CorruptWeightsError,
    InvalidInputError,
    ModelNotFoundError,
    UnsupportedFormatError,
)
from hyprstream.models.checkpoint import GgufFile, SafetensorsFile, open_checkpoint
from tests.models.checkpoint import forge

GGUF, SAFETENSORS = forge.sound_gguf(), forge.sound_safetensors()


def fill(folder: Path, **files: bytes) -> Path:
    """Write files, in whose names two underscores stand for a dot."""
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


@pytest.mark.parametrize(("data", "reader"), [(GGUF, GgufFile), (SAFETENSORS, SafetensorsFile)])
@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "sha256-0123"])
def test_file_is_judged_by_content_not_by_name(tmp_path, data, reader, name):
    (tmp_path / name).write_bytes(data)
    assert isinstance(open_checkpoint(tmp_path / name), reader)


def test_link_to_a_file_elsewhere_is_followed(tmp_path):
    fill(tmp_path, blob=GGUF)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.gguf").symlink_to(tmp_path / "blob")
    assert isinstance(open_checkpoint(tmp_path / "snapshot"), GgufFile)


def test_only_gguf_file_of_a_folder_is_taken(tmp_path):
    assert isinstance(open_checkpoint(fill(tmp_path, x__gguf=GGUF, readme__md=b"")), GgufFile)


def test_only_safetensors_file_of_a_folder_is_taken(tmp_path):
    fill(tmp_path, weights__safetensors=SAFETENSORS, config__json=b"{}", x__bin=b"")
    assert isinstance(open_checkpoint(tmp_path), SafetensorsFile)


def test_usual_name_goes_before_other_files(tmp_path):
    fill(tmp_path, model__safetensors=SAFETENSORS, other__safetensors=b"", x__gguf=b"")
    assert open_checkpoint(tmp_path).names() == ("a", "b", "c", "d")


def test_index_in_a_folder_is_followed(tmp_path):
    index = json.dumps({"weight_map": {"b": "s1.safetensors"}}).encode()
    fill(tmp_path, s1__safetensors=SAFETENSORS, model__safetensors__index__json=index)
    assert open_checkpoint(tmp_path).names() == ("b",)


@pytest.mark.parametrize("suffix", ["gguf", "safetensors"])
def test_several_candidates_are_listed(tmp_path, suffix):
    fill(tmp_path, **{f"a__{suffix}": b"", f"b__{suffix}": b""})
    with pytest.raises(InvalidInputError, match=rf"2 files of weights: a\.{suffix}, b\.{suffix}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_folder_of_pickles_says_how_to_convert(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnsupportedFormatError, match=f"pickled weights only: {name}") as caught:
        open_checkpoint(tmp_path)
    assert "save_pretrained" in caught.value.hint


def test_folder_without_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"looked for model\.safetensors, .*\*\.gguf"):
        open_checkpoint(fill(tmp_path, config__json=b"{}"))


def test_missing_path_is_not_found(tmp_path):
    with pytest.raises(ModelNotFoundError, match="absent"):
        open_checkpoint(tmp_path / "absent")


def test_path_that_no_system_admits_is_not_found(tmp_path):
    with pytest.raises(ModelNotFoundError, match="File name too long"):
        open_checkpoint(tmp_path / ("x" * 5000))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_folder_that_may_not_be_read_is_not_found(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    with pytest.raises(ModelNotFoundError, match="Permission denied"):
        open_checkpoint(locked)


def saved_by_torch(*, as_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=as_zip)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x", "y")
    return buffer.getvalue()


MISTAKES = {
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-LFS"),
    "HTML": (b"\n <!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
    "zip": (zipped(), "a zip archive"),
    "torch.save": (saved_by_torch(as_zip=True), "a zip archive"),
    "old torch.save": (saved_by_torch(as_zip=False), "a Python pickle"),
    "JSON": (b'{"error": "Unauthorized"}', "a JSON document"),
    "ggml": (b"tjgg" + bytes(20), "from before GGUF"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"),
    "gzip": (gzip.compress(GGUF), "a gzip archive"),
    "zeros": (bytes(5000), "full of zeros"),
}


@pytest.mark.parametrize(("data", "named"), MISTAKES.values(), ids=MISTAKES)
def test_file_that_is_something_else_is_named(tmp_path, data, named):
    with pytest.raises(UnsupportedFormatError, match=named) as caught:
        open_checkpoint(fill(tmp_path, model__safetensors=data) / "model.safetensors")
    assert caught.value.hint


@pytest.mark.parametrize("data", [b"x", b"hello world, hello world", bytes(range(1, 200))])
def test_unknown_content_is_damaged(tmp_path, data):
    with pytest.raises(CorruptWeightsError, match="as a safetensors file"):
        open_checkpoint(fill(tmp_path, model=data) / "model")
