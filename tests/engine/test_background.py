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
