"""Codes groups of integers, each by its class, and counts, into one range coder.

*Groups* are vectors of integers around 0, whose classes are those of `classes.py`. *Counts*
are vectors of integers from 0 on, coded by a geometric table and plain low bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, log2

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import CorruptGridError
from hyprstream.vdb.entropy import tables as t
from hyprstream.vdb.entropy.classes import (
    LAST_DENSE,
    SPARSE,
    Classes,
    Counts,
    Integers,
    choose_classes,
    dense_table,
    shifted,
    two_sided_symbols,
)
from hyprstream.vdb.entropy.rans import decode_symbols, encode_symbols
from hyprstream.vdb.entropy.varints import VarintReader, write_signed, write_unsigned

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


def encode(groups: Sequence[Integers], counts: Sequence[Counts]) -> Coded:
    """Code groups and counts.

    Args:
        groups: Vectors of magnitudes up to `MAX_MAGNITUDE`.
        counts: Vectors of integers from 0 to 2^40.
    """
    writer = _Writer()
    classes = choose_classes(groups)
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


@dataclass(frozen=True, slots=True)
class _Vector:
    """Describe coded counts: how many, by which table, with how many low bits."""

    length: int
    table: int
    shift: int


@dataclass(frozen=True, slots=True)
class _Dense:
    """Describe the groups that are coded symbol by symbol, (D,) each.

    Attributes:
        starts: Where each lies among all integers.
        lengths: How many each has.
        tables: Table of each.
        shifts: Low bits of each integer that are coded as they are.
    """

    starts: Counts
    lengths: Counts
    tables: Classes
    shifts: Counts

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Yield length, place and shift of what can be laid down at once."""
        ends = np.cumsum(self.lengths)
        offsets = self.starts - (ends - self.lengths)
        breaks = (np.diff(offsets) != 0) | (self.shifts[1:] > 0) | (self.shifts[:-1] > 0)
        firsts = np.flatnonzero(np.concatenate([np.ones(min(1, len(ends)), np.bool_), breaks]))
        symbols = (ends - self.lengths)[firsts]
        lengths = np.diff(symbols, append=ends[-1:])
        columns = lengths, self.starts[firsts], self.shifts[firsts]
        yield from zip(*(column.tolist() for column in columns), strict=True)


def decode(
    coded: Coded, lengths: Sequence[int], count_limits: Sequence[int]
) -> tuple[Integers, list[Counts]]:
    """Return the groups, end to end, and the counts.

    Args:
        coded: What `encode` returned; it need not be sound.
        lengths: Length of each group.
        count_limits: The most that each count vector may have of integers.

    Raises:
        CorruptGridError: It is not what `encode` returned.
    """
    return _Reader(coded).read(np.array(lengths, np.int64), count_limits)


class _Reader:
    def __init__(self, coded: Coded) -> None:
        self._coded = coded
        self._side = VarintReader(coded.side)
        self._bits = np.unpackbits(np.frombuffer(coded.bits, np.uint8))
        self._num_bits = 0  # read
        self._symbols = np.empty(0, np.uint8)
        self._num_symbols = 0  # read
        self._places = np.empty(0, np.int64)  # of escapes
        self._escapes = np.empty(0, np.int64)

    def read(self, lengths: Counts, count_limits: Sequence[int]) -> tuple[Integers, list[Counts]]:
        classes = self._coded.classes
        if len(classes) != len(lengths) or ((classes > LAST_DENSE) & (classes < SPARSE)).any():
            raise CorruptGridError("it names a class of values that does not exist")
        dense = _describe(classes, lengths)
        sparse: list[_Vector] = []
        for number in _sparse_classes(classes):
            gaps = self._counts(int(lengths[classes == number].sum()))
            sparse += [gaps, self._counts(0, gaps.length)]
        others = [self._counts(limit) for limit in count_limits]
        self._decode_symbols(dense, [*sparse, *others])
        flat = np.zeros(int(lengths.sum()), np.int32)
        self._place_dense(flat, dense)
        self._place_sparse(flat, sparse, lengths)
        counts = [self._take(vector) for vector in others]
        if self._num_bits + 7 < len(self._bits):
            raise CorruptGridError("it has bits that belong to nothing")
        return flat, counts

    def _counts(self, limit: int, length: int | None = None) -> _Vector:
        length = self._side.one(limit) if length is None else length
        table = t.GEOMETRIC + self._side.one(len(t.MEANS) - 1)
        return _Vector(length, table, self._side.one(31))

    def _decode_symbols(self, dense: _Dense, vectors: Sequence[_Vector]) -> None:
        tables = [*dense.tables.tolist(), *(vector.table for vector in vectors)]
        lengths = [*dense.lengths.tolist(), *(vector.length for vector in vectors)]
        num_escapes = self._side.one(sum(lengths))
        self._escapes = self._side.signed(num_escapes)
        self._side.finish()
        numbers = np.repeat(np.array(tables, np.uint8), lengths)
        self._symbols = decode_symbols(self._coded.states, self._coded.words, numbers)
        self._places = np.flatnonzero(self._symbols == t.ESCAPE)
        if len(self._places) != num_escapes:
            raise CorruptGridError("its exceptional values are not those that it announces")
        is_count = self._places >= dense.lengths.sum()
        if np.abs(self._escapes[~is_count]).max(initial=0) > MAX_MAGNITUDE:
            raise CorruptGridError("it holds an integer that is too large")
        counts = self._escapes[is_count]
        if counts.min(initial=0) < 0 or counts.max(initial=0) >= 1 << 31:
            raise CorruptGridError("it counts fewer than none, or too many")

    def _next(self, out: Integers, *, is_signed: bool) -> None:
        """Write the values of as many symbols as there is room for."""
        start, self._num_symbols = self._num_symbols, self._num_symbols + len(out)
        symbols = self._symbols[start : self._num_symbols]
        # A symbol less 128, as the eight bits that it is.
        out[:] = (symbols ^ t.ZERO).view(np.int8) if is_signed else symbols
        first, last = np.searchsorted(self._places, (start, self._num_symbols))
        out[self._places[first:last] - start] = self._escapes[first:last]

    def _take(self, vector: _Vector) -> Counts:
        """Return the next counts, their low bits joined."""
        values = np.empty(vector.length, np.int32)
        self._next(values, is_signed=False)
        wide = values.astype(np.int64) << vector.shift
        return wide + self._take_bits(vector.length, vector.shift)

    def _take_bits(self, length: int, num_bits: int) -> Counts:
        start = self._num_bits
        self._num_bits += length * num_bits
        if self._num_bits > len(self._bits):
            raise CorruptGridError("its plain bits end early")
        planes = self._bits[start : self._num_bits].reshape(num_bits, length).astype(np.int64)
        total = np.zeros(length, np.int64)
        for i, plane in enumerate(planes):
            total |= plane << i
        return total

    def _place_dense(self, flat: Integers, dense: _Dense) -> None:
        """Lay down the groups that are coded symbol by symbol."""
        for length, place, shift in dense.runs():
            out = flat[place : place + length]
            self._next(out, is_signed=True)
            if not shift:
                continue
            values = out.astype(np.int64) << shift
            values += self._take_bits(length, shift) - (1 << shift >> 1)
            if np.abs(values).max(initial=0) > MAX_MAGNITUDE:
                raise CorruptGridError("it holds an integer that is too large")
            out[:] = values

    def _place_sparse(self, flat: Integers, vectors: Sequence[_Vector], lengths: Counts) -> None:
        """Put in the few values of the groups of each sparse class."""
        classes = self._coded.classes
        starts = np.cumsum(lengths) - lengths
        for i, number in enumerate(_sparse_classes(classes)):
            gaps, magnitudes = vectors[2 * i : 2 * i + 2]
            zeros = self._take(gaps)
            values = self._take(magnitudes) + 1
            signs = self._take_bits(gaps.length, 1)
            chosen = classes == number
            ends = np.cumsum(lengths[chosen])
            # In floats, where a sum of whatever the bytes say does not overflow.
            if float(zeros.sum(dtype=np.float64)) + len(zeros) > ends[-1]:
                raise CorruptGridError("it holds a value outside its group")
            if values.max(initial=0) > MAX_MAGNITUDE:
                raise CorruptGridError("it holds an integer that is too large")
            positions = np.cumsum(zeros + 1) - 1
            group = np.searchsorted(ends, positions, side="right")
            offsets = starts[chosen] - (ends - lengths[chosen])
            flat[positions + offsets[group]] = np.where(signs, -values, values)


def _describe(classes: Classes, lengths: Counts) -> _Dense:
    chosen = (classes > 0) & (classes < SPARSE)
    by_class = [dense_table(max(1, number)) for number in range(SPARSE)]
    tables = np.array([table for table, _ in by_class], np.uint8)
    shifts = np.array([shift for _, shift in by_class], np.int64)
    numbers = classes[chosen]
    starts = np.cumsum(lengths) - lengths
    return _Dense(starts[chosen], lengths[chosen], tables[numbers], shifts[numbers])


def _sparse_classes(classes: Classes) -> list[int]:
    """Return the classes of groups with few values that are there, ascending."""
    return [int(number) for number in np.unique(classes[classes >= SPARSE])]
