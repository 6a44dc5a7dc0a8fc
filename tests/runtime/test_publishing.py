"""Versions between store and engine: the order of publishing, and what a kill leaves."""

import pytest

from hyprstream.errors import AdapterMemoryFullError, StaleParentError
from hyprstream.refs import AdapterName
from hyprstream.runtime.canary import ENDED_ELSEWHERE
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.journal_rows import Decision, RequestRow
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


def test_a_canary_is_committed_installed_and_let_out(scene):
    first, _ = scene.versions.current(NAME)
    scene.share = 0.25
    second = scene.publish(Skill(0.5), first)
    assert scene.events == ["committed", "install"]
    assert scene.versions.current(NAME) == (first, Skill())
    canary = scene.versions.canary(NAME)
    assert (canary.version, canary.parent, canary.share) == (second, first, 0.25)
    assert not scene.versions.has_served(NAME, canary)
    scene.versions.promote_canary(NAME, canary, "good")
    assert scene.installed[-1] == (second, Skill(0.5))
    assert scene.versions.current(NAME) == (second, Skill(0.5))
    assert scene.adapters.history(NAME)[-1].note == Note(by="adaptation", why="good")
    assert scene.versions.has_served(NAME, canary)
    third = scene.publish(Skill(0.7), second)
    scene.versions.withdraw_canary(NAME, scene.versions.canary(NAME))
    assert scene.versions.canary(NAME) is None
    assert scene.adapters.resolve(NAME) == second
    assert not any(move.version == third for move in scene.adapters.history(NAME))


def test_the_store_says_what_became_of_canaries(scene, tmp_path):
    first, _ = scene.versions.current(NAME)
    journal = Journal(tmp_path / "journal.db")
    scene.share = 0.25
    numbers = {"share": 0.25}

    def begin(action):
        version = scene.publish(Skill(0.5), scene.adapters.resolve(NAME))
        ids = [journal.append(NAME, lesson(n), "r", held_out=False) for n in range(2)]
        parent = scene.adapters.canaries.of(NAME).parent
        decision = Decision(
            adapter=NAME, action=action, version=version, parent=parent, numbers=numbers,
            samples=tuple(ids),
        )  # fmt: skip
        journal.decide(decision, "used" if action == "canary" else None)
        return version

    out = begin("publishing")  # killed before the journal knew that it was out
    recover(journal, scene.adapters)
    assert [d.action for d in journal.decisions()] == ["canary"]
    assert len(list(journal.used())) == 2
    for number in range(3):
        row = RequestRow(
            id=f"q{number}", adapter=NAME, version=out, outcome="stop", prompt_tokens=1,
            completion_tokens=1, feedback="good" if number else None,
        )  # fmt: skip
        journal.request(row)
    scene.adapters.canaries.withdraw(NAME, out)  # killed before the journal was told
    recover(journal, scene.adapters)
    recover(journal, scene.adapters)
    last = journal.decisions()[-1]
    assert [d.action for d in journal.decisions()] == ["canary", "withdrawn"]
    assert (last.version, last.parent, last.reasons) == (out, first, (ENDED_ELSEWHERE,))
    assert (last.numbers["share"], last.numbers["good"], last.samples) == (0.25, 2, ())
    served = begin("canary")
    scene.adapters.promote(f"{NAME}:canary")
    recover(journal, scene.adapters)
    assert journal.decisions()[-1].action == "promoted"
    assert journal.decisions()[-1].version == served
    begin("canary")
    recover(journal, scene.adapters)
    assert journal.decisions()[-1].action == "canary"
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
