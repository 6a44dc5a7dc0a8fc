"""What may be learnt from: policies, consent, completeness, feedback."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import InvalidRequestError, InvalidSettingsError
from hyprstream.refs import AdapterName, RequestId, VersionId
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.recorder import Exchange, RecorderConfig, TrafficRecorder
from hyprstream.train.buffer import BufferConfig, SampleBuffer
from hyprstream.train.sample import Sample
from hyprstream.train.screen import answer
from tests.runtime.memory_journal import MemoryJournal

ALL, SOME, OFF = AdapterName("all"), AdapterName("some"), AdapterName("off")
VERSION = VersionId("7" * 64)
END = 2


class Requests(MemoryJournal):
    """A journal that keeps rows of requests too."""

    def __init__(self):
        super().__init__()
        self.requests = {}

    def request(self, row):
        self.requests[row.id] = row

    def find(self, request_id):
        return self.requests.get(request_id)

    def feedback(self, request_id, feedback):
        assert feedback in ("good", "bad", "correction")
        self.requests[request_id] = replace(self.requests[request_id], feedback=feedback)


class Scene:
    def __init__(self, **bounds):
        self.log = Requests()
        self.buffer = SampleBuffer(BufferConfig(held_out_share=0.0), self.log)
        self.opinions: list[tuple[AdapterName, VersionId, bool, bool | None]] = []
        self.answered: list[tuple[AdapterName, VersionId]] = []
        self.recorder = TrafficRecorder(
            self.buffer,
            self.log,
            {ALL: "all", SOME: "feedback", OFF: "off"},
            encode=lambda text: [*map(ord, text), END],
            observe=lambda *opinion: self.opinions.append(opinion),
            answered=lambda *answer: self.answered.append(answer),
            config=RecorderConfig(**bounds),
        )

    def finish(self, number=1, adapter=ALL, outcome="stop", **options):
        exchange = Exchange(
            id=RequestId(f"r{number}"),
            adapter=adapter,
            version=VERSION,
            prompt=(5, number),
            answer=(7, 8, END),
            outcome=outcome,
            **options,
        )
        return self.recorder.finished(exchange)

    def say(self, number, opinion, correction=None):
        return self.recorder.feedback(RequestId(f"r{number}"), opinion, correction)

    def waiting(self):
        return [kept.sample for kept in self.log.waiting()]


def test_answers_of_adapters_that_are_not_the_users_are_unknown():
    scene = Scene()
    scene.finish(1, SOME)
    one = RequestId("r1")
    assert scene.recorder.feedback(one, "good", may_use=lambda name: name != SOME) == "unknown"
    assert (scene.waiting(), scene.opinions) == ([], [])
    assert scene.recorder.feedback(one, "good", may_use=lambda name: name == SOME) == "waiting"


def test_policies_decide_what_becomes_a_sample():
    scene = Scene()
    assert scene.finish(1, OFF) == "off"
    assert scene.finish(2, None) == "off"
    assert scene.finish(3, AdapterName("other")) == "off"
    assert scene.finish(4, SOME) == "noted"
    assert scene.waiting() == []
    assert scene.finish(5, ALL) == "waiting"
    assert scene.waiting() == [Sample.answer((5, 5), (7, 8, END))]
    assert len(scene.log.requests) == 5
    assert scene.recorder.num_remembered == (2, 10)


def test_a_caller_who_objects_leaves_numbers_only():
    scene = Scene()
    assert scene.finish(1, ALL, may_be_learnt=False) == "refused"
    assert scene.say(1, "good") == "unknown"
    assert scene.say(1, "correction", "better") == "withdrawn"
    assert scene.waiting() == []
    assert scene.recorder.num_remembered == (0, 0)
    assert scene.log.requests["r1"].prompt_tokens == 2


@pytest.mark.parametrize("outcome", ["length", "abort", "queue_full"])
def test_what_was_cut_short_is_not_learnt_and_can_be_corrected(outcome):
    scene = Scene()
    assert scene.finish(1, ALL, outcome) == "incomplete"
    assert scene.say(1, "good") == "incomplete"
    assert scene.waiting() == []
    assert scene.say(1, "correction", "x") == "waiting"
    assert answer(scene.waiting()[0]) == (ord("x"), END)


def test_answers_that_were_given_to_their_end_are_counted():
    scene = Scene()
    for number, outcome in enumerate(["stop", "length", "stop_string", "abort", "queue_full"]):
        scene.finish(number, OFF, outcome)
    scene.finish(9, None)
    assert scene.answered == [(OFF, VERSION)] * 3


def test_praise_makes_a_sample_where_feedback_does():
    scene = Scene()
    scene.finish(1, SOME)
    assert scene.say(1, "good") == "waiting"
    assert scene.say(1, "good") == "duplicate"
    assert scene.opinions == [(SOME, VERSION, False, None), (SOME, VERSION, False, False)]


def test_a_dislike_withdraws_and_is_final():
    scene = Scene()
    scene.finish(1, ALL)
    assert scene.say(1, "bad") == "withdrawn"
    assert scene.waiting() == []
    assert scene.buffer.take(ALL, 5) == []
    assert scene.say(1, "good") == "unknown"
    assert scene.waiting() == []
    assert scene.opinions == [(ALL, VERSION, True, None), (ALL, VERSION, False, True)]


def test_a_correction_takes_the_place_of_the_answer():
    scene = Scene()
    scene.finish(1, ALL)
    assert scene.say(1, "correction", "yes") == "waiting"
    (sample,) = scene.waiting()
    assert answer(sample) == (*map(ord, "yes"), END)
    assert sample.token_ids[:2] == (5, 1)


def test_feedback_on_what_nobody_asked_is_unknown():
    assert Scene().say(9, "good") == "unknown"
    assert Scene().say(9, "bad") == "unknown"


@pytest.mark.parametrize(
    ("opinion", "correction"),
    [("correction", None), ("correction", "  "), ("good", "text"), ("correction", "x" * 11)],
)
def test_feedback_that_contradicts_itself_is_refused(opinion, correction):
    scene = Scene(max_correction_chars=10)
    scene.finish(1, ALL)
    with pytest.raises(InvalidRequestError):
        scene.say(1, opinion, correction)
    assert len(scene.waiting()) == 1


def test_bounds_are_checked():
    with pytest.raises(InvalidSettingsError):
        RecorderConfig(max_remembered=0)


steps = st.one_of(
    st.tuples(st.just("finish"), st.integers(0, 12), st.sampled_from([ALL, SOME, OFF]),
              st.booleans(), st.sampled_from(["stop", "length"])),
    st.tuples(st.just("say"), st.integers(0, 12), st.sampled_from(["good", "bad", "correction"])),
)  # fmt: skip


@given(history=st.lists(steps, max_size=40))
@settings(deadline=None)
def test_what_was_disliked_or_refused_is_never_there_to_be_learnt(history):
    scene = Scene(max_remembered=5, max_remembered_tokens=22)
    disliked, refused, finished = set(), set(), set()
    for step in history:
        number = step[1]
        if step[0] == "finish":
            if number in finished:  # ids are given once
                continue
            finished.add(number)
            _, _, adapter, may, outcome = step
            scene.finish(number, adapter, outcome, may_be_learnt=may)
            if not may or adapter == OFF:
                refused.add(number)
        else:
            scene.say(number, step[2], "ok" if step[2] == "correction" else None)
            if step[2] != "good" and number in finished:
                disliked.add(number)
        num_exchanges, num_tokens = scene.recorder.num_remembered
        assert num_exchanges <= 5
        assert num_tokens <= 22
        for sample in scene.waiting():
            assert sample.token_ids[1] not in refused
            if sample.token_ids[1] in disliked:
                assert answer(sample) == (*map(ord, "ok"), END)


def test_the_journal_keeps_rows_and_feedback(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    scene = Scene()
    scene.recorder = TrafficRecorder(
        SampleBuffer(BufferConfig(held_out_share=0.0), journal),
        journal,
        {ALL: "all"},
        encode=lambda text: [len(text)],
        observe=lambda *_: None,
        config=RecorderConfig(),
    )
    assert scene.finish(1, ALL) == "waiting"
    assert scene.say(1, "bad") == "withdrawn"
    journal.close()
    journal = Journal(tmp_path / "journal.db")
    row = journal.find("r1")
    assert row is not None
    assert row.feedback == "bad"
    assert (row.adapter, row.version, row.outcome, row.completion_tokens) == (
        ALL,
        VERSION,
        "stop",
        3,
    )
    assert list(journal.waiting()) == []
    assert journal.find("r2") is None
    journal.close()
