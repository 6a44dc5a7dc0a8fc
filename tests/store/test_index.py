"""The database: full, damaged, busy, newer than this program."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from typing_extensions import override

from hyprstream.errors import (
    CorruptStoreError,
    InvalidSettingsError,
    StorageFullError,
    UnavailableError,
    UnsupportedFormatError,
)
from hyprstream.refs import AdapterName, VersionId
from hyprstream.store.disk import Disk
from hyprstream.store.index import Index
from hyprstream.store.store import AdapterStore
from tests.store.fakes import FaultyDisk, Stopped, draft


class SmallDisk(Disk):
    """Has room for so many pages of a database, and no patience."""

    def __init__(self, num_pages: int) -> None:
        self._num_pages = num_pages

    @override
    def connect(self, file: Path, *, timeout_s: float) -> sqlite3.Connection:
        connection = super().connect(file, timeout_s=0)
        connection.execute(f"PRAGMA max_page_count = {self._num_pages}")
        return connection


def test_what_was_committed_is_synced_in_full(tmp_path: Path):
    index = Index(tmp_path / "names.db", Disk())
    with index.look() as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert db.execute("PRAGMA foreign_keys").fetchone() == (1,)
    index.close()


def test_a_change_that_fails_is_undone(tmp_path: Path):
    index = Index(tmp_path / "names.db", Disk())

    def change() -> None:
        with index.change() as db:
            db.execute("INSERT INTO versions VALUES ('v', '{}', '', 'p', NULL)")
            raise KeyError

    with pytest.raises(KeyError):
        change()
    with index.look() as db:
        assert db.execute("SELECT count(*) FROM versions").fetchone() == (0,)
    index.close()


def test_a_full_database_says_so_and_stays_usable(tmp_path: Path):
    AdapterStore(tmp_path).close()
    store = AdapterStore(tmp_path, disk=SmallDisk(25))
    versions: list[VersionId] = []

    def fill() -> None:
        for number in range(1000):
            versions.append(store.commit(b"%d" % number, draft(note="x" * 4000)))  # noqa: PERF401 - kept when it fails

    with pytest.raises(StorageFullError, match="full") as caught:
        fill()
    assert "Free some space" in caught.value.hint
    assert versions
    assert [store.manifest(version).version for version in versions] == versions
    assert store.verify() == ()
    store.close()


def test_a_full_disk_loses_nothing(tmp_path: Path):
    """On a file system of one megabyte, in a name space of its own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("this system has no unshare to make a small file system with")
    command = 'mount -t tmpfs -o size=1m tmpfs "$1" || exit 99; exec "$2" -P "$3" "$1"'
    script = Path(__file__).with_name("full_disk.py")
    result = subprocess.run(
        [unshare, "-rm", "sh", "-c", command, "sh", tmp_path, sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if result.returncode == 99 or "unshare" in result.stderr:
        pytest.skip("this system does not let us mount a small file system")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 5


@pytest.mark.parametrize(
    "content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_damaged_database_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "names.db").write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"names\.db is damaged") as caught:
        AdapterStore(tmp_path)
    assert caught.value.file == str(tmp_path / "names.db")


def test_a_page_of_garbage_is_found(tmp_path: Path):
    store = AdapterStore(tmp_path)
    for number in range(50):
        store.commit(b"%d" % number, draft(note="x" * 1000))
    store.close()
    content = bytearray((tmp_path / "names.db").read_bytes())
    content[4096 * 4 :] = b"\xa5" * (len(content) - 4096 * 4)
    (tmp_path / "names.db").write_bytes(content)
    store = AdapterStore(tmp_path)
    with pytest.raises(CorruptStoreError):
        store.verify()
    store.close()


def test_a_store_of_a_newer_program_is_left_alone(tmp_path: Path):
    AdapterStore(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "names.db")) as db:
        db.execute("PRAGMA user_version = 3")
    with pytest.raises(UnsupportedFormatError, match="store of format 3, 2 is supported"):
        AdapterStore(tmp_path)


def test_a_store_of_the_first_format_gains_what_it_lacks(tmp_path: Path):
    store = AdapterStore(tmp_path)
    name = AdapterName("a")
    store.create(name, store.commit(b"x", draft()))
    store.close()
    with closing(sqlite3.connect(tmp_path / "names.db", isolation_level=None)) as db:
        db.execute("DROP TABLE belongings")
        db.execute("PRAGMA user_version = 1")
    for _ in range(2):
        store = AdapterStore(tmp_path)
        store.belongings.put(name, "learning", b"1")
        assert store.belongings.get(name, "learning") == b"1"
        assert len(store.history(name)) == 1
        store.close()


def test_a_change_does_not_wait_for_ever(tmp_path: Path):
    store = AdapterStore(tmp_path, disk=SmallDisk(1000))
    with closing(sqlite3.connect(tmp_path / "names.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="locked"):
            store.commit(b"x", draft())
        assert store.list() == ()  # looking does not wait at all
    store.commit(b"x", draft())
    store.close()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidSettingsError, match="file"):
        AdapterStore(tmp_path / "file" / "store")
    (tmp_path / "store" / "names.db").mkdir(parents=True)
    with pytest.raises(InvalidSettingsError, match=r"names\.db"):
        AdapterStore(tmp_path / "store")


@pytest.mark.parametrize("how", ["before", "within", "after", "full"])
def test_a_store_whose_making_failed_is_made_by_the_next(tmp_path: Path, how: str):
    disk = FaultyDisk()
    disk.arm(0, how)
    with pytest.raises((Stopped, StorageFullError)):
        AdapterStore(tmp_path, disk=disk)
    store = AdapterStore(tmp_path)
    store.commit(b"x", draft())
    assert store.verify() == ()
    store.close()
