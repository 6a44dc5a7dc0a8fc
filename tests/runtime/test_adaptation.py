"""The adaptation loop on fakes, without torch: what it decides, and what it never does."""

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from typing_extensions import override

from hyprstream.errors import CorruptError, InvalidSettingsError, StorageFullError
from hyprstream.refs import AdapterName
from hyprstream.runtime import teaching
from hyprstream.runtime.adaptation import PAUSE_S, AdaptationLoop
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.canary import ENDED_ELSEWHERE, CanaryConfig, CanaryWatch, Side
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.journal_rows import RequestRow
from hyprstream.runtime.kept_samples import KeptSamples
from hyprstream.runtime.learners import (
    Budget,
    Learner,
    LearnerConfig,
    LessonProgress,
    LoopParts,
    spent_on,
)
from hyprstream.runtime.learning import Learning
from hyprstream.runtime.recorder import RecorderConfig, TrafficRecorder
from hyprstream.runtime.retention_config import RetentionConfig
from hyprstream.runtime.watch import FeedbackWatch, WatchConfig
from hyprstream.store.store import AdapterStore
from hyprstream.train.buffer import BufferConfig, Owner, SampleBuffer
from hyprstream.train.gate import Gate, GateConfig
from hyprstream.train.sample import Sample
from tests.runtime.learning import (
    EXPLOSIVE,
    POISON,
    FakeClock,
    FakeTrainer,
    FakeVersions,
    Inline,
    Skill,
    Slow,
    lesson,
    trusted,
)

A, B = AdapterName("a"), AdapterName("b")
CONFIG = LearnerConfig(
    min_waiting=12, max_samples=16, samples_per_step=4, epochs=2.0, min_held_out=8
)
CANARY = CanaryConfig(max_answers=40, min_answers=5, max_hours=2.0, min_opinions=4)
TRUSTED = {"manual": [trusted(5000 + number) for number in range(8)]}


class Stage:
    """A loop among fakes, with a real journal, buffer and gate."""

    def __init__(self, folder, *, is_slow: bool = False, names=(A, B), **options):
        self.folder = folder
        self.slow = Slow()
        self.io = self.slow if is_slow else Inline()
        self.clock = FakeClock()
        self.versions = FakeVersions()
        for name in names:
            self.versions.create(name)
        self.learners = [
            Learner(
                name=name,
                trusted=TRUSTED,
                uniform_loss=6.0,
                config=options.get("config", CONFIG),
                anchors=[lesson(9000)],
            )
            for name in names
        ]
        self._journals: list[Journal] = []
        self.told: list[LessonProgress] = []
        self.arrived: list[Sample] = []
        self.num_answers = 0
        self.start()

    @property
    def journal(self) -> Journal:
        return self._journals[-1]

    def start(self):
        """Open everything as a new process would."""
        if self._journals:
            self.journal.close()
        self._journals.append(Journal(self.folder / "journal.db", clock=self.clock))
        out = {canary.version for canary in self.versions.canaries.values()}
        for decision in self.journal.decisions():
            assert decision.action != "publishing" or isinstance(self.io, Slow)
            if decision.action == "publishing":
                if decision.version in out:
                    self.journal.resolve(decision.id, "canary", "used")
                elif decision.version in self.versions.moves[decision.adapter]:
                    self.journal.resolve(decision.id, "published", "used")
                else:
                    self.journal.resolve(decision.id, "abandoned")
        config = BufferConfig(held_out_share=0.4, replay_share=0.25)
        self.buffer = SampleBuffer(config, self.journal)
        self.buffer.restore(self.journal.waiting(), self.journal.used())
        self.trainer = FakeTrainer(self.clock)
        parts = LoopParts(
            trainer=self.trainer,
            buffer=self.buffer,
            gate=Gate(GateConfig(min_held_out=8, min_trusted=8)),
            versions=self.versions,
            journal=self.journal,
            io=self.io,
            norm_of=lambda skill: 1.0 + skill.learnt,
            clock=self.clock,
            tell=self.told.append,
            arrived=lambda *_: self.arrived,
            trial=self.journal.trial,
        )
        self.canaries = CanaryWatch(CANARY)
        for name, canary in self.versions.canaries.items():
            self.canaries.begin(name, self.journal.trial(name, canary))
        self.loop = AdaptationLoop(
            parts, self.learners, FeedbackWatch(WatchConfig()), canaries=self.canaries
        )

    def answer(self, name, version, number, feedback=None):
        """Give answers, as the recorder tells of them."""
        for _ in range(number):
            self.num_answers += 1
            row = RequestRow(
                id=f"answer {self.num_answers}", adapter=name, version=version, outcome="stop",
                prompt_tokens=1, completion_tokens=1, feedback=feedback,
            )  # fmt: skip
            self.journal.request(row)
            self.loop.answered(name, version)
            if feedback is not None:
                self.loop.observe(name, version, is_bad=feedback == "bad")

    def add(self, name, numbers, *tokens):
        return [self.buffer.add(name, lesson(number, *tokens), f"r{number}") for number in numbers]

    def run(self, most=10_000):
        """Run until nothing is left to do; return the number of slices."""
        for number in range(most):
            if not self.loop.ready():
                return number
            self.loop.run_slice()
        raise AssertionError("the loop does not come to an end")

    def actions(self, name=None):
        return [decision.action for decision in self.journal.decisions(name)]


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    stage.journal.close()


def test_good_samples_become_a_version(stage):
    before = stage.versions.names[A]
    stage.add(A, range(60))
    assert stage.run() > 20
    decisions = stage.journal.decisions(A)
    assert {decision.action for decision in decisions} == {"published"}
    first = decisions[0]
    assert first.parent == before
    assert stage.versions.names[A] == decisions[-1].version != before
    assert stage.versions.weights[first.version].learnt > 0
    assert first.version in stage.versions.installed
    assert first.numbers["held_out"] < -0.01
    assert first.numbers["steps"] == 8
    used = {kept.id for kept in stage.journal.used()}
    assert used == {number for decision in decisions for number in decision.samples}
    assert stage.loop.failure is None
    assert stage.loop.spent(A).steps == sum(d.numbers["steps"] for d in decisions)


@pytest.mark.parametrize("num_slices", [1, 5, 30])
def test_a_version_that_is_given_up_costs_no_sample(stage, num_slices):
    before = stage.versions.names[A]
    stage.add(A, range(30))
    waiting = stage.buffer.num_waiting(A)
    for _ in range(num_slices):
        stage.loop.run_slice()
    assert stage.loop.learning == A
    stage.loop.give_up()
    assert (stage.loop.learning, stage.trainer.names) == (None, [])
    assert stage.buffer.num_waiting(A) == waiting
    assert stage.versions.names[A] == before
    stage.run()
    assert "published" in stage.actions(A)


def test_a_publication_that_has_begun_ends_before_the_rest_is_given_up(tmp_path):
    stage = Stage(tmp_path, is_slow=True)
    stage.add(A, range(30))
    while not stage.slow.coming or stage.trainer.names == []:
        stage.slow.go_on()
        stage.loop.run_slice()
    (stage_future, work), *_ = stage.slow.coming
    stage_future.set_result(work())
    stage.loop.give_up()
    assert stage.actions(A) == ["published"]
    assert stage.buffer.counts()[A]["taken"] == 0
    stage.journal.close()


def test_who_is_dismissed_learns_no_more_and_who_is_enrolled_does(stage):
    stage.add(A, range(30))
    for _ in range(10):
        stage.loop.run_slice()
    stage.loop.dismiss(A)
    assert not stage.loop.ready()
    assert (stage.loop.learning, stage.actions()) == (None, [])
    fewer = [trusted(6000 + number) for number in range(9)]
    stage.loop.enrol(replace(stage.learners[0], trusted={"manual": fewer}))
    stage.run()
    assert "published" in stage.actions(A)


def test_what_a_day_took_is_known_in_the_next_process(stage):
    stage.add(A, range(60))
    stage.run()
    found = spent_on(stage.journal.decisions(), stage.clock())
    assert set(found) == {A}
    spent = stage.loop.spent(A)
    assert (found[A].steps, found[A].tokens) == (spent.steps, spent.tokens)
    assert spent_on(stage.journal.decisions(), stage.clock() + 86_400) == {}
    config = replace(CONFIG, budget=Budget(steps=spent.steps))
    loop = AdaptationLoop(
        stage.loop._parts, [replace(stage.learners[0], config=config)],
        FeedbackWatch(WatchConfig()), found,
    )  # fmt: skip
    stage.add(A, range(100, 140))
    assert not loop.ready()
    stage.clock.now += 86_400
    assert loop.ready()


def test_how_far_a_version_is_can_be_followed(stage):
    stage.add(A, range(40))
    stage.run()
    told = stage.told
    first = told[: [t.phase for t in told].index("judging") + 1]
    assert [t.phase for t in first] == ["screening", *["learning"] * 9, "judging"]
    assert [t.step for t in first[1:-1]] == list(range(9))
    assert {t.num_steps for t in first[1:]} == {8}
    assert first[1].loss is None
    assert first[-1].num_tokens == stage.journal.decisions(A)[0].numbers["tokens"]


def test_poison_is_rejected_and_the_samples_are_gone(stage):
    before = stage.versions.names[A]
    stage.add(A, range(40), POISON)
    stage.run()
    decisions = stage.journal.decisions(A)
    assert {decision.action for decision in decisions} == {"rejected"}
    assert "worse on manual" in decisions[0].reasons[0]
    assert stage.versions.names[A] == before
    assert stage.trainer.names == []
    assert stage.buffer.counts()[A]["taken"] == 0
    assert {stage.journal._db.execute("SELECT fate FROM samples WHERE id = ?", (n,)).fetchone()[0]
            for n in decisions[0].samples} == {"dropped"}  # fmt: skip
    stage.add(A, range(100, 140))
    stage.run()
    assert "published" in stage.actions(A)


def test_a_lesson_stops_where_it_drifts_and_what_was_before_is_judged(tmp_path):
    stage = Stage(tmp_path, names=(A,), config=replace(CONFIG, look_every=1))
    stage.add(A, range(24), POISON)
    stage.run()
    [decision] = stage.journal.decisions(A)
    # A step does 0.05 nats of harm, and 0.1 are what the gate admits.
    assert decision.action == "published"
    assert stage.versions.weights[stage.versions.names[A]] == Skill(learnt=0.05, harm=0.05)
    assert "drifted: +0.1" in decision.reasons[0]
    told = {name: decision.numbers[name] for name in ("steps", "best_at_step", "drifted_at_step")}
    assert told == {"steps": 2, "best_at_step": 1, "drifted_at_step": 2}
    stage.journal.close()


def test_a_lesson_ends_when_it_is_of_no_more_use_and_what_was_best_is_judged(tmp_path):
    config = replace(CONFIG, look_every=1, epochs=12.0, patience=3)
    stage = Stage(tmp_path, names=(A,), config=config)
    stage.trainer.too_much = 0.1
    stage.add(A, range(24))
    stage.run()
    first = stage.journal.decisions(A)[0]
    assert (first.action, first.reasons) == ("published", ())
    assert {name: first.numbers[name] for name in ("steps", "best_at_step")} == {
        "steps": 5,
        "best_at_step": 2,
    }
    assert first.version is not None
    assert stage.versions.weights[first.version].learnt == pytest.approx(0.1)
    stage.journal.close()


@pytest.mark.parametrize(("epochs", "best"), [(2.0, None), (4.0, 12), (6.0, 16)])
def test_the_last_step_is_looked_at_where_another_may_be_better(tmp_path, epochs, best):
    stage = Stage(tmp_path, names=(A,), config=replace(CONFIG, epochs=epochs, max_samples=12))
    stage.trainer.too_much = 0.7
    stage.add(A, range(24))
    stage.run()
    numbers = stage.journal.decisions(A)[0].numbers
    assert numbers.get("best_at_step") == best, numbers
    stage.journal.close()


@pytest.mark.parametrize(
    ("tokens", "passes"),
    [(512, [(4, 3)]), (24, [(2, 2), (2, 1)]), (1, [(1, 1), (1, 1), (1, 1), (1, 1)])],
)
def test_a_step_is_made_of_passes_so_that_slices_stay_short(tmp_path, monkeypatch, tokens, passes):
    monkeypatch.setattr(teaching, "_PASS_TOKENS", tokens)
    stage = Stage(tmp_path, names=(A,), config=replace(CONFIG, anchors_per_step=3))
    learner = replace(stage.learners[0], anchors=[lesson(9000 + number) for number in range(5)])
    stage.loop.enrol(learner)
    stage.add(A, range(24))
    stage.run()
    decision = stage.journal.decisions(A)[0]
    assert decision.action == "published"
    assert stage.trainer.passes == passes * int(decision.numbers["steps"])
    stage.journal.close()


def test_a_lesson_that_has_drifted_at_the_first_look_is_left_to_the_gate(tmp_path):
    stage = Stage(tmp_path, names=(A,), config=replace(CONFIG, look_every=3))
    stage.add(A, range(24), POISON)
    stage.run()
    [decision] = stage.journal.decisions(A)
    assert decision.action == "rejected"
    assert decision.numbers["steps"] == 3
    drifted, worse, *_ = decision.reasons
    assert "drifted" in drifted
    assert "worse on manual" in worse
    stage.journal.close()


def test_training_that_fails_drops_its_samples_and_goes_on_with_others(stage):
    stage.add(A, range(40), EXPLOSIVE)
    stage.run()
    assert set(stage.actions(A)) == {"failed"}
    assert "no finite number" in stage.journal.decisions(A)[0].reasons[0]
    stage.add(A, range(100, 140))
    stage.run()
    assert "published" in stage.actions(A)


def test_people_win_over_the_loop(stage):
    other = stage.versions._commit(Skill(0.3), stage.versions.names[A])

    def move():
        stage.versions.before_promotion = lambda: None
        stage.versions.move(A, other)

    stage.versions.before_promotion = move
    stage.add(A, range(28))
    stage.run()
    decisions = stage.journal.decisions(A)
    assert [decision.action for decision in decisions] == ["abandoned", "stale", "published"]
    assert decisions[2].parent == other  # the same samples, learnt from where people are
    assert set(decisions[2].samples) == set(decisions[0].samples)
    assert stage.versions.moves[A][1] == other


def test_a_full_disk_makes_learning_wait_and_loses_nothing(stage):
    stage.versions.refuses = StorageFullError("no room", hint="Free some space.")
    stage.add(A, range(40))
    waiting = stage.buffer.num_waiting(A)
    stage.run()
    assert stage.actions(A) == []
    assert stage.buffer.num_waiting(A) == waiting
    stage.versions.refuses = None
    assert not stage.loop.ready()
    stage.clock.now += PAUSE_S
    stage.run()
    assert "published" in stage.actions(A)


def test_an_adapter_that_was_deleted_leaves_the_others_alone(stage):
    del stage.versions.names[A]
    stage.add(A, range(40))
    stage.add(B, range(100, 140))
    waiting = stage.buffer.num_waiting(A)
    stage.run()
    assert stage.loop.failure is None
    assert stage.actions(A) == []
    assert "published" in stage.actions(B)
    assert stage.buffer.num_waiting(A) == waiting


def test_a_mistake_ends_learning_and_nothing_else(stage):
    stage.trainer.open = None
    stage.add(A, range(40))
    stage.run()
    assert isinstance(stage.loop.failure, TypeError)
    assert not stage.loop.ready()
    assert stage.buffer.add(A, lesson(500), "r") in ("waiting", "held_out")


def test_what_is_withdrawn_is_not_learnt_any_more(tmp_path):
    stage = Stage(tmp_path, is_slow=True)
    stage.add(A, range(40))
    assert stage.loop.ready()
    stage.loop.run_slice()
    stage.slow.go_on()
    for _ in range(4):
        stage.loop.run_slice()
    gone = list(stage.buffer._shelf(A).taken.values())[:3]
    for kept in gone:
        stage.buffer.withdraw(kept.source)
    seen = []
    begin = stage.trainer.begin

    def seen_begin(name, samples, **options):
        seen.extend(samples)
        return begin(name, samples, **options)

    vars(stage.trainer)["begin"] = seen_begin
    while stage.loop.ready() or stage.slow.coming:
        stage.slow.go_on()
        stage.loop.run_slice()
    assert "published" in stage.actions(A)
    assert seen
    assert not {kept.sample for kept in gone} & set(seen)
    assert not {kept.id for kept in gone} & {kept.id for kept in stage.journal.used()}
    stage.journal.close()


def test_adapters_take_turns(stage):
    stage.add(A, range(200))
    stage.add(B, range(200, 400))
    stage.run()
    order = [decision.adapter for decision in stage.journal.decisions()]
    assert {A, B} == set(order)
    for length in range(2, min(order.count(A), order.count(B)) * 2):
        assert abs(order[:length].count(A) - order[:length].count(B)) <= 2


@pytest.mark.parametrize("budget", [Budget(steps=10), Budget(seconds=0.08), Budget(tokens=600)])
def test_a_day_has_a_budget(tmp_path, budget):
    config = LearnerConfig(
        min_waiting=12, max_samples=16, samples_per_step=4, min_held_out=8, budget=budget
    )
    stage = Stage(tmp_path, config=config)
    stage.add(A, range(300))
    stage.run()
    waiting = stage.buffer.num_waiting(A)
    assert waiting > 12
    spent = stage.loop.spent(A)
    assert spent.steps <= budget.steps
    assert spent.tokens <= budget.tokens + 4 * 13
    stage.clock.now += 86_400
    assert stage.loop.ready()
    stage.run()
    assert stage.buffer.num_waiting(A) < waiting
    stage.journal.close()


def test_the_loop_waits_for_samples_to_judge_by(stage):
    held_out = [n for n in range(400) if stage.buffer.holds_out(lesson(n))]
    to_learn = [n for n in range(400) if n not in held_out]
    stage.add(A, to_learn[:40])
    assert not stage.loop.ready()
    stage.add(A, held_out[:8])
    assert stage.loop.ready()


def publish_one(stage):
    stage.add(A, range(28))
    stage.run()
    (decision,) = stage.journal.decisions(A)
    assert decision.action == "published"
    return decision


def test_a_version_that_users_dislike_is_taken_back(stage):
    parent = stage.versions.names[A]
    for number in range(20):
        stage.loop.observe(A, parent, is_bad=number % 5 == 0)
    version = publish_one(stage).version
    for _ in range(8):
        assert not stage.loop.ready()
        stage.loop.observe(A, version, is_bad=True)
    stage.run()
    assert stage.versions.names[A] == parent
    last = stage.journal.decisions(A)[-1]
    assert (last.action, last.parent, last.version) == ("rolled_back", version, parent)
    assert (last.numbers["bad"], last.numbers["good"]) == (8, 0)


def test_a_version_that_users_like_as_much_stays(stage):
    parent = stage.versions.names[A]
    for number in range(40):
        stage.loop.observe(A, parent, is_bad=number % 4 == 0)
    version = publish_one(stage).version
    for number in range(40):
        stage.loop.observe(A, version, is_bad=number % 4 == 0)
    assert not stage.loop.ready()
    assert stage.versions.names[A] == version


def test_a_version_that_people_moved_away_from_is_not_taken_back(stage):
    parent = stage.versions.names[A]
    for _ in range(20):
        stage.loop.observe(A, parent, is_bad=False)
    version = publish_one(stage).version
    other = stage.versions._commit(Skill(), None)
    stage.versions.move(A, other)
    for _ in range(10):
        stage.loop.observe(A, version, is_bad=True)
    stage.run()
    assert stage.versions.names[A] == other
    assert stage.actions(A)[-1] == "stale"


@pytest.fixture
def canary(stage):
    """A stage on which a canary of A is out, since now."""
    stage.versions.share = 0.25
    stage.versions.since = datetime.fromtimestamp(stage.clock.now, UTC)
    stage.add(A, range(28))
    stage.run()
    return stage.versions.canaries[A]


def test_a_good_version_begins_as_a_canary_and_is_waited_for(stage, canary):
    [decision] = stage.journal.decisions(A)
    assert (decision.action, decision.version) == ("canary", canary.version)
    assert decision.numbers["share"] == 0.25
    assert decision.numbers["held_out"] < -0.01
    assert {kept.id for kept in stage.journal.used()} == set(decision.samples)
    assert stage.versions.moves[A] == [canary.parent]
    stage.add(A, range(100, 160))
    stage.add(B, range(200, 260))
    stage.versions.share = 0.0
    stage.run()
    assert stage.actions(A) == ["canary"]  # what waits would be learnt from its parent on
    assert "published" in stage.actions(B)
    stage.answer(A, canary.version, 40)
    stage.run()
    assert stage.actions(A)[:2] == ["canary", "promoted"]
    assert stage.journal.decisions(A)[2].parent == canary.version


def test_a_canary_is_promoted_after_enough_answers(stage, canary):
    stage.answer(A, canary.parent, 100)
    stage.answer(A, canary.version, 39, "good")
    assert not stage.loop.ready()
    stage.answer(A, canary.version, 1)
    stage.run()
    assert stage.versions.moves[A] == [canary.parent, canary.version]
    last = stage.journal.decisions(A)[-1]
    assert (last.action, last.parent, last.version) == ("promoted", canary.parent, canary.version)
    assert last.reasons == ("it gave enough answers, and nothing spoke against it",)
    assert (last.numbers["answers"], last.numbers["good"], last.numbers["arrived"]) == (40, 39, 0)
    # The watch goes on: users may find out later.
    stage.answer(A, canary.version, 12, "bad")
    stage.answer(A, canary.parent, 30, "good")
    stage.answer(A, canary.version, 1, "bad")
    stage.run()
    assert stage.actions(A)[-1] == "rolled_back"
    assert stage.versions.names[A] == canary.parent


def test_time_promotes_a_canary_that_nobody_spoke_of(stage, canary):
    stage.answer(A, canary.version, 5)
    assert not stage.loop.ready()
    stage.clock.now += 2 * 3600
    stage.run()
    last = stage.journal.decisions(A)[-1]
    assert (last.action, last.numbers["hours"]) == ("promoted", pytest.approx(2, abs=0.01))
    assert "long enough" in last.reasons[0]


def test_a_canary_that_users_dislike_is_withdrawn(stage, canary):
    stage.answer(A, canary.parent, 30, "good")
    stage.answer(A, canary.version, 3, "bad")
    assert not stage.loop.ready()
    stage.answer(A, canary.version, 1, "bad")
    stage.run()
    assert stage.versions.moves[A] == [canary.parent]
    assert stage.versions.canaries == {}
    last = stage.journal.decisions(A)[-1]
    assert (last.action, last.version) == ("withdrawn", canary.version)
    assert last.reasons == ("4 of 4 opinions on it are dislikes, of those on its parent 0 of 30",)
    assert last.numbers["chance"] < 0.01


def test_a_canary_that_is_worse_on_what_came_since_is_withdrawn(stage, canary):
    stage.versions.weights[canary.version] = Skill(learnt=-0.3)
    stage.arrived = [lesson(number) for number in range(700, 707)]
    stage.answer(A, canary.version, 40)
    for number in (707, 708):
        stage.arrived.append(lesson(number))
    stage.run()
    last = stage.journal.decisions(A)[-1]
    assert last.action == "withdrawn"
    assert "worse on what came since" in last.reasons[0]
    assert last.numbers["arrived"] == 9
    assert 0 < last.numbers["arrived_low"] < last.numbers["arrived_change"]


def test_a_canary_that_cannot_be_measured_is_withdrawn(stage, canary):
    def load(_version):
        raise CorruptError("it is damaged", hint="None.")

    stage.versions.load = load
    stage.arrived = [lesson(number) for number in range(700, 708)]
    stage.answer(A, canary.version, 40)
    stage.run()
    assert stage.actions(A)[-1] == "withdrawn"
    assert stage.loop.failure is None


def test_a_canary_waits_for_a_disk(stage, canary):
    stage.versions.refuses = StorageFullError("no room", hint="Free some space.")
    stage.answer(A, canary.version, 40)
    stage.run()
    assert stage.actions(A) == ["canary"]
    stage.versions.refuses = None
    assert not stage.loop.ready()
    stage.clock.now += PAUSE_S
    stage.run()
    assert stage.actions(A) == ["canary", "promoted"]


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("notices", [True, False])
def test_people_win_over_a_canary(stage, canary, served, notices):
    to = canary.version if served else stage.versions._commit(Skill(), canary.parent)
    stage.versions.move(A, to)
    if notices:
        stage.loop.compare(stage.versions.canaries)
    else:
        stage.answer(A, canary.version, 40)
    stage.run()
    assert stage.versions.moves[A] == [canary.parent, to]
    last = stage.journal.decisions(A)[-1]
    assert last.action == ("promoted" if served else "withdrawn")
    assert last.reasons == (ENDED_ELSEWHERE,)
    stage.versions.share = 0.0
    stage.add(A, range(300, 360))
    stage.run()
    assert stage.journal.decisions(A)[2].parent == to


def test_a_canary_that_was_looked_for_too_early_goes_on(stage, canary):
    stage.loop.compare({})
    stage.run()
    assert stage.actions(A) == ["canary"]
    stage.answer(A, canary.version, 40)
    stage.run()
    assert stage.actions(A) == ["canary", "promoted"]


def test_a_canary_goes_on_in_the_next_process(stage, canary):
    stage.answer(A, canary.parent, 10, "good")
    stage.answer(A, canary.version, 20)
    stage.answer(A, canary.version, 2, "good")
    stage.start()
    trial = stage.canaries.of(A)
    assert trial.canary == canary
    assert (trial.own, trial.others) == (Side(answers=22, good=2), Side(answers=10, good=10))
    stage.add(A, range(100, 160))
    assert not stage.loop.ready()
    stage.answer(A, canary.version, 18)
    stage.run()
    assert stage.actions(A)[:2] == ["canary", "promoted"]


def test_opinions_on_a_canary_are_none_on_the_version_before(stage):
    stage.add(A, range(28))
    stage.run()
    first = stage.versions.names[A]
    stage.versions.share = 0.25
    stage.add(A, range(100, 140))
    stage.run()
    canary = stage.versions.canaries[A]
    assert canary.parent == first
    parent = stage.journal.decisions(A)[0].parent
    stage.answer(A, parent, 30, "good")
    stage.answer(A, canary.version, 12, "good")
    stage.answer(A, first, 12, "bad")  # the version that serves is taken back, and the canary
    stage.run()
    assert stage.actions(A)[2:4] == ["rolled_back", "withdrawn"]
    assert stage.versions.names[A] == parent
    assert stage.versions.canaries.get(A) != canary


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(InvalidSettingsError):
        LearnerConfig(epochs=0)
    with pytest.raises(InvalidSettingsError):
        LearnerConfig(min_waiting=0)
    with pytest.raises(InvalidSettingsError, match="look_samples"):
        LearnerConfig(look_samples=4)
    with pytest.raises(InvalidSettingsError, match="look_every"):
        LearnerConfig(look_every=-1)
    with pytest.raises(InvalidSettingsError):
        WatchConfig(alpha=1.0)


class LoopMachine(RuleBasedStateMachine):
    """Samples, slices, slow disks, people and restarts, in any order."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.stage = Stage(self.folder, is_slow=True)
        self.coming = 0
        self.acknowledged = {A: 0, B: 0}

    @override
    def teardown(self):
        self.stage.journal.close()
        shutil.rmtree(self.folder)

    @rule(name=st.sampled_from([A, B]), number=st.integers(1, 30),
          token=st.sampled_from([None, None, POISON, EXPLOSIVE]))  # fmt: skip
    def add(self, name, number, token):
        tokens = () if token is None else (token,)
        for result in self.stage.add(name, range(self.coming, self.coming + number), *tokens):
            self.acknowledged[name] += result in ("waiting", "held_out")
        self.coming += number

    @rule(number=st.integers(1, 60))
    def slices(self, number):
        for _ in range(number):
            if self.stage.loop.ready():
                self.stage.loop.run_slice()

    @rule()
    def disk(self):
        self.stage.slow.go_on()

    @rule(name=st.sampled_from([A, B]), back=st.integers(0, 5))
    def people_move(self, name, back):
        versions = self.stage.versions
        to = versions.moves[name][-1 - back % len(versions.moves[name])]
        if to != versions.names[name]:
            versions.move(name, to)

    @rule(source=st.integers(0, 200))
    def withdraw(self, source):
        self.stage.buffer.withdraw(f"r{source}")

    @rule(name=st.sampled_from([A, B]), is_bad=st.booleans())
    def opinion(self, name, is_bad):
        self.stage.loop.observe(name, self.stage.versions.names[name], is_bad=is_bad)

    @rule(share=st.sampled_from([0.0, 0.2]))
    def policy(self, share):
        self.stage.versions.share = share

    @rule(name=st.sampled_from([A, B]), number=st.sampled_from([1, 5, 20]),
          feedback=st.sampled_from([None, "good", "bad"]))  # fmt: skip
    def canary_answers(self, name, number, feedback):
        canary = self.stage.versions.canaries.get(name)
        if canary is not None:
            self.stage.answer(name, canary.version, number, feedback)

    @rule()
    def the_store_is_looked_at(self):
        self.stage.loop.compare(self.stage.versions.canaries)

    @rule()
    def restart(self):
        """A kill: what was on its way to the disk may have got there or not."""
        self.stage.slow.coming.clear()
        self.stage.start()

    @rule()
    def a_day_passes(self):
        self.stage.clock.now += 86_400

    @invariant()
    def names_point_at_harmless_versions_that_can_serve(self):
        versions = self.stage.versions
        for version in versions.names.values():
            assert versions.weights[version].harm < 0.05
            assert version in versions.installed

    @invariant()
    def no_sample_is_lost(self):
        rows = self.stage.journal._db.execute("SELECT adapter, COUNT(*) FROM samples GROUP BY 1")
        assert dict(rows.fetchall()) == {k: v for k, v in self.acknowledged.items() if v}
        for name, counts in self.stage.buffer.counts().items():
            query = (
                "SELECT COUNT(*) FROM samples WHERE adapter = ? AND NOT held_out AND fate IS NULL"
            )
            unsettled = self.stage.journal._db.execute(query, (name,)).fetchone()[0]
            # While a decision is on its way back, the disk knows more than the buffer.
            assert counts["waiting"] + counts["taken"] >= unsettled

    @invariant()
    def learning_goes_on(self):
        assert self.stage.loop.failure is None

    @invariant()
    def a_canary_is_where_the_journal_says_and_its_parent_serves(self):
        versions = self.stage.versions
        for name, canary in versions.canaries.items():
            assert versions.names[name] == canary.parent
            assert versions.weights[canary.version].harm < 0.05
            assert canary.version in versions.installed
        for decision in self.stage.journal.decisions():
            if decision.action == "promoted":
                assert decision.version in versions.moves[decision.adapter]
            if decision.action == "withdrawn":
                assert decision.version not in {c.version for c in versions.canaries.values()}

    @invariant()
    def published_versions_are_where_the_journal_says(self):
        for decision in self.stage.journal.decisions():
            if decision.action == "published":
                assert decision.version in self.stage.versions.moves[decision.adapter]


LoopMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
TestLoop = LoopMachine.TestCase


def kept_samples(stage: Stage) -> KeptSamples:
    """What callers delete with, on the stage: nobody asks for its adapters."""
    learning = Learning(
        journal=stage.journal, buffer=stage.buffer, loop=cast("Any", stage.loop),
        io=ThreadPoolExecutor(1),
    )  # fmt: skip
    recorder = TrafficRecorder(
        stage.buffer, stage.journal, {}, encode=lambda _: (), observe=lambda *_: None,
        config=RecorderConfig(),
    )  # fmt: skip
    adapters = Adapters(AdapterStore(stage.folder / "adapters"))
    return KeptSamples(learning, recorder, adapters, RetentionConfig())


@pytest.mark.parametrize("num_slices", [0, 1, 5, 30])
def test_nothing_is_learnt_from_samples_that_were_deleted_meanwhile(stage, num_slices):
    ada, bob = Owner(user="ada"), Owner(user="bob")
    for number in range(60):
        owner = ada if number % 2 else bob
        stage.buffer.add(A, lesson(number), f"r{number}", owner)
    of_bob = {kept.id for kept in stage.journal.waiting() if int(kept.source[1:]) % 2 == 0}
    for _ in range(num_slices):
        stage.loop.run_slice()
    erased = kept_samples(stage).erase(ada)
    assert (erased.samples, erased.versions) == ({A: 30}, {})
    stage.run()
    # The version that was being made is not there; what came of the others is.
    assert {kept.id for kept in stage.journal.waiting()} <= of_bob
    for decision in stage.journal.decisions():
        assert set(decision.samples) <= of_bob
    assert stage.loop.failure is None


def test_versions_that_had_learnt_from_what_is_deleted_are_told(stage):
    for number in range(60):
        owner = Owner(user="ada" if number < 20 else "bob")
        stage.buffer.add(A, lesson(number), f"r{number}", owner)
    stage.run()
    published = [d for d in stage.journal.decisions(A) if d.action == "published"]
    assert len(published) > 1
    of_ada = {kept.id for kept in [*stage.journal.used()] if int(kept.source[1:]) < 20}
    expected = [d.version for d in published if not of_ada.isdisjoint(d.samples)]
    assert 0 < len(expected) < len(published)
    erased = kept_samples(stage).erase(Owner(user="ada"))
    assert erased.versions == {A: expected}
    assert erased.samples == {A: 20}
    counts = stage.buffer.counts()[A]
    stage.start()  # a new process has the same
    assert stage.buffer.counts()[A] == counts
