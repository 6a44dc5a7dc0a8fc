"""How a group of integers is coded: its class, one byte.

A group is a vector of integers around 0, for example one side of one component of a
low-rank pair. Its class is

- 0: all zeros.
- 1 to 218: symbol by symbol, by a two-sided table. 1 + 2 (j + 12) + family, where j is four
  times the binary logarithm of the scale. A scale above 2^3 is brought down to it: the value is
  coded as (value + 2^(s-1)) >> s by the table, and its s low bits as they are.
- 220 to 255: few values are not 0. All groups of one class are laid end to end; what is coded
  are the zeros before each other value, its magnitude and its sign. Class 220 + i has about
  one such value in 2^(4 + i/2).
"""

from collections.abc import Sequence
from math import ceil, log2, sqrt

import numpy as np
from numpy.typing import NDArray

from hyprstream.vdb.entropy import tables as t

Integers = NDArray[np.int32]
Counts = NDArray[np.int64]
Classes = NDArray[np.uint8]

LAST_DENSE = 218
"""The last class of groups that are coded symbol by symbol."""

SPARSE = 220
"""The first class of groups with few values that are not 0."""

_DENSEST = 1 / 16  # share of values that are not 0 above which each symbol is coded


def choose_classes(groups: Sequence[Integers]) -> Classes:
    """Return the class of each group that takes the fewest bits, (G,)."""
    classes = np.zeros(len(groups), np.uint8)
    for i, group in enumerate(groups):
        num_used = np.count_nonzero(group)
        if num_used:
            share = num_used / len(group)
            classes[i] = _sparse_class(share) if share < _DENSEST else _dense_class(group)
    return classes


def _sparse_class(share: float) -> int:
    return min(255, SPARSE + int(2 * (-log2(share) - 4)))


def _dense_class(group: Integers) -> int:
    rms = sqrt(np.square(group, dtype=np.float64).mean())
    shift = max(0, ceil(log2(rms) - 3))
    values = shifted(group.astype(np.int64), shift)[0]
    histogram = np.bincount(two_sided_symbols(values), minlength=t.ALPHABET)
    first = len(t.SCALES) - 4 if shift else 0
    bits = (t.tables().bits[: t.GEOMETRIC] @ histogram).reshape(2, -1)[:, first:]
    family, column = divmod(int(bits.argmin()), bits.shape[1])
    return int(1 + 2 * (first + column + 4 * shift) + family)


def dense_table(number: int) -> tuple[int, int]:
    """Return table and shift of a dense class."""
    place, family = divmod(number - 1, 2)
    shift = max(0, ceil((place - len(t.SCALES) + 1) / 4))
    return (t.GAUSS, t.LAPLACE)[family] + place - 4 * shift, shift


def shifted(values: Counts, shift: int) -> tuple[Counts, Counts]:
    """Split values into what a two-sided table codes and their low bits."""
    raised = values + (1 << shift >> 1)
    return raised >> shift, raised & ((1 << shift) - 1)


def two_sided_symbols(values: Counts) -> NDArray[np.uint8]:
    """Return the symbol of each value; the escape for those that are beyond all symbols."""
    symbols = values + t.ZERO
    return np.where((symbols < 0) | (symbols >= t.ESCAPE), t.ESCAPE, symbols).astype(np.uint8)
