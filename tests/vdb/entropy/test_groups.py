from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import CorruptGridError
from hyprstream.vdb.entropy import tables as t
from hyprstream.vdb.entropy.groups import MAX_MAGNITUDE, encode
from hyprstream.vdb.entropy.reader import decode


def draw(seed: int, num_groups: int) -> list[np.ndarray]:
    """Groups of all kinds: zeros, few values, narrow, wide, with outliers."""
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(num_groups):
        length = int(rng.integers(0, 300))
        scale = 2.0 ** rng.uniform(-4, 23)
        values = rng.standard_t(rng.choice([2, 30]), length) * scale
        groups.append(np.rint(np.clip(values, -MAX_MAGNITUDE, MAX_MAGNITUDE)).astype(np.int32))
    return groups


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 12), st.integers(0, 3))
def test_groups_and_counts_come_back(seed, num_groups, num_counts):
    groups = draw(seed, num_groups)
    rng = np.random.default_rng(seed)
    counts = [rng.geometric(0.5 ** rng.uniform(0, 20), 50) - 1 for _ in range(num_counts)]
    coded = encode(groups, counts)
    flat, found = decode(coded, [len(group) for group in groups], [50] * num_counts)
    np.testing.assert_array_equal(flat, np.concatenate([np.empty(0), *groups]))
    assert flat.dtype == np.int32
    for got, expected in zip(found, counts, strict=True):
        np.testing.assert_array_equal(got, expected)


def size_bytes(groups: list[np.ndarray]) -> int:
    coded = encode(groups, [])
    return len(coded.side) + 4 * len(coded.states) + 2 * len(coded.words) + len(coded.bits)


def entropy_bytes(values: np.ndarray) -> float:
    """What the best code that knows how often each value occurs would take."""
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


@pytest.mark.parametrize("scale", [0.25, 0.5, 1, 2, 5, 11, 40])
@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_known_distributions_take_little_more_than_their_entropy(scale, family):
    rng = np.random.default_rng(0)
    values = getattr(rng, family)(0, scale, (100, 1000))
    rounded = (np.sign(values) * np.floor(np.abs(values) + 0.4)).astype(np.int32)
    assert size_bytes(list(rounded)) < 1.02 * entropy_bytes(rounded)


def test_a_random_mask_takes_little_more_than_its_entropy():
    rng = np.random.default_rng(0)
    mask = (rng.random((20, 5000)) < 0.01).astype(np.int32)  # all values are 1
    signs = mask.sum() / 8  # which cost a bit each, as for any values
    assert size_bytes(list(mask)) < 1.04 * entropy_bytes(mask) + signs


@pytest.fixture
def sound():
    groups = draw(5, 12)
    return groups, encode(groups, [np.arange(5)])


def changes(coded):
    """Everything that can be said wrongly, once each."""
    yield replace(coded, classes=coded.classes[:-1])
    yield replace(coded, classes=np.full_like(coded.classes, 219))
    yield replace(coded, bits=coded.bits[:-1])
    yield replace(coded, bits=coded.bits + b"\0")
    yield replace(coded, side=coded.side[:-1])
    yield replace(coded, side=coded.side + b"\0")
    yield replace(coded, words=coded.words[1:])
    yield replace(coded, states=coded.states[1:])


def test_what_contradicts_itself_is_an_error(sound):
    groups, coded = sound
    for changed in changes(coded):
        with pytest.raises(CorruptGridError):
            decode(changed, [len(group) for group in groups], [5])


def test_more_counts_than_allowed_are_an_error(sound):
    groups, coded = sound
    with pytest.raises(CorruptGridError):
        decode(coded, [len(group) for group in groups], [4])


@settings(deadline=None)
@given(st.data())
def test_other_side_bytes_or_classes_are_values_or_an_error(data):
    groups = draw(7, 6)
    coded = encode(groups, [np.arange(9)])
    side = data.draw(st.binary(max_size=30)) + coded.side[data.draw(st.integers(0, 30)) :]
    classes = coded.classes.copy()
    if data.draw(st.booleans()):
        classes[data.draw(st.integers(0, 5))] = data.draw(st.integers(0, 255))
    try:
        flat, _ = decode(
            replace(coded, side=side, classes=classes), [len(group) for group in groups], [9]
        )
    except CorruptGridError:
        return
    assert len(flat) == sum(len(group) for group in groups)


def test_an_escape_is_a_symbol_of_every_table():
    assert (t.tables().frequencies[:, t.ESCAPE] > 0).all()
