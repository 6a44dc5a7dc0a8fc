"""Codes groups of integers, each by its class, and counts, into one range coder.

*Groups* are vectors of integers around 0, whose classes are those of `classes.py`. *Counts*
are vectors of integers from 0 on, coded by a geometric table and plain low bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

import numpy as np
from numpy.typing import NDArray

from hyprstream.vdb.entropy import tables as t
from hyprstream.vdb.entropy.classes import (
    SPARSE,
    Classes,
    Counts,
    Integers,
    choose_classes,
    dense_table,
    shifted,
    two_sided_symbols,
)
from hyprstream.vdb.entropy.rans import encode_symbols
from hyprstream.vdb.entropy.varints import write_signed, write_unsigned

MAX_MAGNITUDE = (1 << 24) - 1
"""The largest magnitude of a coded integer: float32 holds them all."""

_MAX_LANES = 4096
_LANE_BYTES = 512  # coded bytes for each lane, whose state costs 4


@dataclass(frozen=True, slots=True)
class Coded:
    """Groups and counts as bytes.

    Attributes:
        classes: How each group is coded, (G,) uint8.
        side: Integers that describe the rest, as varints.
        states: Final states of the lanes of the range coder.
        words: Its words.
        bits: What is not worth coding, packed.
    """

    classes: Classes
    side: bytes
    states: NDArray[np.uint32]
    words: NDArray[np.uint16]
    bits: bytes


def encode(
    groups: Sequence[Integers], counts: Sequence[Counts], predicted: Classes | None = None
) -> Coded:
    """Code groups and counts.

    Args:
        groups: Vectors of magnitudes up to `MAX_MAGNITUDE`.
        counts: Vectors of integers from 0 to 2^40.
        predicted: Class of each group that its own will be told from, (G,).
    """
    writer = _Writer()
    classes = choose_classes(groups, predicted)
    for group, number in zip(groups, classes.tolist(), strict=True):
        if 0 < number < SPARSE:
            writer.dense(group.astype(np.int64), number)
    for number in range(SPARSE, 256):
        chosen = [groups[i] for i in np.flatnonzero(classes == number).tolist()]
        if chosen:
            writer.sparse(np.concatenate(chosen).astype(np.int64))
    for count in counts:
        writer.counts(count)
    return writer.coded(classes)


class _Writer:
    """Collects symbols with their tables, escaped values, plain bits and descriptions."""

    def __init__(self) -> None:
        self._symbols: list[NDArray[np.uint8]] = []
        self._numbers: list[NDArray[np.uint8]] = []
        self._escapes: list[Counts] = []
        self._bits: list[NDArray[np.uint8]] = []
        self._sides: list[int] = []

    def dense(self, group: Counts, number: int) -> None:
        table, shift = dense_table(number)
        values, low = shifted(group, shift)
        self._add(values, two_sided_symbols(values), table)
        self._add_bits(low, shift)

    def sparse(self, values: Counts) -> None:
        positions = np.flatnonzero(values)
        used = values[positions]
        self.counts(np.diff(positions, prepend=-1) - 1)
        self.counts(np.abs(used) - 1, told=True)
        self._add_bits((used < 0).astype(np.int64), 1)

    def counts(self, values: Counts, *, told: bool = False) -> None:
        """Add counts; `told` if their number is known otherwise."""
        mean = float(values.mean()) if len(values) else 0.0
        shift = max(0, ceil(log2(mean) - t.MEANS[-1] / 4)) if mean else 0
        symbols = np.minimum(values >> shift, t.ESCAPE).astype(np.uint8)
        histogram = np.bincount(symbols, minlength=t.ALPHABET)
        table = t.GEOMETRIC + int((t.tables().bits[t.GEOMETRIC :] @ histogram).argmin())
        self._sides += [] if told else [len(values)]
        self._sides += [table - t.GEOMETRIC, shift]
        self._add(values >> shift, symbols, table)
        self._add_bits(values & ((1 << shift) - 1), shift)

    def _add(self, values: Counts, symbols: NDArray[np.uint8], table: int) -> None:
        escaped = t.tables().frequencies[table, symbols] == 0
        escaped |= symbols == t.ESCAPE
        if escaped.any():
            symbols = np.where(escaped, np.uint8(t.ESCAPE), symbols)
            self._escapes.append(values[escaped])
        self._symbols.append(symbols)
        self._numbers.append(np.full(len(symbols), table, np.uint8))

    def _add_bits(self, values: Counts, num_bits: int) -> None:
        self._bits += [(values >> i & 1).astype(np.uint8) for i in range(num_bits)]

    def coded(self, classes: Classes) -> Coded:
        symbols = np.concatenate([np.empty(0, np.uint8), *self._symbols])
        numbers = np.concatenate([np.empty(0, np.uint8), *self._numbers])
        escapes = np.concatenate([np.empty(0, np.int64), *self._escapes])
        bits = np.concatenate([np.empty(0, np.uint8), *self._bits])
        states, words = encode_symbols(symbols, numbers, _num_lanes(symbols, numbers))
        sides = np.array([*self._sides, len(escapes)], np.int64)
        side = write_unsigned(sides) + write_signed(escapes)
        return Coded(classes, side, states, words, np.packbits(bits).tobytes())


def _num_lanes(symbols: NDArray[np.uint8], numbers: NDArray[np.uint8]) -> int:
    """Return a power of two: more lanes are faster, and each costs 4 bytes."""
    if not len(symbols):
        return 0
    size_bytes = t.tables().bits[numbers, symbols].sum() / 8
    return 1 << int(log2(min(_MAX_LANES, max(4, size_bytes / _LANE_BYTES))))
