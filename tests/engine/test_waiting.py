"""Whoever waits is overtaken a bounded number of times, whatever comes and whatever fits."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hyprstream.engine.drafts import Drafter
from hyprstream.engine.plan import SequenceId
from hyprstream.engine.request import Request
from hyprstream.engine.sequence import SequenceState
from hyprstream.engine.waiting import WaitingLine
from hyprstream.refs import RequestId


def _join(line: WaitingLine, arrival: int, priority: int) -> SequenceState:
    request = Request(id=RequestId(f"r{arrival}"), token_ids=(1,), priority=priority)
    state = SequenceState(
        SequenceId(request.id),
        request,
        arrival=arrival,
        max_tokens=9,
        overdue_at=line.overdue_at,
        drafter=Drafter(0),
    )
    line.join(state)
    return state


def test_priority_comes_before_arrival():
    line = WaitingLine(9)
    late, first, second = (_join(line, i, priority) for i, priority in enumerate((5, 0, 0)))
    assert tuple(line.in_order()) == (first, second, late)


def test_one_that_was_overtaken_too_often_comes_before_priority():
    line = WaitingLine(2)
    late = _join(line, 0, 5)
    for arrival in (1, 2):
        line.leave(_join(line, arrival, 0), to_run=True)
    rival = _join(line, 3, 0)
    assert tuple(line.in_order()) == (late, rival)


def test_one_that_was_preempted_keeps_its_place():
    line = WaitingLine(9)
    first, second = _join(line, 0, 0), _join(line, 1, 0)
    line.leave(first, to_run=True)
    line.join(first)
    assert tuple(line.in_order()) == (first, second)


def test_something_new_is_worth_a_try():
    line = WaitingLine(9)
    line.is_stuck = True
    _join(line, 0, 0)
    assert not line.is_stuck


@settings(deadline=None, max_examples=100)
@example(max_overtakes=0, steps=[(0, []), (1, []), (0, []), (0, [True] * 3)])
@given(
    max_overtakes=st.integers(0, 4),
    steps=st.lists(st.tuples(st.integers(-2, 2), st.lists(st.booleans(), max_size=8)), max_size=40),
)
def test_nothing_that_came_later_overtakes_more_often_than_is_allowed(max_overtakes, steps):
    line = WaitingLine(max_overtakes)
    bounds: dict[int, int] = {}  # arrival -> starts after which nothing later may start
    num_starts = 0
    for arrival, (priority, fits) in enumerate(steps):
        bounds[arrival] = num_starts + len(bounds) + max_overtakes
        _join(line, arrival, priority)
        for state, fit in zip(line.in_order(), fits, strict=False):
            if fit:
                assert not [
                    earlier
                    for earlier, bound in bounds.items()
                    if earlier < state.arrival and num_starts >= bound
                ]
                del bounds[state.arrival]
                line.leave(state, to_run=True)
                num_starts += 1
            elif state.is_urgent:
                break
        assert {state.arrival for state in line} == set(bounds)
        assert len(line) == len(bounds)
