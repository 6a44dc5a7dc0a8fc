"""Reads what `groups.encode` made. The bytes need not be sound: the end is integers or an error."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hyprstream.errors import CorruptGridError
from hyprstream.vdb.entropy import tables as t
from hyprstream.vdb.entropy.classes import (
    LAST_DENSE,
    SPARSE,
    Classes,
    Counts,
    Integers,
    dense_table,
)
from hyprstream.vdb.entropy.groups import MAX_MAGNITUDE, Coded
from hyprstream.vdb.entropy.rans import decode_symbols
from hyprstream.vdb.entropy.varints import VarintReader


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
