"""One decision at a time. `test_scheduler_properties.py` has all of them together."""

from collections.abc import Sequence
from typing import Any

import pytest

from hyprstream.engine.config import EngineConfig
from hyprstream.engine.plan import Plan, SequenceEvent, SequenceId, SlotLoad
from hyprstream.engine.request import Request, SamplingParams
from hyprstream.engine.scheduler import Scheduler
from hyprstream.errors import (
    ContextTooLongError,
    DeadlineExceededError,
    InvalidRequestError,
    QueueFullError,
    RequestTooLargeError,
)
from hyprstream.refs import RequestId, VersionId
from tests.engine.checking_runner import CheckingRunner, answer_alone, scores_alone

A, B = VersionId("a"), VersionId("b")


def _request(name: str, prompt: int | Sequence[int] = 4, answer: int = 3, **fields: Any) -> Request:
    """A request whose prompt is that long, or those tokens; it answers with so many tokens."""
    token_ids = tuple(range(1, prompt + 1)) if isinstance(prompt, int) else tuple(prompt)
    seed = fields.pop("seed", 1)
    params = SamplingParams(max_tokens=answer, ignore_eos=True, seed=seed)
    return Request(id=RequestId(name), token_ids=token_ids, params=params, **fields)


class Steps:
    """A scheduler and its runner, step by step."""

    def __init__(self, *, num_blocks: int = 64, context_length: int = 100, **config: Any) -> None:
        config = {"block_tokens": 4, "max_drafts": 0, **config}
        self.config = EngineConfig(**config)
        self.now = 0.0
        self.scheduler = Scheduler(
            self.config,
            num_blocks=num_blocks,
            context_length=context_length,
            clock=lambda: self.now,
        )
        self.runner = CheckingRunner(
            block_tokens=self.config.block_tokens, max_batch_tokens=self.config.max_batch_tokens
        )
        self.events: list[SequenceEvent] = []

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add(request)

    def step(self) -> Plan:
        plan = self.scheduler.schedule()
        self.events += self.scheduler.update(plan, self.runner.run(plan))
        self.scheduler.check_integrity()
        return plan

    def finish(self) -> list[Plan]:
        plans = []
        while self.scheduler.has_work:
            plans.append(self.step())
        return plans

    def tokens(self, name: str, index: int = 0) -> list[int]:
        return [
            event.token.token_id
            for event in self.events
            if event.sequence_id == SequenceId(RequestId(name), index) and event.token
        ]


def _computed(plan: Plan) -> dict[str, int]:
    """How many tokens the step computes for each request."""
    return {row.sequence_id.request_id: len(row.token_ids) for row in plan.rows}


def test_nothing_to_do_is_an_empty_plan():
    steps = Steps()
    assert not steps.scheduler.has_work
    assert steps.step() == Plan(rows=())


def test_a_prompt_and_then_a_token_at_a_time():
    steps = Steps()
    steps.add(_request("a", prompt=5))
    plans = steps.finish()
    assert [_computed(plan).get("a") for plan in plans if plan.rows] == [5, 1, 1]
    assert [event.is_last for event in steps.events] == [False, False, True]
    assert steps.events[-1].token is not None
    assert steps.events[-1].token.finish == "length"


def test_a_prompt_beyond_the_budget_is_computed_in_pieces():
    steps = Steps(max_batch_tokens=8, max_sequences=4)
    steps.add(_request("a", prompt=19, answer=1))
    plans = [plan for plan in steps.finish() if plan.rows]
    assert [_computed(plan) for plan in plans] == [{"a": 8}, {"a": 8}, {"a": 3}]
    assert [plan.rows[0].samples for plan in plans] == [False, False, True]


def test_an_answer_under_way_gets_its_token_beside_a_long_prompt():
    steps = Steps(max_batch_tokens=8, max_sequences=4)
    steps.add(_request("a", prompt=2, answer=9))
    steps.step()
    steps.add(_request("b", prompt=30))
    assert [_computed(steps.step()) for _ in range(3)] == [{"a": 1, "b": 7}] * 3


def test_a_short_prompt_is_not_held_back_by_a_long_one_before_it():
    steps = Steps(max_batch_tokens=16, max_sequences=4)
    steps.add(_request("long", prompt=60))
    assert _computed(steps.step()) == {"long": 16}
    steps.add(_request("short", prompt=[9, 9, 9, 9]))
    assert _computed(steps.step()) == {"long": 12, "short": 4}


def test_the_budget_is_used_up_where_there_is_work():
    steps = Steps(max_batch_tokens=16, max_sequences=4)
    steps.add(_request("a", prompt=30), _request("b", prompt=[7, 7]), _request("c", prompt=[8]))
    assert _computed(steps.step()) == {"a": 13, "b": 2, "c": 1}


def test_a_budget_that_is_used_up_starts_nothing_more():
    steps = Steps(max_batch_tokens=4, max_sequences=4)
    steps.add(*(_request(name, prompt=[ord(name)] * 20) for name in "abcd"))
    assert _computed(steps.step()) == {"a": 2, "b": 1, "c": 1}
    steps.add(_request("short", prompt=1))
    assert _computed(steps.step()) == {"a": 2, "b": 1, "c": 1}


def test_no_more_sequences_run_than_are_allowed():
    steps = Steps(max_sequences=2)
    steps.add(*(_request(name) for name in "abc"))
    steps.step()
    assert (steps.scheduler.num_running, steps.scheduler.num_waiting) == (2, 1)


def test_a_prompt_that_begins_the_same_is_not_computed_again():
    steps = Steps()
    steps.add(_request("a", prompt=10))
    steps.finish()
    steps.add(_request("b", prompt=10))
    assert _computed(steps.step()) == {"b": 2}
    assert steps.scheduler.counts.shared_tokens == 8


def test_an_answer_can_be_the_beginning_of_a_prompt():
    steps = Steps()
    first = _request("a", prompt=6, answer=7)
    steps.add(first)
    steps.finish()
    steps.add(_request("b", prompt=[*first.token_ids, *steps.tokens("a"), 1, 2]))
    assert _computed(steps.step()) == {"b": 3}


def test_the_last_token_of_a_prompt_is_always_computed():
    steps = Steps()
    steps.add(_request("a", prompt=8))
    steps.finish()
    steps.add(_request("b", prompt=8))
    assert _computed(steps.step()) == {"b": 4}


@pytest.mark.parametrize("fields", [{"adapter": A}, {"salt": "mine"}])
def test_strangers_share_nothing(fields):
    steps = Steps()
    steps.add(_request("a", prompt=10))
    steps.finish()
    steps.add(_request("b", prompt=10, **fields))
    assert _computed(steps.step()) == {"b": 10}


def test_without_prefix_caching_everything_is_computed():
    steps = Steps(prefix_caching=False)
    steps.add(_request("a", prompt=10, num_answers=2))
    assert len(steps.step().rows) == 2
    steps.finish()
    steps.add(_request("b", prompt=10))
    assert _computed(steps.step()) == {"b": 10}


def test_other_answers_start_when_the_first_has_computed_the_prompt():
    steps = Steps()
    steps.add(_request("a", prompt=10, num_answers=3))
    assert [row.sequence_id.answer for row in steps.step().rows] == [0]
    shares = {row.sequence_id.answer: len(row.token_ids) for row in steps.step().rows}
    assert shares == {0: 1, 1: 2, 2: 2}


def test_answers_to_a_prompt_of_less_than_a_block_start_together():
    steps = Steps()
    steps.add(_request("a", prompt=4, num_answers=3))
    assert len(steps.step().rows) == 3


def test_other_answers_do_not_wait_for_a_first_that_was_aborted():
    steps = Steps()
    steps.add(_request("a", prompt=10, num_answers=3))
    steps.scheduler.abort(RequestId("a"), index=0)
    assert [row.sequence_id.answer for row in steps.step().rows] == [1, 2]


def test_versions_are_loaded_when_they_are_first_needed():
    steps = Steps(num_slots=2)
    steps.add(_request("a", adapter=A), _request("b", adapter=B), _request("c", adapter=A))
    plan = steps.step()
    assert plan.loads == (SlotLoad(version=A, slot=1), SlotLoad(version=B, slot=2))
    assert [row.slot for row in plan.rows] == [1, 2, 1]
    assert steps.step().loads == ()


def test_a_request_that_waits_for_a_slot_does_not_hold_back_the_next():
    steps = Steps(num_slots=1)
    steps.add(_request("a", adapter=A), _request("b", adapter=B), _request("c"))
    assert _computed(steps.step()).keys() == {"a", "c"}


def test_a_request_that_waits_for_blocks_does_not_hold_back_the_next():
    steps = Steps(num_blocks=8)
    steps.add(_request("a", prompt=15), _request("b", prompt=[7] * 20), _request("c", prompt=2))
    assert _computed(steps.step()).keys() == {"a", "c"}


def test_a_lower_priority_number_goes_first():
    steps = Steps(max_sequences=1)
    steps.add(_request("a", priority=1), _request("b", priority=0), _request("c", priority=0))
    assert [start.sequence_id.request_id for plan in steps.finish() for start in plan.starts] == [
        "b",
        "c",
        "a",
    ]


@pytest.mark.parametrize(("priorities", "loser"), [((0, 0), "b"), ((1, 0), "a")])
def test_the_youngest_of_the_lowest_priority_is_preempted(priorities, loser):
    steps = Steps(num_blocks=5, prefix_caching=False)
    for name, priority in zip("ab", priorities, strict=True):
        steps.add(_request(name, prompt=[ord(name)] * 4, answer=12, priority=priority))
    plans = steps.finish()
    ran = [set(_computed(plan)) for plan in plans if plan.rows]
    winner = "b" if loser == "a" else "a"
    assert {winner} in ran
    assert ran[-1] == {loser}
    assert steps.scheduler.counts.preemptions > 0
    for name in "ab":
        assert len(steps.tokens(name)) == 12


def test_a_preempted_sequence_starts_once_for_the_runner():
    steps = Steps(num_blocks=5)
    steps.add(_request("a", answer=12), _request("b", prompt=[9] * 4, answer=12))
    plans = steps.finish()
    assert steps.scheduler.counts.preemptions > 0
    assert sum(len(plan.starts) for plan in plans) == 2
    assert sum(len(plan.ended) for plan in plans) == 2


def test_what_a_full_queue_refuses_is_taken_later():
    steps = Steps(max_waiting=2)
    steps.add(_request("a"), _request("b", num_answers=5))
    with pytest.raises(QueueFullError) as caught:
        steps.add(_request("c"))
    assert caught.value.max_waiting == 2
    steps.step()
    steps.add(_request("c"))


def test_an_id_in_use_is_refused_and_can_be_used_again():
    steps = Steps()
    steps.add(_request("a"))
    with pytest.raises(InvalidRequestError, match="'a' is in use"):
        steps.add(_request("a"))
    steps.finish()
    steps.add(_request("a"))


def test_an_adapter_is_refused_where_there_are_no_slots():
    steps = Steps(num_slots=0)
    with pytest.raises(InvalidRequestError, match="no adapter slots"):
        steps.add(_request("a", adapter=A))


def test_a_prompt_beyond_the_context_is_refused():
    steps = Steps(context_length=10)
    steps.add(_request("a", prompt=9), _request("b", prompt=10, embeds=True))
    with pytest.raises(ContextTooLongError) as caught:
        steps.add(_request("c", prompt=10))
    assert (caught.value.num_tokens, caught.value.max_tokens) == (10, 9)
    with pytest.raises(ContextTooLongError):
        steps.add(_request("d", prompt=11, embeds=True))


def test_a_request_that_could_never_fit_is_refused():
    steps = Steps(num_blocks=2)
    steps.add(_request("a", prompt=6, answer=3), _request("b", prompt=8, embeds=True))
    with pytest.raises(RequestTooLargeError) as caught:
        steps.add(_request("c", prompt=6, answer=4))
    assert (caught.value.num_tokens, caught.value.max_tokens) == (10, 9)
    for fields in ({"answer": 1}, {"embeds": True}):
        with pytest.raises(RequestTooLargeError):
            steps.add(_request("d", prompt=9, **fields))


def test_an_answer_without_a_limit_ends_where_the_memory_does():
    steps = Steps(num_blocks=2)
    params = SamplingParams(ignore_eos=True)
    steps.add(Request(id=RequestId("a"), token_ids=(1, 2, 3), params=params))
    steps.finish()
    last = steps.events[-1]
    assert len(steps.tokens("a")) == 6  # the last one is chosen and needs no memory
    assert last.token is not None
    assert (last.is_last, last.token.finish) == (True, "length")


def test_a_deadline_ends_a_request_that_runs_and_one_that_waits():
    steps = Steps(max_sequences=1)
    steps.add(_request("a", deadline=5.0), _request("b", deadline=5.0), _request("c", deadline=9))
    steps.step()
    steps.now = 5.0
    assert _computed(steps.step()).keys() == {"c"}
    failed = {event.sequence_id.request_id for event in steps.events if event.error}
    assert failed == {"a", "b"}
    error = next(event.error for event in steps.events if event.error)
    assert isinstance(error, DeadlineExceededError)
    assert all(event.is_last for event in steps.events if event.error)


def test_an_id_is_in_use_until_its_deadline_is_told():
    steps = Steps()
    steps.add(_request("a", deadline=1.0))
    steps.now = 1.0
    plan = steps.scheduler.schedule()
    with pytest.raises(InvalidRequestError, match="in use"):
        steps.add(_request("a"))
    (event,) = steps.scheduler.update(plan, steps.runner.run(plan))
    assert isinstance(event.error, DeadlineExceededError)
    steps.add(_request("a"))
    steps.step()
    assert steps.tokens("a")


def test_nothing_is_told_of_an_aborted_request():
    steps = Steps()
    steps.add(_request("a"), _request("b", prompt=[7, 7], deadline=1.0), _request("c"))
    steps.step()
    steps.events.clear()
    steps.now = 1.0
    plan = steps.scheduler.schedule()
    sampled = steps.runner.run(plan)
    steps.scheduler.abort(RequestId("a"))
    steps.scheduler.abort(RequestId("b"))
    events = steps.scheduler.update(plan, sampled)
    assert {event.sequence_id.request_id for event in events} == {"c"}


def test_an_abort_gives_everything_back():
    steps = Steps(num_slots=1)
    steps.add(_request("a", adapter=A, num_answers=2), _request("b", adapter=B))
    steps.step()
    steps.scheduler.abort(RequestId("a"))
    assert steps.scheduler.num_free_blocks == 64
    assert _computed(steps.step()).keys() == {"b"}
    steps.scheduler.abort(RequestId("b"))
    assert len(steps.finish()) == 1  # the runner did not know yet
    assert steps.runner.requests == {}


def test_aborting_what_is_not_there_does_nothing():
    steps = Steps()
    steps.scheduler.abort(RequestId("a"))
    steps.add(_request("a"))
    steps.scheduler.abort(RequestId("a"), index=3)
    steps.finish()
    assert len(steps.tokens("a")) == 3


def test_one_answer_can_be_aborted():
    steps = Steps()
    steps.add(_request("a", num_answers=2))
    steps.step()
    steps.scheduler.abort(RequestId("a"), index=0)
    steps.finish()
    assert (len(steps.tokens("a", 0)), len(steps.tokens("a", 1))) == (1, 3)


def test_a_request_that_embeds_computes_its_whole_prompt_once():
    steps = Steps(max_batch_tokens=8, max_sequences=4)
    steps.add(_request("a", prompt=10))
    steps.finish()
    steps.events.clear()
    steps.add(_request("b", prompt=10, embeds=True, num_answers=3))
    plans = [plan for plan in steps.finish() if plan.rows]
    assert [_computed(plan) for plan in plans] == [{"b": 8}, {"b": 2}]
    assert [(event.embedding, event.is_last) for event in steps.events] == [((55.0,), True)]


def test_prompt_logprobs_are_told_once_whatever_is_preempted():
    steps = Steps(num_blocks=5)
    scored = _request("b", prompt=[9, 8, 7, 6, 5], answer=11, prompt_logprobs=0, num_answers=2)
    steps.add(_request("a", answer=12), scored)
    steps.finish()
    assert steps.scheduler.counts.preemptions > 0
    scores = [score for event in steps.events for score in event.prompt_logprobs]
    assert scores == scores_alone(scored)


def test_right_guesses_make_fewer_steps():
    request = _request("a", answer=60, seed=0)  # goes round in circles
    plain, drafting = Steps(), Steps(max_drafts=4)
    for steps in (plain, drafting):
        steps.add(request)
    assert len(drafting.finish()) < len(plain.finish()) / 2
    assert drafting.tokens("a") == plain.tokens("a")
    counts = drafting.scheduler.counts
    assert 0 < counts.right_drafts <= counts.drafts


def test_guesses_take_no_block_from_anybody():
    steps = Steps(num_blocks=4, max_drafts=4)
    steps.add(_request("a", prompt=[1] * 7, answer=2, seed=0))
    steps.add(_request("b", prompt=[2] * 3, answer=2))
    steps.finish()
    assert steps.scheduler.counts.preemptions == 0


def test_a_long_prompt_is_not_overtaken_for_ever():
    steps = Steps(num_blocks=8, max_overtakes=5, prefix_caching=False)
    steps.add(_request("first", answer=8))
    steps.step()
    steps.add(_request("large", prompt=28))
    names = _starts_until(steps, "large", lambda name: _request(name, answer=8))
    assert len(names) == 5


def test_a_version_is_not_kept_from_its_slot_for_ever():
    steps = Steps(num_slots=1, max_overtakes=5)
    steps.add(_request("first", answer=8, adapter=A))
    steps.step()
    steps.add(_request("other", adapter=B))
    names = _starts_until(steps, "other", lambda name: _request(name, answer=8, adapter=A))
    assert len(names) == 5


def test_a_low_priority_does_not_wait_for_ever():
    steps = Steps(max_sequences=2, max_overtakes=5)
    steps.add(_request("first", answer=8))
    steps.step()
    steps.add(_request("low", priority=9))
    names = _starts_until(steps, "low", lambda name: _request(name, answer=8, priority=0), every=2)
    assert len(names) <= 5


def _starts_until(steps: Steps, name: str, make: Any, every: int = 4) -> list[str]:
    """Keep requests coming until `name` has started; return those that started before it."""
    started: list[str] = []
    for i in range(1000):
        if i % every == 0 and steps.scheduler.num_waiting < 8:
            steps.add(make(f"later-{i}"))
        started += [start.sequence_id.request_id for start in steps.step().starts]
        if name in started:
            return started[: started.index(name)]
    raise AssertionError(f"{name} never started")


def test_alone_and_in_company_the_tokens_are_the_same():
    steps = Steps(max_batch_tokens=16, max_sequences=8, num_blocks=12, max_drafts=4)
    requests = [
        _request(f"r{i}", prompt=3 + 2 * i, answer=9, seed=i, adapter=(None, A, B)[i % 3])
        for i in range(8)
    ]
    steps.add(*requests)
    steps.finish()
    for request in requests:
        alone = [token.token_id for token in answer_alone(request, 0, 100)]
        assert steps.tokens(request.id) == alone
