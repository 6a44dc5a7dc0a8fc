import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import CorruptGridError, InvalidAdapterError
from hyprstream.lora.mask import seeded
from hyprstream.vdb.entropy.masks import from_runs, seeded_indices, to_runs


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=200), st.integers(1, 4))
def test_a_mask_comes_back(active, block):
    mask = np.repeat(np.array(active, np.bool_), block)
    indices = np.flatnonzero(mask)
    divisor, gaps, runs = to_runs(indices, mask.size)
    np.testing.assert_array_equal(from_runs(divisor, gaps, runs, mask.size, mask.size), indices)


def test_whole_leaves_are_told_in_leaves():
    mask = np.repeat([False, True, True, False, True, False], 512)
    divisor, gaps, runs = to_runs(np.flatnonzero(mask), mask.size)
    assert divisor == 512
    assert (gaps.tolist(), runs.tolist()) == ([1, 0], [1, 0])


def counts(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("divisor", "gaps", "runs"),
    [
        (1, [0], [10]),  # 11 active ones, of 10
        (1, [0, 0], [0]),  # a run is missing
        (0, [0], [0]),
        (1, [2**62, 2**62], [2**62, 2**62]),  # whose sum overflows
        (1, [0], [6]),  # more than allowed
    ],
)
def test_runs_that_do_not_fit_are_an_error(divisor, gaps, runs):
    with pytest.raises(CorruptGridError):
        from_runs(divisor, counts(gaps), counts(runs), 10, 5)


def mixed(z: int) -> int:
    """SplitMix64's output function, in whole numbers."""
    top = (1 << 64) - 1
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & top
    z = (z ^ z >> 27) * 0x94D049BB133111EB & top
    return z ^ z >> 31


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_a_seed_draws_the_least_of_splitmix64(seed):
    golden = 0x9E3779B97F4A7C15
    keys = [mixed((golden * (i + 1) + seed) % 2**64) for i in range(1000)]
    expected = sorted(sorted(range(1000), key=keys.__getitem__)[:70])
    assert seeded_indices(seed, 1000, 70).tolist() == expected


def test_splitmix64_is_the_published_one():
    # The first outputs for seed 0, as in the test of the Java class SplittableRandom.
    assert mixed(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_masks_that_adapters_draw_by_seed_are_such_masks():
    """What `lora.mask.seeded` draws costs no bytes but the start of its stream."""
    mask = seeded((40, 25), 0.9, structure="unstructured", seed=3, name="layers.0/delta")
    start = int.from_bytes(hashlib.sha256(b"3:layers.0/delta").digest()[:8], "little")
    drawn = seeded_indices(start, 1000, len(mask.indices))
    np.testing.assert_array_equal(drawn, mask.indices.numpy())


def test_more_than_there_are_cannot_be_active():
    with pytest.raises(InvalidAdapterError):
        seeded_indices(0, 5, 6)
