"""How likely each symbol is: 97 fixed tables in three families, made by integer arithmetic.

A stream names tables by number, so every machine must have the same ones, for ever: no float
takes part, not even in exp. A test holds their hash. The families:

- `GAUSS` and `LAPLACE`, of scale 2^(j/4): a real number of that distribution, divided by the
  step and rounded with the dead zone of `vdb.learned` (0 below 0.6, 1 below 1.6, and so on);
- `GEOMETRIC`, of mean 2^(j/4): counts, as of zeros before the next value.

Wider distributions are coded by `groups.py` as symbols of these plus plain low bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, repeat
from math import isqrt

import numpy as np
from numpy.typing import NDArray

BITS = 12
TOTAL = 1 << BITS
"""What the frequencies of a table add up to."""

ALPHABET = 256
ESCAPE = 255
"""The symbol for a value that a table has no symbol for."""

ZERO = 128
"""The symbol of value 0 in the two-sided families; it is 0 in the geometric one."""

SCALES = range(-12, 13)
"""j of the two-sided families."""

MEANS = range(-30, 17)
"""j of the geometric family."""

GAUSS = 0
LAPLACE = GAUSS + len(SCALES)
GEOMETRIC = LAPLACE + len(SCALES)
"""Number of the first table of each family; the others follow in the order of j."""

NUM_TABLES = GEOMETRIC + len(MEANS)

NOTHING = NUM_TABLES
"""A table in the lookup only, of one certain symbol: it leaves a state as it is."""

_ONE = 1 << 64  # fixed point
_PARTS = 10  # a bin is measured at the middles of tenths of a step


@dataclass(frozen=True, slots=True)
class Tables:
    """All tables, as encoder and decoder want them.

    Attributes:
        frequencies: Of each symbol in each table, (NUM_TABLES, ALPHABET) uint32; 0 for
            symbols that a table does not have.
        starts: Sum of the frequencies of smaller symbols, likewise.
        lookup: One entry for each table and each of the TOTAL remainders, flat uint32:
            symbol << 24 | (remainder - start) << 12 | frequency - 1. `NOTHING` is the last.
        bits: -log2 of frequency / TOTAL, (NUM_TABLES, ALPHABET) float64; for symbols that a
            table does not have, that of the escape plus what its value may take. Only the
            encoder's choices use it.
    """

    frequencies: NDArray[np.uint32]
    starts: NDArray[np.uint32]
    lookup: NDArray[np.uint32]
    bits: NDArray[np.float64]


@cache
def tables() -> Tables:
    """Make the tables; 40 ms, once in a process."""
    rows = [
        *(_two_sided(_gauss_weights(j)) for j in SCALES),
        *(_two_sided(_laplace_weights(j)) for j in SCALES),
        *(_one_sided(_geometric_weights(j)) for j in MEANS),
    ]
    frequencies = np.array(rows, np.uint32)
    starts = np.cumsum(frequencies, axis=1, dtype=np.uint32) - frequencies
    flat = frequencies.reshape(-1)
    symbols = np.repeat(np.tile(np.arange(ALPHABET, dtype=np.uint32), NUM_TABLES), flat)
    remainders = np.arange(TOTAL, dtype=np.uint32)
    biases = np.tile(remainders, NUM_TABLES) - np.repeat(starts.reshape(-1), flat)
    packed = symbols << 24 | biases << 12 | (np.repeat(flat, flat) - 1)
    lookup = np.concatenate([packed, remainders << 12 | (TOTAL - 1)]).astype(np.uint32)
    escape_bits = 16 - np.log2(frequencies[:, ESCAPE:] / TOTAL)
    known = -np.log2(np.maximum(frequencies, 1) / TOTAL)
    bits = np.where(frequencies > 0, known, escape_bits)
    bits[:, ESCAPE:] = escape_bits
    for array in (frequencies, starts, lookup, bits):
        array.setflags(write=False)
    return Tables(frequencies, starts, lookup, bits)


def _exp(numerator: int, denominator: int) -> int:
    """Return exp(-numerator / denominator) in fixed point, by its series."""
    x = numerator * _ONE // denominator
    halvings = max(0, x.bit_length() - 64)
    x >>= halvings
    result = term = _ONE
    for i in range(1, 40):
        term = term * x // _ONE // i
        result += term if i % 2 == 0 else -term
    for _ in range(halvings):
        result = result * result // _ONE
    return result


def _quarter_power(j: int) -> int:
    """Return 2^(j/4) in fixed point."""
    return isqrt(isqrt(1 << (4 * 64 + j)))


def _gauss_weights(j: int) -> Iterator[int]:
    """Yield the density at the middles of tenths, from 0 on."""
    variance = isqrt(1 << (2 * 64 + j))
    # Between neighbours at (i + 1/2) / 10 and (i + 3/2) / 10 it falls by q^(i + 1).
    q = _exp(_ONE, _PARTS * _PARTS * variance)
    falls = accumulate(repeat(q), lambda fall, q: fall * q // _ONE)
    return accumulate(falls, lambda weight, fall: weight * fall // _ONE, initial=_ONE)


def _laplace_weights(j: int) -> Iterator[int]:
    fall = _exp(_ONE, _PARTS * _quarter_power(j))
    return accumulate(repeat(fall), lambda weight, fall: weight * fall // _ONE, initial=_ONE)


def _geometric_weights(j: int) -> Iterator[int]:
    mean = _quarter_power(j)
    fall = mean * _ONE // (mean + _ONE)
    return accumulate(repeat(fall), lambda weight, fall: weight * fall // _ONE, initial=_ONE)


def _two_sided(weights: Iterator[int]) -> list[int]:
    """Turn weights of tenths into frequencies; the bins are (-0.6, 0.6), [0.6, 1.6), ..."""
    zero = 2 * sum(next(weights) for _ in range(6))
    bins = [sum(next(weights) for _ in range(_PARTS)) for _ in range(ESCAPE - 1 - ZERO)]
    whole = zero + 2 * sum(bins)
    kept = [max(1, _share(weight, whole)) for weight in _head(bins, whole)]
    row = [0] * ALPHABET
    for value, frequency in enumerate(kept, start=1):
        row[ZERO - value] = row[ZERO + value] = frequency
    return _filled(row, ZERO)


def _one_sided(weights: Iterator[int]) -> list[int]:
    bins = [next(weights) for _ in range(ESCAPE)]
    kept = [max(1, _share(weight, sum(bins))) for weight in _head(bins, sum(bins))]
    return _filled([*kept, *[0] * (ALPHABET - len(kept))], 0)


def _head(bins: list[int], whole: int) -> list[int]:
    """Leave out the tail of bins that are not worth a symbol; keep the first two always."""
    return [w for i, w in enumerate(bins) if i < 2 or 2 * w * TOTAL >= whole]


def _share(weight: int, whole: int) -> int:
    return (2 * weight * TOTAL + whole) // (2 * whole)


def _filled(row: list[int], zero: int) -> list[int]:
    """Give the escape one unit, and value 0 what the others leave."""
    row[ESCAPE] = 1
    row[zero] = 0
    row[zero] = TOTAL - sum(row)
    assert row[zero] > 0
    return row
