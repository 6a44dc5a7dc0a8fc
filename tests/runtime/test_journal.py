"""The journal in one process: what it keeps, its bounds, damaged and foreign files."""

import sqlite3

import pytest

from hyprstream.errors import CacheBusyError, CorruptStoreError, InvalidSettingsError
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime import journal as journal_module
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.journal_rows import Decision, RequestRow
from hyprstream.train.sample import Sample

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
