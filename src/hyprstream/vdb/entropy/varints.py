"""Integers as bytes, few for small ones: LEB128, seven bits a byte, the lowest first."""

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import CorruptGridError

_MAX_BYTES = 9  # 63 bits


def write_unsigned(values: NDArray[np.int64]) -> bytes:
    """Write integers of 0 to 2^63 - 1."""
    rest = values.astype(np.uint64)
    columns, present = [], []
    for i in range(_MAX_BYTES):
        present.append(np.ones(len(rest), np.bool_) if i == 0 else rest > 0)
        columns.append((rest & 127).astype(np.uint8))
        rest = rest >> np.uint64(7)
        columns[-1] |= (rest > 0).astype(np.uint8) << 7
    chosen = np.stack(columns, axis=1)[np.stack(present, axis=1)]
    return bytes(chosen.tobytes())


def write_signed(values: NDArray[np.int64]) -> bytes:
    """Write integers of -2^62 to 2^62 - 1: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return write_unsigned((values << 1) ^ (values >> 63))


class VarintReader:
    """Takes integers from the front of bytes, which need not be sound."""

    def __init__(self, data: bytes) -> None:
        self._bytes = np.frombuffer(data, np.uint8)
        self._ends = np.flatnonzero(self._bytes < 128)
        self._num_read = 0  # integers

    def unsigned(self, count: int) -> NDArray[np.int64]:
        """Take `count` integers.

        Raises:
            CorruptGridError: There are not as many, or one has more than 63 bits.
        """
        ends = self._ends[self._num_read : self._num_read + count]
        if len(ends) < count:
            raise CorruptGridError("its table of contents ends early")
        start = self.position
        self._num_read += count
        if not count:
            return np.empty(0, np.int64)
        firsts = np.concatenate([[start], ends[:-1] + 1])
        if (ends - firsts).max() >= _MAX_BYTES:
            raise CorruptGridError("an integer in it is too large")
        part = self._bytes[start : self.position].astype(np.int64) & 127
        place = np.arange(start, self.position) - np.repeat(firsts, ends - firsts + 1)
        return np.add.reduceat(part << (7 * place), firsts - start)

    def signed(self, count: int) -> NDArray[np.int64]:
        """Take `count` integers that `write_signed` wrote.

        Raises:
            CorruptGridError: There are not as many, or one has more than 63 bits.
        """
        values = self.unsigned(count)
        return (values >> 1) ^ -(values & 1)

    def one(self, limit: int) -> int:
        """Take one integer.

        Raises:
            CorruptGridError: There is none, or it is above `limit`.
        """
        value = int(self.unsigned(1)[0])
        if value > limit:
            raise CorruptGridError(f"it says {value} where {limit} is the most")
        return value

    @property
    def position(self) -> int:
        """Number of bytes that were taken."""
        return int(self._ends[self._num_read - 1]) + 1 if self._num_read else 0

    def finish(self) -> None:
        """Make sure that nothing is left.

        Raises:
            CorruptGridError: Something is.
        """
        if self.position != len(self._bytes):
            raise CorruptGridError("its table of contents goes on after its end")
