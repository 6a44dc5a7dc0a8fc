"""Any schedule, same tokens: whatever arrives, is aborted, runs late or runs out of memory.

The runner checks every read, the machine compares every answer with the one given alone.
"""

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from typing_extensions import override

from hyprstream.engine.config import EngineConfig
from hyprstream.engine.plan import SequenceEvent, SequenceId
from hyprstream.engine.request import Request, SamplingParams, TokenLogprobs
from hyprstream.engine.scheduler import Scheduler
from hyprstream.errors import (
    ContextTooLongError,
    DeadlineExceededError,
    HyprstreamError,
    InvalidRequestError,
    QueueFullError,
    RequestTooLargeError,
)
from hyprstream.refs import RequestId, VersionId
from tests.engine.checking_runner import CheckingRunner, answer_alone, scores_alone

_CONFIGS = st.builds(
    EngineConfig,
    max_batch_tokens=st.integers(6, 24),
    max_sequences=st.integers(1, 6),
    max_waiting=st.integers(3, 8),
    max_overtakes=st.integers(0, 3),
    block_tokens=st.integers(1, 4),
    num_slots=st.sampled_from([1, 1, 2, 0]),
    prefix_caching=st.sampled_from([True, True, False]),
    max_drafts=st.sampled_from([4, 4, 1, 0]),
)
# Few beginnings and all lengths, so that prompts share some blocks and not others.
_PROMPTS = st.builds(
    lambda first, length: tuple((first * i) % 4 + 1 for i in range(length)),
    st.integers(1, 3),
    st.integers(1, 12),
)
_PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.sampled_from([12, 20, 5, 1, None]),
    seed=st.integers(0, 3),
    ignore_eos=st.sampled_from([True, True, True, False]),
)
_REQUESTS = st.builds(
    Request,
    id=st.sampled_from([RequestId(f"request-{i}") for i in range(16)]),
    token_ids=_PROMPTS,
    params=_PARAMS,
    adapter=st.sampled_from([None, None, VersionId("a"), VersionId("b"), VersionId("c")]),
    num_answers=st.sampled_from([1, 1, 1, 2, 3]),
    priority=st.integers(-1, 1),
    deadline=st.sampled_from([None] * 7 + [2.0, 5.0]),
    salt=st.sampled_from(["", "", "s"]),
    prompt_logprobs=st.sampled_from([None] * 5 + [0]),
    embeds=st.sampled_from([False] * 5 + [True]),
)


class Received:
    """What should come of one sequence, and what has come."""

    def __init__(self, request: Request, index: int, longest: int) -> None:
        self.request = request
        self.answer = [] if request.embeds else answer_alone(request, index, longest)
        self.scores: list[TokenLogprobs] = []
        if request.prompt_logprobs is not None and not request.embeds and index == 0:
            self.scores = scores_alone(request)
        self.vectors = [(float(sum(request.token_ids)),)] if request.embeds else []
        self.events: list[SequenceEvent] = []

    def add(self, event: SequenceEvent) -> None:
        """Compare what has come so far with its part of what should."""
        self.events.append(event)
        tokens = [event.token for event in self.events if event.token is not None]
        scores = [score for event in self.events for score in event.prompt_logprobs]
        vectors = [event.embedding for event in self.events if event.embedding is not None]
        is_whole = event.is_last and event.error is None
        assert tokens == self.answer[: len(tokens)]
        assert scores == self.scores[: len(scores)]
        assert vectors == (self.vectors if is_whole else [])
        if is_whole:
            assert (len(tokens), len(scores)) == (len(self.answer), len(self.scores))


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(config=_CONFIGS, num_blocks=st.integers(4, 24), context_length=st.integers(10, 36))
    def build(self, config, num_blocks, context_length):
        self.config, self.num_blocks, self.context_length = config, num_blocks, context_length
        self.now = 0.0
        self.scheduler = Scheduler(
            config, num_blocks=num_blocks, context_length=context_length, clock=lambda: self.now
        )
        self.runner = CheckingRunner(
            block_tokens=config.block_tokens,
            max_batch_tokens=config.max_batch_tokens,
            num_slots=config.num_slots,
            context_length=context_length,
        )
        self.received: dict[SequenceId, Received] = {}
        self.queued: set[RequestId] = set()

    @rule(requests=st.lists(_REQUESTS, min_size=1, max_size=5))
    def arrive(self, requests):
        for request in requests:
            self._arrive(request)

    def _arrive(self, request: Request) -> None:
        refusal = self._refusal(request)
        if refusal is not None:
            with pytest.raises(refusal):
                self.scheduler.add(request)
            return
        self.scheduler.add(request)
        longest = min(self.context_length, self.num_blocks * self.config.block_tokens + 1)
        for index in range(1 if request.embeds else request.num_answers):
            self.received[SequenceId(request.id, index)] = Received(request, index, longest)
        self.queued.add(request.id)

    def _refusal(self, request: Request) -> type[HyprstreamError] | None:
        num_tokens = len(request.token_ids)
        is_known = any(name.request_id == request.id for name in self.received)
        if is_known or (request.adapter is not None and self.config.num_slots == 0):
            return InvalidRequestError
        if num_tokens + (not request.embeds) > self.context_length:
            return ContextTooLongError
        if not request.embeds:  # the last token of an answer needs no memory
            num_tokens += min(
                (request.params.max_tokens or 1) - 1, self.context_length - num_tokens - 1
            )
        if math.ceil(num_tokens / self.config.block_tokens) > self.num_blocks:
            return RequestTooLargeError
        return QueueFullError if len(self.queued) >= self.config.max_waiting else None

    @rule(data=st.data(), one_answer=st.booleans())
    def abort(self, data, one_answer):
        if not self.received:
            return
        name = data.draw(st.sampled_from(sorted(self.received, key=repr)))
        self.scheduler.abort(name.request_id, index=name.answer if one_answer else None)
        for other in list(self.received):
            if other == name or (other.request_id == name.request_id and not one_answer):
                del self.received[other]
        self._forget(name.request_id)

    @rule(num_steps=st.integers(1, 4))
    def step(self, num_steps):
        for _ in range(num_steps):
            self._step()

    @rule(data=st.data(), request=_REQUESTS)
    def interrupted_step(self, data, request):
        def meanwhile() -> None:
            self.abort(data, one_answer=False)
            self._arrive(request)

        self._step(meanwhile)

    @rule()
    def wait(self):
        self.now += 1.0

    def _step(self, meanwhile=lambda: None):
        plan = self.scheduler.schedule()
        self.scheduler.check_integrity()
        self.queued -= {start.sequence_id.request_id for start in plan.starts}
        sampled = self.runner.run(plan)
        meanwhile()
        for event in self.scheduler.update(plan, sampled):
            self._receive(event)
        self.scheduler.check_integrity()
        return plan

    def _receive(self, event: SequenceEvent) -> None:
        received = self.received[event.sequence_id]
        received.add(event)
        if event.error is not None:
            assert isinstance(event.error, DeadlineExceededError)
            assert received.request.deadline is not None
            assert received.request.deadline <= self.now
        if event.is_last:
            del self.received[event.sequence_id]
            self._forget(event.sequence_id.request_id)

    def _forget(self, request_id: RequestId) -> None:
        if not any(name.request_id == request_id for name in self.received):
            self.queued.discard(request_id)

    @invariant()
    def all_is_accounted_for(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            assert self.scheduler.num_waiting + self.scheduler.num_running == len(self.received)

    @override
    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        num_idle = num_steps = 0
        while self.scheduler.has_work:
            num_idle = 0 if self._step().rows else num_idle + 1
            num_steps += 1
            assert num_idle <= 1, "there is work and nothing is done"
            assert num_steps < 2000, "it does not come to an end"
        assert self.received == {}
        assert (self.scheduler.num_waiting, self.scheduler.num_running) == (0, 0)
        assert self.scheduler.num_free_blocks == self.num_blocks
        assert self.runner.requests == {}


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
