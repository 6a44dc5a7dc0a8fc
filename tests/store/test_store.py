"""What a store does, one statement at a time."""

import hashlib
import itertools
import os
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hyprstream.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    ChecksumMismatchError,
    InvalidAdapterError,
    InvalidReferenceError,
    InvalidRequestError,
    StaleParentError,
    VersionNotFoundError,
)
from hyprstream.refs import AdapterName, AdapterRef, VersionId
from hyprstream.store.manifest import Payload
from hyprstream.store.records import Adapter, Move, Note
from hyprstream.store.store import AdapterStore
from tests.store.fakes import BASE, FaultyDisk, Stopped, draft

NAME = AdapterName("support")
START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = timedelta(0)


class Clock:
    """Says the same until it is told to say something else."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[AdapterStore]:
    store = AdapterStore(tmp_path / "store", clock=clock)
    yield store
    store.close()


def commit(store: AdapterStore, *contents: bytes) -> list[VersionId]:
    return [store.commit(content, draft()) for content in contents]


def promoted(store: AdapterStore, *contents: bytes) -> list[VersionId]:
    """Commit versions and move the name from each to the next."""
    versions = commit(store, *contents)
    store.create(NAME, versions[0])
    for before, after in itertools.pairwise(versions):
        store.promote(NAME, after, expected=before)
    return versions


def payload_file(store: AdapterStore, version: VersionId) -> Path:
    with store.open(version) as file:
        return file


def test_a_version_is_the_hash_of_a_manifest_that_names_its_payload(store: AdapterStore):
    version = store.commit(b"content", draft())
    manifest = store.manifest(version)
    assert hashlib.sha256(manifest.encode()).hexdigest() == version
    assert manifest.payload.sha256 == hashlib.sha256(b"content").hexdigest()
    assert manifest.payload.size_bytes == 7
    assert (manifest.base.fingerprint, manifest.created) == (BASE, START)
    with store.open(version) as file:
        assert file.read_bytes() == b"content"
        assert file.stat().st_mode & 0o222 == 0


def test_a_file_is_copied_in(store: AdapterStore, tmp_path: Path):
    content = os.urandom(3_000_000)
    (tmp_path / "payload").write_bytes(content)
    version = store.commit(tmp_path / "payload", draft())
    (tmp_path / "payload").write_bytes(b"changed")
    with store.open(version) as file:
        assert file.read_bytes() == content


def test_a_file_that_cannot_be_read_is_named(store: AdapterStore, tmp_path: Path):
    for file in (tmp_path / "absent", tmp_path):
        with pytest.raises(InvalidAdapterError, match=f"{file.name} cannot be read"):
            store.commit(file, draft())
    assert list((tmp_path / "store" / "temp").iterdir()) == []


def test_the_same_content_is_kept_once(store: AdapterStore, clock: Clock):
    first = store.commit(b"same", draft())
    assert store.commit(b"same", draft()) == first
    clock.now += timedelta(seconds=1)
    second = store.commit(b"same", draft())
    assert second != first
    assert payload_file(store, first) == payload_file(store, second)


@pytest.mark.parametrize("content", [b"cut", b"CONTENT", None])
def test_a_damaged_payload_is_found_and_healed(store: AdapterStore, content: bytes | None):
    version = store.commit(b"content", draft())
    file = payload_file(store, version)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ChecksumMismatchError, match=file.name), store.open(version):
        pytest.fail("it was given out")
    (damage,) = store.verify()
    assert damage.version == version
    assert damage.problem
    assert store.commit(b"content", draft()) == version
    assert store.verify() == ()
    assert file.read_bytes() == b"content"


def test_a_damaged_manifest_is_found(store: AdapterStore, tmp_path: Path):
    one, two, three = commit(store, b"1", b"2", b"3")
    other = store.manifest(three).encode().decode()
    with closing(sqlite3.connect(tmp_path / "store" / "names.db")) as db, db:
        db.execute("UPDATE versions SET manifest = '{}' WHERE id = ?", (one,))
        db.execute("UPDATE versions SET manifest = ? WHERE id = ?", (other, two))
    for version in (one, two):
        with pytest.raises(ChecksumMismatchError, match=version):
            store.manifest(version)
    assert {damage.version for damage in store.verify()} == {one, two}


def test_what_is_not_there_is_named(store: AdapterStore):
    absent = VersionId("1" * 64)
    (version,) = commit(store, b"1")
    for ask in (store.manifest, lambda v: store.create(NAME, v)):
        with pytest.raises(VersionNotFoundError, match=absent):
            ask(absent)
    for wrong in ("", "1", "\ud800" * 64, "../x"):
        with pytest.raises(InvalidReferenceError):
            store.manifest(VersionId(wrong))
        with pytest.raises(InvalidReferenceError):
            store.create(AdapterName(wrong if wrong != "1" else "a b"), version)
    for question in (store.current, store.history, store.tags, store.rollback, store.delete):
        with pytest.raises(AdapterNotFoundError, match="'support'"):
            question(NAME)
    with pytest.raises(VersionNotFoundError, match=absent):
        store.commit(b"x", draft(parent=absent, needs_parent=True))
    assert store.commit(b"x", draft(parent=absent))  # a parent elsewhere is only said


def test_a_draft_that_is_not_sound_adds_nothing(store: AdapterStore, tmp_path: Path):
    with pytest.raises(InvalidAdapterError):
        store.commit(b"x", draft(parent=VersionId("short")))
    store.collect(grace=NOW)
    assert list((tmp_path / "store" / "payloads").iterdir()) == []


def test_a_name_is_given_once(store: AdapterStore):
    one, two = commit(store, b"1", b"2")
    store.create(NAME, one)
    with pytest.raises(AdapterExistsError, match="'support'"):
        store.create(NAME, two)
    assert store.current(NAME) == one


def test_a_name_moves_only_from_where_it_is_expected(store: AdapterStore):
    one, two, three = promoted(store, b"1", b"2", b"3")
    with pytest.raises(StaleParentError, match=f"{three[:12]}, not at {one[:12]}"):
        store.promote(NAME, two, expected=one)
    assert store.current(NAME) == three


def test_rollbacks_undo_promotions_one_by_one(store: AdapterStore):
    one, two, three = promoted(store, b"1", b"2", b"3")
    assert store.rollback(NAME) == two
    assert store.rollback(NAME) == one
    with pytest.raises(VersionNotFoundError, match="no earlier version"):
        store.rollback(NAME)
    store.promote(NAME, three, expected=one)
    assert store.rollback(NAME) == one
    actions = [move.action for move in store.history(NAME)]
    assert actions == [
        "create",
        "promote",
        "promote",
        "rollback",
        "rollback",
        "promote",
        "rollback",
    ]


def test_a_promotion_to_the_same_version_is_no_move(store: AdapterStore):
    one, two = promoted(store, b"1", b"2")
    store.promote(NAME, two, expected=two)
    assert len(store.history(NAME)) == 2
    assert store.rollback(NAME) == one


def test_the_history_tells_when_who_and_why(store: AdapterStore, clock: Clock):
    one, two = commit(store, b"1", b"2")
    store.create(NAME, one, Note(by="ann"))
    clock.now += timedelta(hours=1)
    note = Note(by="the gate", why="loss 2.1 -> 1.9 \N{SNOWMAN}")
    store.promote(NAME, two, expected=one, note=note)
    assert store.history(NAME) == [
        Move(action="create", version=one, at=START, note=Note(by="ann")),
        Move(action="promote", version=two, at=clock.now, note=note),
    ]


@pytest.mark.parametrize("wrong", [{"by": "x" * 201}, {"why": "x" * 2001}, {"why": "\ud800"}])
def test_a_note_has_bounds(wrong: dict[str, str]):
    with pytest.raises(InvalidRequestError, match="note"):
        Note(**wrong)


def test_tags_stand_where_they_were_put(store: AdapterStore):
    one, two = promoted(store, b"1", b"2")
    ref = AdapterRef.parse("support:stable")
    store.tag(ref, one)
    assert store.tags(NAME) == {"stable": one}
    assert store.resolve(ref) == one
    store.tag(ref, two)
    assert store.resolve(ref) == two
    store.untag(ref)
    for ask in (store.resolve, store.untag):
        with pytest.raises(VersionNotFoundError, match="no tag 'stable'"):
            ask(ref)


@pytest.mark.parametrize("text", ["support", "support@9f2c"])
def test_only_a_tag_can_be_put(store: AdapterStore, text: str):
    (one,) = promoted(store, b"1")
    with pytest.raises(InvalidReferenceError, match="has no tag"):
        store.tag(AdapterRef.parse(text), one)


def test_a_version_may_be_cut_short(store: AdapterStore):
    # Among so many ids two begin alike.
    contents: dict[str, list[bytes]] = defaultdict(list)
    for number in range(700):
        content = b"%d" % number
        payload = Payload(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        contents[draft().complete(payload, START).version[:4]].append(content)
    alike = commit(store, *next(twins for twins in contents.values() if len(twins) == 2))
    twin = alike[0]
    store.create(NAME, twin)
    assert store.resolve(AdapterRef(name=NAME, prefix=twin[:4])) == alike[0]  # of this name
    store.tag(AdapterRef(name=NAME, tag="other"), alike[1])
    with pytest.raises(InvalidReferenceError, match=r"2 versions .* begin with"):
        store.resolve(AdapterRef(name=NAME, prefix=twin[:4]))
    for version in alike:
        assert store.resolve(AdapterRef(name=NAME, prefix=version[:40])) == version
    with pytest.raises(VersionNotFoundError, match="begins with"):
        store.resolve(AdapterRef(name=NAME, prefix="0" * 64))


def test_the_list_tells_what_each_name_is(store: AdapterStore):
    (two,) = promoted(store, b"22")
    (one,) = commit(store, b"1")
    store.create(AdapterName("a/b"), one)
    common = {"moved_at": START, "base": "tiny", "codec": "raw"}
    assert store.list() == (
        Adapter(name=AdapterName("a/b"), version=one, size_bytes=1, **common),  # type: ignore[arg-type]  # of several types
        Adapter(name=NAME, version=two, size_bytes=2, **common),  # type: ignore[arg-type]  # of several types
    )


def test_a_name_that_was_deleted_can_be_given_again(store: AdapterStore):
    one, two = promoted(store, b"1", b"2")
    store.tag(AdapterRef(name=NAME, tag="x"), one)
    store.delete(NAME)
    assert store.list() == ()
    store.create(NAME, one)
    assert [move.version for move in store.history(NAME)] == [one]
    assert store.tags(NAME) == {}
    assert store.collect(grace=NOW).versions == (two,)


def test_what_is_new_is_not_collected(store: AdapterStore, clock: Clock):
    (version,) = commit(store, b"12345")
    clock.now += timedelta(hours=23)
    assert store.collect().versions == ()
    clock.now += timedelta(hours=2)
    store.commit(b"12345", draft())  # another version of the same content
    assert store.collect().versions == (version,)
    clock.now += timedelta(hours=25)
    assert store.collect().freed_bytes == 5
    assert store.verify() == ()


def test_what_only_a_deleted_name_led_to_goes_however_new_it_is(store: AdapterStore):
    one, two, three = commit(store, b"1", b"2", b"3")
    needs = store.commit(b"4", draft(parent=three, needs_parent=True))
    store.create(NAME, one)
    for old, new in ((one, two), (two, three)):
        store.promote(NAME, new, expected=old)
    store.create(AdapterName("other"), two)
    given_up = store.delete(NAME)
    assert given_up == {one, two, three}
    assert store.collect(given_up=given_up).versions == (one,)
    for kept in (two, three, needs):
        assert store.manifest(kept).version == kept


def test_committing_again_makes_a_version_new(store: AdapterStore, tmp_path: Path):
    version = store.commit(b"1", draft())
    with closing(sqlite3.connect(tmp_path / "store" / "names.db")) as db, db:
        # As if it had been recorded long ago.
        db.execute("UPDATE versions SET recorded = '2020-01-01T00:00:00+00:00'")
    assert store.commit(b"1", draft()) == version
    assert store.collect().versions == ()


@pytest.mark.parametrize(
    ("keep", "kept"),
    [(None, [0, 1, 2, 3, 4]), (0, [1]), (1, [0, 1]), (2, [0, 1, 3]), (3, [0, 1, 3, 4])],
)
def test_the_history_keeps_as_much_as_it_is_told(
    store: AdapterStore, keep: int | None, kept: list[int]
):
    """Moves: 0, 1, 2, then back to 1, 3, 4, back to 3 and back to 1; below lies 0."""
    versions = commit(store, b"0", b"1", b"2", b"3", b"4")
    store.create(NAME, versions[0])
    for before, after in ((0, 1), (1, 2)):
        store.promote(NAME, versions[after], expected=versions[before])
    store.rollback(NAME)
    for before, after in ((1, 3), (3, 4)):
        store.promote(NAME, versions[after], expected=versions[before])
    assert store.rollback(NAME) == versions[3]
    assert store.rollback(NAME) == versions[1]
    gone = store.collect(keep_history=keep, grace=NOW).versions
    assert set(versions) - set(gone) == {versions[number] for number in kept}
    if keep != 0:
        assert store.rollback(NAME) == versions[0]
    else:
        with pytest.raises(VersionNotFoundError, match=versions[0]):
            store.rollback(NAME)
        assert store.current(NAME) == versions[1]


def test_a_parent_stays_while_a_version_needs_it(store: AdapterStore):
    first = store.commit(b"1", draft())
    second = store.commit(b"2", draft(parent=first, needs_parent=True))
    third = store.commit(b"3", draft(parent=second, needs_parent=True))
    loose = store.commit(b"4", draft(parent=third))
    store.create(NAME, third)
    assert store.collect(grace=NOW).versions == (loose,)
    store.delete(NAME)
    with store.open(second):  # and so does one that is being read
        assert store.collect(grace=NOW).versions == (third,)
    assert set(store.collect(grace=NOW).versions) == {first, second}


def test_a_payload_that_is_read_is_not_collected(store: AdapterStore):
    (version,) = commit(store, b"1")
    with store.open(version) as file, store.open(version):
        assert store.collect(grace=NOW).versions == ()
        assert file.read_bytes() == b"1"
    assert store.collect(grace=NOW).versions == (version,)


@pytest.mark.parametrize(("at", "where"), [(0, "temp"), (1, "temp"), (4, "temp"), (5, "payloads")])
def test_what_a_stopped_writer_left_is_collected(tmp_path: Path, at: int, where: str):
    """Operations of a commit of 4 bytes: create, write 2, 1 and 1, finish, name, sync, commit."""
    disk = FaultyDisk()
    stopped = AdapterStore(tmp_path, disk=disk)
    disk.arm(at, "after")
    with pytest.raises(Stopped):
        stopped.commit(b"left", draft())
    stopped.close()
    assert len(list((tmp_path / where).iterdir())) == 1
    store = AdapterStore(tmp_path)
    assert store.collect(grace=NOW).versions == ()
    assert not [*(tmp_path / "temp").iterdir(), *(tmp_path / "payloads").iterdir()]
    store.close()


def test_threads_share_a_store(store: AdapterStore):
    start = commit(store, b"start")[0]
    store.create(NAME, start)
    done: list[VersionId] = []

    def work(number: int) -> None:
        for step in range(5):
            version = store.commit(b"%d %d" % (number, step), draft())
            while True:
                try:
                    store.promote(NAME, version, expected=store.current(NAME))
                    break
                except StaleParentError:
                    continue
            with store.open(version) as file:
                assert file.read_bytes() == b"%d %d" % (number, step)
            store.collect(grace=timedelta(hours=1))
            done.append(version)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 20
    assert {move.version for move in store.history(NAME)} == {start, *done}
    assert store.verify() == ()
