"""The buffer against a plain model of it: nothing lost, nothing twice, nothing beyond bounds."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hyprstream.errors import InvalidSettingsError, StorageFullError
from hyprstream.refs import AdapterName
from hyprstream.train.buffer import BufferConfig, SampleBuffer, prompt_digest, size_bytes
from hyprstream.train.sample import Sample
from tests.train.logs import FakeLog

A, B = AdapterName("a"), AdapterName("b")
NAMES = st.sampled_from([A, B])
CONFIG = BufferConfig(
    max_waiting=6,
    max_waiting_bytes=9 * 30,
    max_sample_tokens=8,
    max_held_out=3,
    max_replayed=4,
    held_out_share=0.3,
    replay_share=0.5,
)


def sample(prompt: int, answer: int, length: int = 1) -> Sample:
    return Sample.answer([prompt, 7], [answer] * length)


class BufferMachine(RuleBasedStateMachine):
    """Adds, takes, settles, withdraws and restarts at any moment."""

    def __init__(self):
        super().__init__()
        self.log = FakeLog()
        self.buffer = SampleBuffer(CONFIG, self.log)
        self.acknowledged: dict[int, str] = {}  # what the caller believes
        self.withdrawn: set[int] = set()
        self.trained: set[bytes] = set()
        self.num_sources = 0

    @rule(name=NAMES, prompt=st.integers(0, 30), answer=st.integers(0, 3), length=st.integers(1, 9))
    def add(self, name, prompt, answer, length):
        before = len(self.log.rows)
        self.num_sources += 1
        wanted = sample(prompt, answer, length)
        counts = self.buffer.counts().get(name, {})
        result = self.buffer.add(name, wanted, f"r{self.num_sources % 7}")
        taken = result in ("waiting", "held_out")
        assert len(self.log.rows) == before + taken
        same = [k for k in self.log.rows.values() if k.adapter == name and k.sample == wanted]
        if taken:
            assert len(same) == 1
            self.acknowledged[before + 1] = result
            assert same[0].is_held_out == (result == "held_out") == self.buffer.holds_out(wanted)
        elif result == "duplicate":
            assert same
        elif result == "full":
            unsettled = counts["waiting"] + counts["taken"]
            assert (
                unsettled == CONFIG.max_waiting
                or counts["size_bytes"] + size_bytes(wanted) > CONFIG.max_waiting_bytes
            )
        else:
            assert len(wanted.token_ids) > CONFIG.max_sample_tokens

    @rule(name=NAMES)
    def add_to_a_full_disk(self, name):
        self.log.is_full = True
        before = self.buffer.counts().get(name)
        try:
            self.buffer.add(name, sample(40, 1), "x")
        except StorageFullError:
            after = self.buffer.counts()[name]
            assert before is None or after == before
        self.log.is_full = False

    @rule(name=NAMES, number=st.integers(1, 6))
    def take(self, name, number):
        waiting = self.buffer.num_waiting(name)
        batch = self.buffer.take(name, number)
        assert len(batch) <= number
        assert bool(batch) == (waiting > 0)
        fresh = [kept for kept in batch if self.log.fates.get(kept.id) != "used"]
        assert [kept.id for kept in fresh] == sorted(kept.id for kept in fresh)
        for kept in batch:
            assert kept.id not in self.withdrawn
            assert not kept.is_held_out
            self.trained.add(prompt_digest(kept.sample))

    @rule(name=NAMES, fate=st.sampled_from(["used", "dropped"]))
    def settle(self, name, fate):
        ids = [number for number in self.log.rows if self.buffer.is_taken(name, number)]
        self.buffer.settle(name, ids, fate)
        assert all(self.log.fates[number] == fate for number in ids)

    @rule(name=NAMES)
    def give_back(self, name):
        before = self.buffer.counts().get(name, {"waiting": 0, "taken": 0})
        self.buffer.give_back(name)
        assert self.buffer.num_waiting(name) == before["waiting"] + before["taken"]

    @rule(source=st.integers(0, 6))
    def withdraw(self, source):
        self.buffer.withdraw(f"r{source}")
        ended = ("dropped", "used")
        for number, kept in self.log.rows.items():
            if kept.source == f"r{source}" and self.log.fates.get(number) not in ended:
                # One that chance had pushed out of the hold-out is not there to be found.
                assert self.log.fates.get(number) == "withdrawn" or kept.is_held_out
            if self.log.fates.get(number) == "withdrawn":
                self.withdrawn.add(number)

    @rule()
    def restart(self):
        self.buffer = SampleBuffer(CONFIG, self.log)
        self.buffer.restore(self.log.waiting(), self.log.used())

    @invariant()
    def nothing_is_lost(self):
        counts = self.buffer.counts()
        for name in (A, B):
            unsettled = [k for k in self.log.waiting() if k.adapter == name and not k.is_held_out]
            found = counts.get(name, {"waiting": 0, "taken": 0, "size_bytes": 0})
            assert found["waiting"] + found["taken"] == len(unsettled)
            assert found["size_bytes"] == sum(size_bytes(k.sample) for k in unsettled)

    @invariant()
    def bounds_hold(self):
        for found in self.buffer.counts().values():
            assert found["waiting"] + found["taken"] <= CONFIG.max_waiting
            assert found["size_bytes"] <= CONFIG.max_waiting_bytes
            assert found["held_out"] <= CONFIG.max_held_out
            assert found["replayed"] <= CONFIG.max_replayed

    @invariant()
    def no_prompt_is_learnt_from_and_judged_by(self):
        judged = {prompt_digest(k.sample) for n in (A, B) for k in self.buffer.held_out(n)}
        assert not judged & self.trained


BufferMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestBuffer = BufferMachine.TestCase


def test_every_answer_to_a_prompt_is_on_one_side():
    buffer = SampleBuffer(BufferConfig(held_out_share=0.3), FakeLog())
    sides = [{buffer.holds_out(sample(p, a)) for a in range(20)} for p in range(200)]
    assert all(len(side) == 1 for side in sides)
    assert 0.2 < sum(side == {True} for side in sides) / 200 < 0.4


def test_used_samples_come_again_each_with_the_same_chance():
    """Of 200 used samples 40 are kept; over many seeds every tenth of them about as often."""
    tenths = [0] * 10
    for seed in range(60):
        config = BufferConfig(max_replayed=40, held_out_share=0.0, replay_share=0.5, seed=seed)
        buffer = SampleBuffer(config, FakeLog())
        for number in range(200):
            buffer.add(A, sample(number, 1), "r")
            buffer.settle(A, [kept.id for kept in buffer.take(A, 1)], "used")
        buffer.add(A, sample(1000, 1), "r")
        batch = buffer.take(A, 60)
        assert len(batch) == 1 + 30
        for kept in batch[1:]:
            tenths[(kept.id - 1) * 10 // 200] += 1
    expected = sum(tenths) / 10
    # Chi-square with 9 degrees of freedom is above 27.9 once in a thousand times.
    assert sum((count - expected) ** 2 / expected for count in tenths) < 27.9


def test_what_was_taken_and_not_settled_waits_again_in_its_place():
    log = FakeLog()
    buffer = SampleBuffer(BufferConfig(held_out_share=0.0), log)
    for number in range(5):
        assert buffer.add(A, sample(number, 1), "r") == "waiting"
    first = [kept.id for kept in buffer.take(A, 2)]
    buffer.give_back(A)
    assert [kept.id for kept in buffer.take(A, 3)][:2] == first
    later = SampleBuffer(BufferConfig(held_out_share=0.0), log)
    later.restore(log.waiting(), log.used())
    assert [kept.id for kept in later.take(A, 5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("name", "value"), [("max_waiting", 0), ("held_out_share", 1.0), ("replay_share", -0.1)]
)
def test_bounds_that_make_no_sense_are_refused(name, value):
    with pytest.raises(InvalidSettingsError, match=name):
        BufferConfig(**{name: value})
