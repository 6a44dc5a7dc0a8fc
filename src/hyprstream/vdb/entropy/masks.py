"""Which elements of a tensor are active, as counts: lengths of runs, or a seed.

Run lengths of a random mask follow a geometric distribution, so the geometric tables code it
within about a percent of the least that is possible; those of a mask of whole leaves are
multiples of 512, whose common divisor is taken out. A mask that was drawn from a seed takes
no bytes but the seed.
"""

from math import gcd

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import CorruptGridError, InvalidAdapterError

Counts = NDArray[np.int64]


def to_runs(indices: Counts, size: int) -> tuple[int, Counts, Counts]:
    """Return the common divisor of all runs, and the lengths of inactive and active ones.

    Runs take turns, an inactive one of length 0 or more first; an inactive end is left out.
    Lengths are divided by the divisor, and all but the first inactive one are reduced by 1.
    """
    if not len(indices):
        return 1, np.empty(0, np.int64), np.empty(0, np.int64)
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    starts = indices[np.concatenate([[0], breaks])]
    ends = indices[np.concatenate([breaks - 1, [len(indices) - 1]])] + 1
    gaps = starts - np.concatenate([[0], ends[:-1]])
    divisor = gcd(size, int(np.gcd.reduce(gaps)), int(np.gcd.reduce(ends - starts)))
    gaps //= divisor
    gaps[1:] -= 1
    return divisor, gaps, (ends - starts) // divisor - 1


def from_runs(divisor: int, gaps: Counts, runs: Counts, size: int, max_active: int) -> Counts:
    """Return the indices that `to_runs` was given.

    Raises:
        CorruptGridError: The runs do not fit into a tensor of `size` elements, or make more
            than `max_active` of them active.
    """
    if len(gaps) != len(runs) or divisor < 1:
        raise CorruptGridError("the runs of a mask do not take turns")
    if not len(gaps):
        return np.empty(0, np.int64)
    # In floats, where a sum of whatever the bytes say does not overflow.
    length = gaps.sum(dtype=np.float64) + runs.sum(dtype=np.float64) + 2 * len(runs) - 1
    if divisor * length > size:
        raise CorruptGridError("a mask is longer than its tensor")
    if divisor * (runs.sum(dtype=np.float64) + len(runs)) > max_active:
        raise CorruptGridError(f"more than {max_active} elements would be active")
    lengths = (runs + 1) * divisor
    gaps = gaps.copy()
    gaps[1:] += 1
    starts = np.cumsum(gaps * divisor) + np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within


def seeded_indices(seed: int, size: int, num_active: int) -> Counts:
    """Draw the active elements of a tensor of `size` elements, the same on every machine.

    They are those whose indices, mixed with the seed by SplitMix64 (Steele et al., 2014),
    give the least numbers; of equal numbers, those that come first.

    Args:
        seed: 0 to 2^64 - 1.
        size: Elements of the tensor.
        num_active: How many are drawn.

    Raises:
        InvalidAdapterError: More elements are wanted than there are.
    """
    if not 0 <= num_active <= size:
        raise InvalidAdapterError(
            f"{num_active} of {size} elements cannot be active",
            hint="Choose a smaller number of active elements.",
        )
    golden = 0x9E3779B97F4A7C15
    with np.errstate(over="ignore"):
        z = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(golden) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.sort(np.argsort(z, kind="stable")[:num_active]).astype(np.int64)
