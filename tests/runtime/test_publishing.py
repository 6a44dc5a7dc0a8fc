"""Versions between store and engine: the order of publishing, and what a kill leaves."""

import pytest

from hyprstream.errors import AdapterMemoryFullError, StaleParentError
from hyprstream.refs import AdapterName
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.journal_rows import Decision
from hyprstream.runtime.publishing import StoreVersions, forget_deleted, recover
from hyprstream.store.manifest import Draft
from hyprstream.store.records import Note
from tests.runtime.learning import Skill, lesson
from tests.runtime.learning_process import NAME, load, open_adapters, pack


class Scene:
    def __init__(self, folder):
        self.adapters = open_adapters(folder)
        self.installed = []
        self.events = []
        self.share = 0.0
        self.versions = StoreVersions(
            self.adapters, load=load, pack=pack, install=self.install,
            share_of=lambda _: self.share,
        )  # fmt: skip

    def install(self, version, weights):
        assert self.adapters.resolve(NAME) != version, "installed before the name moves"
        self.events.append("install")
        self.installed.append((version, weights))

    def publish(self, skill, parent):
        def committed(version, share):
            assert share == (self.share or 1)
            assert self.adapters.manifest(version).parent == parent
            self.events.append("committed")

        published = self.versions.publish(
            NAME, skill, parent=parent, numbers={"samples": 3.0}, committed=committed
        )
        assert (published.canary is not None) == bool(self.share)
        return published.version


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path)
    yield scene
    scene.adapters.close()


def test_a_version_is_committed_installed_and_then_promoted(scene):
    first, weights = scene.versions.current(NAME)
    assert weights == Skill()
    second = scene.publish(Skill(0.5), first)
    assert scene.events == ["committed", "install"]
    assert scene.versions.current(NAME) == (second, Skill(0.5))
    assert scene.adapters.manifest(second).metrics["samples"] == 3.0
    assert scene.adapters.history(NAME)[-1].note == Note(
        by="adaptation", why="learnt from 3 samples"
    )


def test_nothing_moves_where_the_engine_has_no_room(scene):
    first, _ = scene.versions.current(NAME)

    def refuse(_version, _weights):
        raise AdapterMemoryFullError("no room", hint="Retire a version.")

    scene.versions = StoreVersions(scene.adapters, load=load, pack=pack, install=refuse)
    with pytest.raises(AdapterMemoryFullError):
        scene.publish(Skill(0.5), first)
    assert scene.adapters.resolve(NAME) == first


def test_a_name_that_was_moved_stays(scene):
    first, _ = scene.versions.current(NAME)
    second = scene.publish(Skill(0.5), first)
    with pytest.raises(StaleParentError):
        scene.publish(Skill(0.7), first)
    assert scene.adapters.resolve(NAME) == second


def test_a_version_is_taken_back_to_its_parent_unless_the_name_was_moved(scene):
    first, _ = scene.versions.current(NAME)
    second = scene.publish(Skill(0.5), first)
    with pytest.raises(StaleParentError):
        scene.versions.roll_back(NAME, expected=first, why="no")
    scene.installed.clear()
    assert scene.versions.roll_back(NAME, expected=second, why="disliked") == first
    assert scene.installed == [(first, Skill())]
    last = scene.adapters.history(NAME)[-1]
    assert (last.action, last.version, last.note.why) == ("rollback", first, "disliked")


def test_the_store_says_how_a_killed_publication_ended(scene, tmp_path):
    first, _ = scene.versions.current(NAME)
    second = scene.publish(Skill(0.5), first)
    journal = Journal(tmp_path / "journal.db")
    ids = [journal.append(NAME, lesson(n), "r", held_out=False) for n in range(3)]
    never = scene.adapters.commit(pack(Skill(0.9)), _draft(scene, first)).version
    for version, samples in ((second, ids[:1]), (never, ids[1:])):
        journal.decide(
            Decision(adapter=NAME, action="publishing", version=version, samples=tuple(samples))
        )
    recover(journal, scene.adapters)
    assert [decision.action for decision in journal.decisions()] == ["published", "abandoned"]
    assert [kept.id for kept in journal.used()] == ids[:1]
    assert [kept.id for kept in journal.waiting()] == ids[1:]
    scene.adapters.delete(NAME)
    journal.decide(Decision(adapter=NAME, action="publishing", version=second))
    recover(journal, scene.adapters)
    assert journal.decisions()[-1].action == "abandoned"
    journal.close()


def _draft(scene, parent):
    manifest = scene.adapters.manifest(parent)
    return Draft(base=manifest.base.fingerprint, kinds=manifest.kinds, spec={}, codec="zstd")


def test_an_adapter_that_takes_a_name_learns_nothing_of_the_one_before(scene, tmp_path):
    journal = Journal(tmp_path / "journal.db")
    of_nobody = journal.append(AdapterName("nobody"), lesson(1), "r1", held_out=False)
    old = [journal.append(NAME, lesson(n), f"r{n}", held_out=n == 2) for n in (2, 3)]
    journal.end(old[1:], "used")
    scene.adapters.delete(NAME)
    again = open_adapters(tmp_path)  # makes it anew
    new = journal.append(NAME, lesson(4), "r4", held_out=False)
    forget_deleted(journal, again)
    assert [kept.id for kept in journal.waiting()] == [new]
    assert list(journal.used()) == []
    assert of_nobody not in (kept.id for kept in journal.waiting())
    again.close()
    journal.close()
