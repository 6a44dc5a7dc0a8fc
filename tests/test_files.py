import errno
import hashlib
import threading
from pathlib import Path

import pytest
from typing_extensions import override

from hyprstream import files
from hyprstream.errors import (
    CacheBusyError,
    HyprstreamError,
    InvalidReferenceError,
    InvalidSettingsError,
    StorageFullError,
    UnavailableError,
)
from tests.catalog.fakes import Recorder


def test_names_are_joined_to_a_folder(tmp_path: Path):
    assert files.inside(tmp_path, "a", "b.json") == tmp_path / "a" / "b.json"


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "/etc/passwd"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str):
    with pytest.raises(InvalidReferenceError, match="leads out of the folder"):
        files.inside(tmp_path, name)


def test_a_symbolic_link_that_leads_out_is_refused(tmp_path: Path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidReferenceError):
        files.inside(root, "link", "x")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EFBIG, StorageFullError),
        (errno.EACCES, InvalidSettingsError),
        (errno.EROFS, InvalidSettingsError),
        (errno.EIO, UnavailableError),
    ],
)
def test_what_the_disk_says_becomes_an_error_of_ours(
    tmp_path: Path, code: int, kind: type[HyprstreamError]
):
    with pytest.raises(kind, match=str(tmp_path)), files.storage(tmp_path):
        raise OSError(code, "so it is")


def test_a_file_is_replaced_whole(tmp_path: Path):
    file = tmp_path / "name.json"
    for content in (b"old", b"new"):
        files.write_atomic(file, content, scratch=tmp_path)
        assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_shares_the_content(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"x")
    files.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")


def test_a_folder_that_admits_no_links_is_named(tmp_path: Path):
    other = Path("/proc/version")  # a file of another file system: linking it is refused alike
    if not other.exists():
        pytest.skip("this system has no /proc to link from")
    with pytest.raises(InvalidSettingsError, match="no hard links"):
        files.link(other, tmp_path / "b")


def test_hashing_equals_hashlib(tmp_path: Path):
    content = bytes(range(256)) * 20_000
    (tmp_path / "x").write_bytes(content)
    assert files.sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_a_held_lock_is_busy(tmp_path: Path):
    file = tmp_path / "locks" / "x.lock"
    with (
        files.lock(file, "x", None),
        pytest.raises(CacheBusyError, match="working on x"),
        files.lock(file, "x", None),
    ):
        pytest.fail("two holders")
    with files.lock(file, "x", None):
        pass


def test_waiting_for_a_lock_is_told_once_and_ends_with_its_release(tmp_path: Path):
    file, order = tmp_path / "x.lock", []
    holding, waiting = threading.Event(), threading.Event()

    class Waiter(Recorder):
        @override
        def start(self, name: str, total_bytes: int | None) -> None:
            super().start(name, total_bytes)
            waiting.set()

    def hold() -> None:
        with files.lock(file, "x", None):
            holding.set()
            assert waiting.wait(5)
            order.append("released")

    thread = threading.Thread(target=hold)
    thread.start()
    assert holding.wait(5)
    waiter = Waiter()
    with files.lock(file, "x", waiter):
        order.append("acquired")
    thread.join()
    assert order == ["released", "acquired"]
    assert waiter.phases == [("waiting for another process that works on x", None)]
    assert waiter.num_done == 1


def test_a_lock_that_is_held_is_seen_and_looking_creates_none(tmp_path):
    file = tmp_path / "x.lock"
    assert not files.is_locked(file)
    assert not file.exists()
    with files.lock(file, "x", None):
        assert files.is_locked(file)
    assert not files.is_locked(file)
