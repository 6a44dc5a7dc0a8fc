"""The share of background work, by every history of steps and slices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.engine.background import TimeShare

seconds = st.floats(min_value=0.001, max_value=3)


@given(
    share=st.floats(min_value=0, max_value=1),
    history=st.lists(st.tuples(seconds, seconds), max_size=60),
)
def test_slices_stay_within_their_share_plus_one_slice(share, history):
    limit = TimeShare(share)
    steps = slices = longest = 0.0
    for step, wanted in history:
        limit.add_step(step)
        steps += step
        if limit.allows_slice:
            limit.add_slice(wanted)
            slices += wanted
            longest = max(longest, wanted)
        assert slices <= share * (steps + slices) + longest + 1e-9


@given(
    share=st.floats(min_value=0, max_value=1),
    burst=st.floats(min_value=0.01, max_value=1),
    every=st.integers(min_value=1, max_value=30),
    history=st.lists(st.tuples(seconds, st.floats(min_value=0.001, max_value=0.5)), max_size=80),
)
def test_bursts_are_apart_and_bounded(share, burst, every, history):
    """The longest slice comes first: what was seen bounds what is expected."""
    limit = TimeShare(share, burst_s=burst, burst_every=every)
    longest = max((wanted for _, wanted in history), default=0.0)
    steps = slices = 0.0
    since = every
    for number, (step, wanted) in enumerate(history):
        limit.add_step(step)
        steps += step
        spent = 0.0
        while limit.allows_slice:
            taken = longest if slices == 0.0 else wanted
            limit.add_slice(taken)
            spent += taken
            slices += taken
        if spent:
            assert since >= every or number < every
            since = 0
        since += 1
        # Long after the longest one, a slice may be up to twice what is expected.
        assert spent <= max(burst, longest) + longest
        assert slices <= share * (steps + slices) + longest + 1e-9


def test_of_many_equal_slices_as_many_as_fit_make_a_burst():
    limit = TimeShare(0.25, burst_s=0.06, burst_every=24)
    bursts = []
    for _ in range(24 * 50):
        limit.add_step(0.02)
        num_slices = 0
        while limit.allows_slice:
            limit.add_slice(0.014)
            num_slices += 1
        bursts.append(num_slices)
    assert set(bursts) == {0, 4}
    assert bursts.count(4) == 50


def test_a_share_of_zero_never_allows_a_slice():
    limit = TimeShare(0.0)
    limit.add_step(1000.0)
    assert not limit.allows_slice


def test_a_share_of_one_allows_a_slice_after_every_step():
    limit = TimeShare(1.0)
    for _ in range(5):
        limit.add_step(0.01)
        assert limit.allows_slice
        limit.add_slice(5.0)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_work_that_is_always_ready_gets_its_share(share):
    limit = TimeShare(share)
    steps = slices = 0.0
    for _ in range(2000):
        limit.add_step(0.01)
        steps += 0.01
        if limit.allows_slice:
            limit.add_slice(0.02)
            slices += 0.02
    assert slices / (steps + slices) == pytest.approx(share, rel=0.02)


def test_an_hour_without_slices_is_no_credit_for_an_hour_of_them():
    limit = TimeShare(0.5)
    limit.add_step(3600.0)
    burst = 0.0
    while limit.allows_slice:
        limit.add_slice(0.1)
        burst += 0.1
    assert burst <= 1.2
