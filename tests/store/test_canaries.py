"""Canaries in the store: whom they answer, and what ends them."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.errors import InvalidRequestError, StaleParentError
from hyprstream.refs import AdapterName, AdapterRef, VersionId
from hyprstream.store.canaries import TAG
from hyprstream.store.records import Canary, Note
from hyprstream.store.store import AdapterStore
from tests.store.fakes import draft

NAME = AdapterName("a")
REF = AdapterRef(name=NAME)
AT = datetime(2026, 1, 1, tzinfo=UTC)


class Scene:
    def __init__(self, folder):
        self.store = AdapterStore(folder, clock=lambda: AT)
        self.one, self.two, self.three = (
            self.store.commit(content, draft()) for content in (b"one", b"two", b"three")
        )
        self.store.create(NAME, self.one)
        self.begin = lambda: self.store.canaries.begin(NAME, self.two, parent=self.one, share=0.3)

    def answers(self, number=200):
        return [self.store.resolve(REF, f"r{n}") for n in range(number)]


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path)
    yield scene
    scene.store.close()


def made(share=0.1, version="1" * 64):
    return Canary(
        version=VersionId(version), parent=VersionId("0" * 64), share=share, since=AT
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_canary_answers_its_share_of_the_keys(share):
    number, canary = 4_000, made(share)
    taken = sum(canary.takes(NAME, f"user {n}") for n in range(number))
    # Five deviations of the binomial distribution: the hash is one fixed draw of it.
    assert abs(taken - share * number) <= 5 * math.sqrt(number * share * (1 - share))


@given(key=st.text(), low=st.floats(0.01, 0.98))
def test_who_is_on_the_side_of_a_canary_stays_there_when_its_share_grows(key, low):
    is_taken = made(low).takes(NAME, key)
    assert made(low).takes(NAME, key) == is_taken
    assert not is_taken or made(min(0.99, low + 0.01)).takes(NAME, key)


def test_every_canary_has_other_keys():
    keys = [f"user {n}" for n in range(2000)]
    one, two = ([made(0.5, v * 64).takes(NAME, key) for key in keys] for v in "12")
    same = sum(a == b for a, b in zip(one, two, strict=True))
    assert abs(same - 1000) <= 5 * math.sqrt(500)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, math.nan, math.inf])
def test_a_share_is_one(share):
    with pytest.raises(InvalidRequestError, match="share"):
        made(share)


def test_only_a_name_alone_means_the_canary(scene):
    assert set(scene.answers()) == {scene.one}
    canary = scene.begin()
    assert canary == Canary(version=scene.two, parent=scene.one, share=0.3, since=AT)
    answers = scene.answers()
    assert set(answers) == {scene.one, scene.two}
    taken = [n for n, version in enumerate(answers) if version == scene.two]
    assert taken == [n for n in range(200) if canary.takes(NAME, f"r{n}")]
    assert scene.store.resolve(REF) == scene.one == scene.store.current(NAME)
    pinned = AdapterRef(name=NAME, prefix=scene.one[:12])
    tagged = AdapterRef(name=NAME, tag=TAG)
    for n in range(50):
        assert scene.store.resolve(pinned, f"r{n}") == scene.one
        assert scene.store.resolve(tagged, f"r{n}") == scene.two
    assert scene.store.tags(NAME) == {TAG: scene.two}


def test_a_canary_is_there_for_every_process_and_has_no_second_one_beside_it(scene, tmp_path):
    canary, answers = scene.begin(), scene.answers()
    with pytest.raises(StaleParentError, match="canary already"):
        scene.begin()
    again = AdapterStore(tmp_path)
    assert again.canaries.all() == {NAME: canary}
    assert [again.resolve(REF, f"r{n}") for n in range(200)] == answers
    again.close()


def test_a_canary_that_is_promoted_answers_everybody(scene):
    scene.begin()
    scene.store.canaries.promote(NAME, scene.two, Note(by="us", why="good"))
    assert set(scene.answers()) == {scene.two}
    assert scene.store.tags(NAME) == {}
    move = scene.store.history(NAME)[-1]
    assert (move.action, move.version, move.note) == (
        "promote", scene.two, Note(by="us", why="good"),
    )  # fmt: skip
    assert scene.store.rollback(NAME) == scene.one
    with pytest.raises(StaleParentError, match="not the canary"):
        scene.store.canaries.promote(NAME, scene.two)


def test_a_canary_that_is_withdrawn_leaves_nothing(scene):
    history = scene.store.history(NAME)
    scene.begin()
    scene.store.canaries.withdraw(NAME, scene.two)
    assert set(scene.answers()) == {scene.one}
    assert (scene.store.tags(NAME), scene.store.history(NAME)) == ({}, history)
    assert scene.store.belongings.sizes(NAME) == {}
    with pytest.raises(StaleParentError, match="not the canary"):
        scene.store.canaries.withdraw(NAME, scene.two)


@pytest.mark.parametrize(
    ("act", "tags"),
    [
        (lambda s: s.store.promote(NAME, s.three, expected=s.one), {}),
        (lambda s: s.store.promote(NAME, s.two, expected=s.one), {}),
        (lambda s: s.store.promote(NAME, s.one, expected=s.one), {}),
        (lambda s: s.store.rollback(NAME), {}),
        (lambda s: s.store.untag(AdapterRef(name=NAME, tag=TAG)), {}),
        (lambda s: s.store.tag(AdapterRef(name=NAME, tag=TAG), s.three), {TAG: "three"}),
        (lambda s: s.store.tag(AdapterRef(name=NAME, tag=TAG), s.two), {TAG: "two"}),
    ],
)
def test_who_moves_the_name_or_its_tag_ends_the_canary(scene, act, tags):
    scene.store.promote(NAME, scene.three, expected=scene.one)
    scene.store.promote(NAME, scene.one, expected=scene.three)
    scene.begin()
    act(scene)
    assert scene.store.canaries.of(NAME) is None
    assert set(scene.answers()) == {scene.store.current(NAME)}
    assert scene.store.tags(NAME) == {tag: getattr(scene, which) for tag, which in tags.items()}


def test_an_adapter_that_takes_a_name_has_no_canary_of_the_one_before(scene):
    scene.begin()
    assert scene.two in scene.store.delete(NAME)
    assert scene.store.canaries.of(NAME) is None
    scene.store.create(NAME, scene.one)
    assert scene.store.canaries.all() == {}


@pytest.mark.parametrize("record", [b"", b"{}", b"[]", b"\xff", b'{"version": 7}', b"null"])
def test_by_a_record_that_cannot_be_read_nothing_is_out(scene, record):
    scene.begin()
    scene.store.belongings.put(NAME, "canary", record)
    assert set(scene.answers()) == {scene.one}
    assert scene.store.canaries.all() == {}
    with pytest.raises(StaleParentError, match="not the canary"):
        scene.store.canaries.promote(NAME, scene.two)
    assert scene.begin() == scene.store.canaries.of(NAME)
    assert set(scene.answers()) == {scene.one, scene.two}
