"""The journal in one process: what it keeps, its bounds, damaged and foreign files."""

import sqlite3

import pytest

from hyprstream.errors import (
    CacheBusyError,
    CorruptStoreError,
    InvalidSettingsError,
    UnavailableError,
)
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime import journal as journal_module
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.journal_rows import Decision, RequestRow
from hyprstream.runtime.journal_view import view_held_out, view_samples
from hyprstream.train.buffer import Owner
from hyprstream.train.sample import Sample
from tests.runtime.learning import lesson

A = AdapterName("a")
SAMPLE = Sample((1, 2, 3), (False, False, True), 0.25)


def row(number: int) -> RequestRow:
    return RequestRow(
        id=f"r{number}", adapter=None, version=None, outcome="stop", prompt_tokens=1,
        completion_tokens=2,
    )  # fmt: skip


@pytest.fixture
def journal(tmp_path):
    found = Journal(tmp_path / "deep" / "journal.db", clock=lambda: 7.0)
    yield found
    found.close()


def reopened(journal: Journal) -> Journal:
    journal.close()
    return Journal(journal._file)


def test_samples_come_back_as_they_were(journal):
    first = journal.append(A, SAMPLE, "r1", held_out=False)
    second = journal.append(A, SAMPLE, "r2", held_out=True)
    again = reopened(journal)
    kept = list(again.waiting())
    assert [(k.id, k.source, k.is_held_out) for k in kept] == [
        (first, "r1", False),
        (second, "r2", True),
    ]
    assert kept[0].sample == SAMPLE
    again.end([first], "used")
    assert [k.id for k in again.used()] == [first]
    assert [k.id for k in again.waiting()] == [second]
    again.close()


def test_a_decision_and_the_fate_of_its_samples_are_one(journal):
    ids = [journal.append(A, SAMPLE, f"r{n}", held_out=False) for n in range(4)]
    journal.end(ids[:1], "withdrawn")
    decision = Decision(
        adapter=A, action="publishing", parent=VersionId("p"), version=VersionId("v"),
        reasons=("because",), numbers={"held_out": -0.25}, samples=tuple(ids[:3]),
    )  # fmt: skip
    number = journal.decide(decision)
    assert len(list(journal.waiting())) == 3
    journal.resolve(number, "published", "used")
    assert [kept.id for kept in journal.used()] == ids[1:3]  # what was withdrawn stays so
    (found,) = journal.decisions(A)
    assert (found.action, found.reasons, found.numbers) == (
        "published",
        ("because",),
        {"held_out": -0.25},
    )
    assert (found.samples, found.at, found.id) == (tuple(ids[:3]), 7.0, number)
    assert journal.decisions(AdapterName("b")) == []


def test_the_oldest_rows_go_and_what_waits_stays(journal, monkeypatch):
    monkeypatch.setattr(journal_module, "_PRUNE_EVERY", 1)
    monkeypatch.setattr(journal_module, "_MAX_ROWS", {"requests": 3, "decisions": 2, "samples": 2})
    waiting = journal.append(A, SAMPLE, "first", held_out=False)
    used = [journal.append(A, SAMPLE, "x", held_out=False) for _ in range(5)]
    journal.end(used, "used")
    unfinished = journal.decide(Decision(adapter=A, action="publishing"))
    for number in range(6):
        journal.request(row(number))
        journal.decide(Decision(adapter=A, action="rejected"))
    assert [kept.id for kept in journal.waiting()] == [waiting]
    assert [kept.id for kept in journal.used()] == used[-2:]
    assert [d.action for d in journal.decisions()] == ["publishing", "rejected", "rejected"]
    assert journal.decisions()[0].id == unfinished
    assert journal.find("r2") is None
    assert journal.find("r3") is not None


def test_a_journal_has_one_owner(journal):
    with pytest.raises(CacheBusyError, match="another process"):
        Journal(journal._file)
    reopened(journal).close()


def test_what_is_no_journal_is_refused(tmp_path):
    file = tmp_path / "journal.db"
    file.write_bytes(b"something else entirely, and long enough to be read as a header" * 20)
    with pytest.raises(CorruptStoreError):
        Journal(file)
    file.unlink()
    db = sqlite3.connect(file)
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(CorruptStoreError, match="format 9"):
        Journal(file)


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSettingsError):
        Journal(tmp_path / "file" / "journal.db")


def files_with(journal: Journal, needle: bytes) -> list[str]:
    return [path.name for path in journal._file.parent.iterdir() if needle in path.read_bytes()]


def test_what_is_removed_is_in_no_file_and_what_others_sent_stays(journal):
    ada, bob = Owner(user="ada", key="k1"), Owner(user="bob", key="k1")
    secret = Sample(tuple(range(7000, 7060)), (True,) * 60)
    of_ada = [journal.append(A, secret, f"r{n}", held_out=False, owner=ada) for n in range(300)]
    of_bob = journal.append(A, SAMPLE, "other", held_out=False, owner=bob)
    journal.end(of_ada[:100], "used")
    journal.end(of_ada[100:150], "withdrawn")
    journal.request(row(3))
    assert files_with(journal, b"7001, 7002, 7003")
    assert journal.remove_of(Owner(user="ada", key="k2")) == []
    assert journal.remove_of(ada, lambda _: False) == []
    removed = journal.remove_of(Owner(user="ada"))
    assert [kept.id for kept in removed] == of_ada
    assert {kept.sample for kept in removed} == {secret}
    assert files_with(journal, b"7001, 7002, 7003") == []
    assert journal.find("r3") is None
    assert [kept.id for kept in journal.waiting()] == [of_bob]
    assert [kept.id for kept in journal.remove_of(Owner(key="k1"))] == [of_bob]


def test_a_reader_is_told_of_and_does_not_keep_what_is_deleted_for_ever(journal):
    journal.append(A, SAMPLE, "r", held_out=False, owner=Owner(user="ada"))
    journal._db.execute("PRAGMA busy_timeout = 1")
    reader = sqlite3.connect(journal._file, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM samples").fetchone()
    with pytest.raises(UnavailableError, match="a reader"):
        journal.remove_of(Owner(user="ada"))
    reader.close()
    assert journal.remove_of(Owner(user="ada")) == []
    assert files_with(journal, b"[1, 2, 3]") == []


def test_the_old_and_the_settled_go_first(journal):
    now = [100.0]
    journal._clock = lambda: now[0]
    ids = []
    for moment in range(6):
        now[0] = moment
        ids.append(journal.append(A, SAMPLE, f"r{moment}", held_out=False))
    journal.end([ids[5]], "used")
    assert [kept.id for kept in journal.remove_old(A, before=2.0, most=100)] == ids[:2]
    assert [kept.id for kept in journal.remove_old(A, before=0.0, most=3)] == [ids[5]]
    assert [kept.id for kept in journal.remove_old(A, before=0.0, most=1)] == ids[2:4]
    assert journal.remove_old(AdapterName("b"), before=9.0, most=0) == []


def test_a_journal_without_owners_is_taken_over(tmp_path):
    file = tmp_path / "journal.db"
    Journal(file).close()
    db = sqlite3.connect(file)
    for name in ("user", "key"):
        db.execute(f"ALTER TABLE samples DROP COLUMN {name}")
    db.execute("PRAGMA user_version = 1")
    tokens = ("[1, 2, 3]", "001")
    db.execute(
        "INSERT INTO samples (adapter, source, at, tokens, counts, weight, held_out) "
        "VALUES ('a', 'r', 1.0, ?, ?, 1.0, 0)", tokens,
    )  # fmt: skip
    db.commit()
    db.close()
    assert [one.kept.source for one in view_samples(file, A)] == ["r"]
    journal = Journal(file)
    assert [kept.source for kept in journal.waiting()] == ["r"]
    journal.append(A, SAMPLE, "r2", held_out=True, owner=Owner(user="ada", key="k"))
    rows = view_samples(file, A)
    assert [(one.user, one.key, one.state) for one in rows] == [
        ("", "", "waiting"),
        ("ada", "k", "held_out"),
    ]
    assert [one.id for one in view_samples(file, A, after=rows[0].id)] == [rows[1].id]
    assert view_held_out(file, A, 5) == [SAMPLE]
    journal.close()


def test_what_a_version_said_itself_is_nothing_to_judge_another_by(journal):
    since = 7.0
    for number, feedback in enumerate([None, "good", "correction"]):
        row = RequestRow(
            id=f"r{number}", adapter=A, version=VersionId("v"), outcome="stop", prompt_tokens=1,
            completion_tokens=1, feedback=feedback,
        )  # fmt: skip
        journal.request(row)
        journal.append(A, lesson(number), f"r{number}", held_out=True)
    journal.append(A, lesson(3), "sent-1", held_out=True)
    journal.append(A, lesson(4), "sent-1", held_out=False)
    journal.append(AdapterName("b"), lesson(5), "sent-1", held_out=True)
    assert journal.others_words(A, since, 9) == [lesson(3), lesson(2)]
    assert journal.others_words(A, since, 1) == [lesson(3)]
    assert journal.others_words(A, since + 1, 9) == []
