"""What is decided about a canary, and when: plain statistics, without a loop."""

import math
import random
from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hyprstream.errors import InvalidSettingsError
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.canary import CanaryConfig, CanaryWatch, Side, Trial
from hyprstream.runtime.watch import FeedbackWatch, WatchConfig, fisher
from hyprstream.store.records import Canary

A = AdapterName("a")
OLD, NEW, OTHER = (VersionId(digit * 64) for digit in "012")
BEGAN = 1_000_000.0
CANARY = Canary(version=NEW, parent=OLD, share=0.1, since=datetime.fromtimestamp(BEGAN, UTC))
CONFIG = CanaryConfig(max_answers=50, max_hours=2.0, min_answers=5, min_opinions=4)
LATE = BEGAN + 2 * 3600


def unknown(_adapter, canary):
    return Trial(canary=canary)


class Scene:
    def __init__(self, config=CONFIG, *, good=0, bad=0):
        self.watch = CanaryWatch(config)
        self.watch.begin(A, Trial(canary=CANARY, others=Side(good=good, bad=bad)))

    def answer(self, version, number=1):
        for _ in range(number):
            self.watch.answered(A, version)

    def say(self, version, *opinions, was=None):
        for is_bad in opinions:
            self.watch.observe(A, version, is_bad=is_bad, was_bad=was)

    @property
    def trial(self) -> Trial:
        trial = self.watch.of(A)
        assert trial is not None
        return trial

    def why(self, now=BEGAN):
        return [due.why for due in self.watch.due(now)]


def test_enough_answers_end_a_trial_and_those_of_the_parent_do_not():
    scene = Scene()
    scene.answer(OLD, 500)
    scene.answer(OTHER, 500)
    scene.answer(NEW, 49)
    assert scene.why() == []
    scene.answer(NEW)
    [due] = scene.watch.due(BEGAN + 1800)
    assert (due.why, due.adapter, due.trial.canary) == ("answers", A, CANARY)
    assert due.numbers == {
        "share": 0.1, "answers": 50.0, "good": 0.0, "bad": 0.0, "parent_answers": 500.0,
        "parent_good": 0.0, "parent_bad": 0.0, "chance": 1.0, "hours": 0.5,
    }  # fmt: skip


def test_time_ends_a_trial_that_was_one():
    scene = Scene()
    scene.answer(NEW, 4)
    assert scene.why(LATE + 1e6) == []
    scene.answer(NEW)
    assert scene.why(LATE - 1) == []
    assert scene.why(LATE) == ["time"]


def test_what_users_like_less_is_worse_and_chance_is_told():
    scene = Scene(good=30, bad=10)
    scene.say(NEW, True, True, True)
    assert scene.why() == []
    scene.say(NEW, True)
    [due] = scene.watch.due(BEGAN)
    assert (due.why, due.numbers["bad"], due.numbers["parent_good"]) == ("worse", 4.0, 30.0)
    # Four bad ones of four, among 14 of 44: the hypergeometric tail has one term.
    chance = math.comb(14, 4) / math.comb(44, 4)
    assert due.numbers["chance"] == pytest.approx(chance)
    scene.say(NEW, *[False] * 12)
    assert scene.why() == []


def test_a_parent_of_whom_nothing_is_known_is_taken_to_be_liked_as_often_as_not():
    scene = Scene(good=3)
    scene.say(NEW, *[True] * 6)
    assert scene.why() == []  # 1 in 64
    scene.say(NEW, True)
    assert next(scene.watch.due(BEGAN)).numbers["chance"] == 1 / 128
    assert scene.why() == ["worse"]


def test_an_answer_has_one_opinion_the_last_one():
    scene = Scene(good=40)
    scene.say(NEW, True)
    scene.say(NEW, *[True] * 20, was=True)
    assert scene.trial.own == Side(bad=1)
    scene.say(NEW, False, was=True)
    assert scene.trial.own == Side(good=1)
    watch = FeedbackWatch(WatchConfig(min_opinions=2))
    watch.published(A, NEW, OLD)
    for _ in range(60):
        watch.observe(A, OLD, is_bad=False)
    watch.observe(A, NEW, is_bad=True)
    for _ in range(20):
        watch.observe(A, NEW, is_bad=True, was_bad=True)
    assert watch.worse() is None


def test_one_that_is_not_to_be_found_is_told_until_it_is_ended_or_begins_again():
    scene = Scene()
    scene.watch.compare({A: CANARY}, unknown)
    assert scene.why() == []
    scene.watch.compare({}, unknown)
    scene.answer(NEW, 100)
    assert scene.why() == ["gone"]
    scene.watch.begin(A, scene.trial)
    assert scene.why() == ["answers"]
    scene.watch.doubt(AdapterName("nobody"))
    scene.watch.end(A)
    assert (scene.why(LATE), scene.watch.of(A)) == ([], None)
    scene.say(NEW, True)
    scene.answer(NEW)
    scene.watch.compare({A: CANARY}, unknown)  # another process let it out
    assert scene.trial == Trial(canary=CANARY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_answers": 0}, {"min_answers": 0}, {"min_opinions": 0}, {"alpha": 0.0},
        {"alpha": 1.0}, {"max_hours": 0.0}, {"max_hours": math.inf}, {"max_hours": math.nan},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InvalidSettingsError):
        CanaryConfig(**wrong)


@given(*[st.integers(0, 60)] * 4)
def test_the_test_of_fisher_is_exact(bad, good, other_bad, other_good):
    number, other, all_bad = bad + good, other_bad + other_good, bad + other_bad
    ways = sum(
        math.comb(number, k) * math.comb(other, all_bad - k)
        for k in range(bad, min(number, all_bad) + 1)
    )
    expected = ways / math.comb(number + other, all_bad)
    assert fisher(bad, good, other_bad, other_good) == pytest.approx(expected, rel=1e-9)


def outcome(seed, own_bad, parent_bad, *, share, says):
    """How a canary of so many dislikes ends, with the settings that are usual."""
    chance = random.Random(seed)  # noqa: S311 - a simulation
    scene = Scene(CanaryConfig())
    while not (why := scene.why()):
        version = NEW if chance.random() < share else OLD
        scene.answer(version)
        if chance.random() < says:
            is_bad = chance.random() < (own_bad if version == NEW else parent_bad)
            scene.say(version, is_bad)
    return why[0]


@pytest.mark.slow
def test_as_good_a_version_is_promoted_and_a_worse_one_is_not():
    # Of 300 with each of six settings, 0 to 6 in 100 as good ones were withdrawn.
    same = Counter(outcome(n, 0.2, 0.2, share=0.3, says=0.3) for n in range(25))
    assert same["answers"] >= 21
    worse = Counter(outcome(n, 0.6, 0.1, share=0.3, says=0.3) for n in range(25))
    assert worse["worse"] >= 23


class TrialMachine(RuleBasedStateMachine):
    """Compares a watch with lists of all that was told to it."""

    def __init__(self):
        super().__init__()
        self.watch, self.now = CanaryWatch(CONFIG), BEGAN
        self.out, self.is_gone = False, False
        self.answers: list[VersionId] = []
        self.opinions: list[tuple[VersionId, bool]] = []

    @rule()
    def begin(self):
        self.watch.begin(A, Trial(canary=CANARY))
        self.out, self.is_gone, self.answers, self.opinions = True, False, [], []

    @rule()
    def end(self):
        self.watch.end(A)
        self.out = False

    @rule(version=st.sampled_from([OLD, NEW, OTHER]), number=st.integers(1, 20))
    def answer(self, version, number):
        for _ in range(number):
            self.watch.answered(A, version)
        self.answers += [version] * number

    @rule(version=st.sampled_from([OLD, NEW, NEW, OTHER]), is_bad=st.booleans(),
          number=st.integers(1, 6))  # fmt: skip
    def say(self, version, is_bad, number):
        for _ in range(number):
            self.watch.observe(A, version, is_bad=is_bad)
        self.opinions += [(version, is_bad)] * number

    @rule(hours=st.sampled_from([0.5, 3.0]))
    def wait(self, hours):
        self.now += 3600 * hours

    @rule()
    def people(self):
        self.watch.compare({}, unknown)
        self.is_gone = self.out

    @invariant()
    def it_ends_when_it_should_and_only_then(self):
        due = list(self.watch.due(self.now))
        if not self.out:
            assert due == []
            return
        bad, good, old_bad, old_good = (
            self.opinions.count((version, is_bad))
            for version in (NEW, OLD)
            for is_bad in (True, False)
        )
        number = bad + good
        if old_bad + old_good >= 4:
            chance = fisher(bad, good, old_bad, old_good)
        else:
            chance = sum(math.comb(number, k) for k in range(bad, number + 1)) / 2**number
        answers = self.answers.count(NEW)
        expected = None
        if self.is_gone:
            expected = "gone"
        elif number >= 4 and chance < 0.01:
            expected = "worse"
        elif answers >= 50:
            expected = "answers"
        elif self.now >= LATE and answers >= 5:
            expected = "time"
        assert [one.why for one in due] == ([] if expected is None else [expected])


TrialMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestTrial = TrialMachine.TestCase
