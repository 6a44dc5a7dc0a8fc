"""Orders: pure, complete where they should be, and in the shares that were asked for."""

from collections import Counter
from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import InvalidSettingsError
from hyprstream.train.config import TrainConfig
from hyprstream.train.curriculum import (
    CurriculumConfig,
    by_competence,
    changed,
    competence,
    easy_first,
    order_of,
    with_replay,
)
from hyprstream.train.fit import batches, shuffled
from hyprstream.train.sample import Sample


def numbered(count: int, first: int = 0) -> list[Sample]:
    return [Sample((first + n, 1, 2), (False, True, True)) for n in range(count)]


HARD = st.lists(st.floats(0, 9), min_size=1, max_size=40)


@given(difficulties=HARD, seed=st.integers(0, 99))
def test_sorted_passes_have_each_sample_once_from_easy_to_hard(difficulties, seed):
    samples = numbered(len(difficulties))
    order = easy_first(difficulties)
    for run in islice(order(samples, seed), 3):
        assert sorted(s.token_ids for s in run) == [s.token_ids for s in samples]
        levels = [difficulties[s.token_ids[0]] for s in run]
        assert levels == sorted(levels)


@settings(deadline=None)
@given(difficulties=HARD, seed=st.integers(0, 99), start=st.floats(0.01, 1))
def test_competence_draws_from_the_easiest_that_are_open(difficulties, seed, start):
    samples = numbered(len(difficulties))
    config = CurriculumConfig(difficulty="length", start_share=start, passes=8)
    ranks = sorted(range(len(samples)), key=lambda i: difficulties[i])
    drawn = 0
    for run in islice(by_competence(difficulties, config)(samples, seed), 12):
        share = competence(drawn, 8 * len(samples), start)
        open_ones = set(ranks[: max(1, int(share * len(samples)))])
        assert {s.token_ids[0] for s in run} <= open_ones
        drawn += len(run)
    assert drawn == 12 * 32


def test_competence_rises_from_its_start_to_all():
    values = [competence(n, 200, 0.2) for n in range(0, 301, 10)]
    assert values[0] == pytest.approx(0.2)
    assert values == sorted(values)
    assert values[20:] == [1.0] * 11
    # By the paper's rule, as many new samples come in every step: squares rise by as much.
    steps = [b * b - a * a for a, b in pairwise(values[:21])]
    assert steps == pytest.approx([steps[0]] * 20)


@settings(deadline=None)
@given(share=st.floats(0.01, 0.9), seed=st.integers(0, 9), count=st.integers(1, 30))
def test_replay_has_its_share_and_keeps_the_order_of_the_new(share, seed, count):
    new, earlier = numbered(count), numbered(7, first=1000)
    mixed = with_replay(easy_first(list(range(count))), earlier, share)
    seen: Counter[bool] = Counter()
    for run in islice(mixed(new, seed), 20):
        old = [s.token_ids[0] for s in run if s.token_ids[0] >= 1000]
        assert [s for s in run if s.token_ids[0] < 1000] == new
        seen.update({True: len(old), False: len(new)})
    assert seen[True] == pytest.approx(seen[False] * share / (1 - share), abs=1)


def test_earlier_samples_take_turns():
    mixed = with_replay(shuffled, numbered(5, first=1000), 0.5)
    run = next(mixed(numbered(20), 0))
    old = Counter(s.token_ids[0] for s in run if s.token_ids[0] >= 1000)
    assert set(old.values()) == {4}
    assert with_replay(shuffled, [], 0.5) is shuffled
    assert with_replay(shuffled, numbered(2), 0.0) is shuffled


@pytest.mark.parametrize("name", ["shuffled", "sorted", "competence"])
def test_an_order_is_a_pure_function_of_its_seed(name):
    samples = numbered(50)
    config = CurriculumConfig(
        difficulty="none" if name == "shuffled" else "length",
        pacing="competence" if name == "shuffled" else name,
    )
    order = changed(
        with_replay(order_of(config, [1.0] * 50), numbered(9, first=100), 0.25),
        lambda sample, generator: Sample(
            (*sample.token_ids, int(torch.randint(9, (), generator=generator))),
            (*sample.counts, True),
        ),
    )
    settings_ = TrainConfig(batch_tokens=20, seed=5)
    one, same, other = (
        list(islice(batches(samples, config, order), 30))
        for config in (settings_, settings_, TrainConfig(batch_tokens=20, seed=6))
    )
    assert one == same
    assert one != other
    assert all(sum(s.num_computed for s in batch) <= 20 for batch in one)


@pytest.mark.parametrize("wrong", [{"start_share": 0}, {"passes": 0}, {"replay_share": 0.95}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidSettingsError):
        CurriculumConfig(**wrong)
