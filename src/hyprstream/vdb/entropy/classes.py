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
Reals = NDArray[np.float64]

LAST_DENSE = 218
"""The last class of groups that are coded symbol by symbol."""

SPARSE = 220
"""The first class of groups with few values that are not 0."""

_DENSEST = 1 / 16  # share of values that are not 0 above which each symbol is coded
_ROUNDS = 3


def choose_classes(groups: Sequence[Integers], predicted: Classes | None = None) -> Classes:
    """Return the class of each group that takes the fewest bits, (G,).

    What a class itself takes is counted, too: it is told by its difference from the predicted
    one, for what occurs often little. Groups of few values so come to share classes.

    Args:
        groups: The groups.
        predicted: Class of each that is predicted, (G,); None: 0 is of all.
    """
    told_from = np.zeros(len(groups), np.uint8) if predicted is None else predicted
    classes = np.zeros(len(groups), np.uint8)
    dense: list[int] = []
    for i, group in enumerate(groups):
        share = np.count_nonzero(group) / max(1, len(group))
        if 0 < share < _DENSEST:
            classes[i] = _sparse_class(share)
        elif len(group):
            dense.append(i)
    if dense:
        candidates, bits = _candidates([groups[i] for i in dense])
        _settle(classes, np.array(dense), told_from, candidates, bits)
    return classes


def _sparse_class(share: float) -> int:
    return min(255, SPARSE + int(2 * (-log2(share) - 4)))


def _candidates(groups: Sequence[Integers]) -> tuple[Classes, Reals]:
    """Return for each group classes that may code it, and the bits of its values in each.

    Both are (G, 2 SCALES + 1). The last candidate is that of zeros.
    """
    width = len(t.SCALES)
    classes = np.zeros((len(groups), 2 * width + 1), np.uint8)
    bits = np.full(classes.shape, np.inf)
    known = t.tables().bits[: t.GEOMETRIC]
    columns = np.arange(width)
    for i, group in enumerate(groups):
        rms = sqrt(np.square(group, dtype=np.float64).mean())
        shift = max(0, ceil(log2(rms) - 3)) if rms else 0
        values = shifted(group.astype(np.int64), shift)[0]
        histogram = np.bincount(two_sided_symbols(values), minlength=t.ALPHABET)
        used = np.flatnonzero(histogram)
        taken = (known[:, used] @ histogram[used]).reshape(2, width)
        # A scale beyond the tables is brought into their last four.
        taken[:, : width - 4 if shift else 0] = np.inf
        bits[i, :-1] = taken.reshape(-1)
        bits[i, -1] = np.inf if rms else 0.0
        classes[i, :-1] = (1 + 2 * (columns + 4 * shift) + np.arange(2)[:, None]).reshape(-1)
    return classes, bits


def _settle(
    classes: Classes, chosen: Counts, predicted: Classes, candidates: Classes, bits: Reals
) -> None:
    """Choose among candidates in place, in rounds: the prices of classes follow the choices."""
    rows = np.arange(len(chosen))
    told = candidates - predicted[chosen, None]
    prices = np.zeros(256)
    for _ in range(_ROUNDS):
        best = (bits + prices[told]).argmin(axis=1)
        classes[chosen] = candidates[rows, best]
        counts = np.bincount(classes - predicted, minlength=256)
        prices = np.log2((len(classes) + 128) / (counts + 0.5))


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
