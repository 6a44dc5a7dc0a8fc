"""One core, step by step: pins, refusals, and the helper for scripts."""

import pytest

from hyprstream.engine.config import EngineConfig
from hyprstream.engine.core import run_all
from hyprstream.engine.request import Request, SamplingParams
from hyprstream.errors import ContextTooLongError, InvalidRequestError, VersionNotFoundError
from hyprstream.refs import RequestId, VersionId
from tests.engine.adapters import low_rank
from tests.engine.fakes import Parts, answer_alone

A, B = VersionId("a"), VersionId("b")


def make_request(name, num_tokens=6, prompt=(1, 2, 3), **options):
    params = SamplingParams(max_tokens=num_tokens)
    return Request(id=RequestId(name), token_ids=tuple(prompt), params=params, **options)


def tokens_of(events, index=0):
    return [e.token.token_id for e in events if e.sequence_id.answer == index]


def finish(core):
    events = []
    while core.has_work:
        events += core.step()
        core.check_integrity()
    return events


def test_a_step_is_nothing_when_there_is_nothing_to_do():
    parts = Parts()
    assert parts.core.step() == []
    assert not parts.core.has_work


def test_a_request_pins_its_version_until_its_last_answer_ends():
    parts = Parts()
    parts.core.install(A, low_rank(seed=1))
    request = make_request("r", adapter=A, num_answers=2)
    parts.core.add(request)
    assert parts.versions.num_pinned == 1
    events = finish(parts.core)
    assert tokens_of(events, 1) == answer_alone(request, 1)
    parts.assert_clean()


def test_a_version_retired_in_the_middle_serves_what_runs_and_nothing_new():
    parts = Parts()
    parts.core.install(A, low_rank(seed=1))
    old = make_request("old", adapter=A, num_tokens=12)
    parts.core.add(old)
    events = parts.core.step()
    parts.core.retire(A)
    with pytest.raises(VersionNotFoundError):
        parts.core.add(make_request("new", adapter=A))
    events += finish(parts.core)
    assert tokens_of(events) == answer_alone(old)
    assert parts.versions.size_bytes == 0
    assert not parts.core.stats.resident  # others need not push it out
    parts.assert_clean()


def test_a_refused_request_holds_no_pin():
    parts = Parts()
    parts.core.install(A, low_rank(seed=1))
    with pytest.raises(ContextTooLongError):
        parts.core.add(make_request("long", prompt=range(64), adapter=A))
    parts.assert_clean()


def test_what_the_runner_could_not_start_is_refused_before_anything_is_held():
    def refuse(_request):
        raise InvalidRequestError("no such token")

    parts = Parts(check=refuse)
    with pytest.raises(InvalidRequestError, match="no such token"):
        parts.core.add(make_request("r"))
    parts.assert_clean()


def test_aborting_frees_everything_at_once():
    parts = Parts()
    parts.core.install(A, low_rank(seed=1))
    parts.core.add(make_request("r", adapter=A, num_answers=3, num_tokens=20))
    parts.core.step()
    parts.core.abort(RequestId("r"))
    assert parts.versions.num_pinned == 0
    assert parts.scheduler.num_free_blocks == parts.num_blocks
    parts.assert_clean()


def test_run_all_gives_each_request_what_it_gets_alone():
    parts = Parts(EngineConfig(block_tokens=4, max_waiting=2, max_sequences=4))
    requests = [make_request(f"r{n}", n + 1, prompt=range(n + 1)) for n in range(12)]
    results = run_all(parts.core, requests)
    assert {name: tokens_of(events) for name, events in results.items()} == {
        request.id: answer_alone(request) for request in requests
    }
    parts.assert_clean()


def test_run_all_leaves_nothing_behind_when_a_request_is_refused():
    parts = Parts()
    with pytest.raises(VersionNotFoundError):
        run_all(parts.core, [make_request("good"), make_request("bad", adapter=B)])
    parts.assert_clean()
