import hashlib
from math import erf, exp, sqrt

import numpy as np
import pytest

from hyprstream.vdb.entropy import tables as t

# Streams name tables by number: these bytes may never change.
SHA256 = "81127eeec6bd5dcf275341e7ab9aab4dfa4cea104bc5d85a3bc750329e1ce1fb"


def test_the_tables_are_those_of_every_stream_ever_written():
    frequencies = t.tables().frequencies
    assert hashlib.sha256(frequencies.astype("<u2").tobytes()).hexdigest() == SHA256


def test_frequencies_of_every_table_add_up_and_leave_room_for_the_escape():
    frequencies = t.tables().frequencies
    assert frequencies.shape == (t.NUM_TABLES, t.ALPHABET)
    assert (frequencies.sum(axis=1) == t.TOTAL).all()
    assert (frequencies[:, t.ESCAPE] == 1).all()


def edges(value: int) -> tuple[float, float]:
    """What is rounded to a value of 0 or above."""
    return (-0.6, 0.6) if value == 0 else (value - 0.4, value + 0.6)


def gauss(x: float, scale: float) -> float:
    return erf(x / (scale * sqrt(2))) / 2


def laplace(x: float, scale: float) -> float:
    return (1 - exp(-abs(x) / scale)) / 2 * (1 if x > 0 else -1)


@pytest.mark.parametrize(("first", "share"), [(t.GAUSS, gauss), (t.LAPLACE, laplace)])
@pytest.mark.parametrize("value", [0, 1, 2, 5, 11])
def test_a_two_sided_table_is_the_distribution_rounded_with_the_dead_zone(first, share, value):
    for column, j in enumerate(t.SCALES):
        scale = 2 ** (j / 4)
        low, high = edges(value)
        expected = share(high, scale) - share(low, scale)
        for symbol in {t.ZERO + value, t.ZERO - value}:
            got = t.tables().frequencies[first + column, symbol] / t.TOTAL
            # Bins are sums over tenths; value 0 takes what rounding the others leaves.
            assert abs(got - expected) < (0.004 if value == 0 else 0.0008), (j, symbol)


@pytest.mark.parametrize("value", [0, 1, 2, 7, 40])
def test_a_geometric_table_has_the_mean_of_its_name(value):
    for column, j in enumerate(t.MEANS):
        mean = 2 ** (j / 4)
        expected = (mean / (1 + mean)) ** value / (1 + mean)
        got = t.tables().frequencies[t.GEOMETRIC + column, value] / t.TOTAL
        assert abs(got - expected) < (0.004 if value == 0 else 0.0004), j


def test_the_lookup_finds_the_symbol_of_each_remainder():
    known = t.tables()
    lookup = known.lookup[: t.NUM_TABLES * t.TOTAL].reshape(t.NUM_TABLES, t.TOTAL)
    for number in range(t.NUM_TABLES):
        symbols = lookup[number] >> 24
        np.testing.assert_array_equal(symbols, np.repeat(np.arange(256), known.frequencies[number]))
        places = np.arange(t.TOTAL) - known.starts[number][symbols]
        np.testing.assert_array_equal(lookup[number] >> 12 & 0xFFF, places)
        np.testing.assert_array_equal(
            (lookup[number] & 0xFFF) + 1, known.frequencies[number][symbols]
        )
