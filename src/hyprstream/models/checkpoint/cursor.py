"""Reading a GGUF header from front to back, each length checked against the file first.

Sizes in a file are claims. A count is believed only if that many of the smallest possible
items still fit behind it, so that no loop and no list is larger than the file justifies.
Everything is little endian; what the values mean is the business of `gguf.py`.
"""

import struct

from hyprstream.errors import CorruptWeightsError
from hyprstream.models.checkpoint.mapping import MappedFile

MetadataValue = bool | int | float | str | list[object]
"""A metadata value in plain Python; arrays are lists of such values."""

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {  # value type -> struct code
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    10: "Q",
    11: "q",
    12: "d",
}
# Smallest number of bytes that an array element of this type takes.
_MIN_BYTES = {
    **{kind: struct.calcsize("<" + code) for kind, code in _NUMBERS.items()},
    _BOOL: 1,
    _STRING: 8,
    _ARRAY: 12,
}

_MAX_STRING_BYTES = 1 << 24  # chat templates are the longest in use, some 100 kB
_MAX_DEPTH = 4  # of arrays within arrays, which no published model uses at all
# Of all arrays of a file together, because one element may take 70 bytes of memory. The largest
# vocabularies (262,144 tokens) with their scores, types and merges stay below 1.5 million.
_MAX_ARRAY_ITEMS = 1 << 21


class Cursor:
    """A position in a mapped file that only moves forward.

    Attributes:
        place: What is being read; begins the message when it cannot be.
        offset: Next byte to read.
    """

    def __init__(self, mapped: MappedFile, offset: int) -> None:
        self.place = "the header"
        self.offset = offset
        self._mapped = mapped
        self._num_array_items = 0

    def damaged(self, problem: str) -> CorruptWeightsError:
        """Make the error that says what is wrong with the thing being read."""
        return CorruptWeightsError(self._mapped.file, f"{self.place} {problem}")

    def u32(self) -> int:
        """Read a 32-bit size."""
        return int.from_bytes(self._take(4), "little")

    def u64(self) -> int:
        """Read a 64-bit size."""
        return int.from_bytes(self._take(8), "little")

    def count(self, *, min_bytes: int, most: int) -> int:
        """Read how many items follow; each takes at least `min_bytes`.

        Raises:
            CorruptWeightsError: So many do not fit into the file, or it is more than `most`.
        """
        count = self.u64()
        if count > most or count * min_bytes > self._num_left:
            raise self.damaged(f"claims {count} items, {self._num_left} bytes are left")
        return count

    def text(self) -> str:
        """Read a string.

        Raises:
            CorruptWeightsError: It reaches beyond the file or is not UTF-8.
        """
        size_bytes = self.u64()
        if size_bytes > _MAX_STRING_BYTES:
            raise self.damaged(f"holds a string of {size_bytes} bytes")
        try:
            return str(self._take(size_bytes), "utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"is not UTF-8: {error.reason}") from error

    def value(self, kind: int) -> MetadataValue:
        """Read a metadata value of the type numbered `kind`.

        Raises:
            CorruptWeightsError: The type is unknown, or the value breaks its rules.
        """
        return self._value(kind, depth=0)

    @property
    def _num_left(self) -> int:
        return self._mapped.size_bytes - self.offset

    def _take(self, size_bytes: int) -> bytes:
        if size_bytes > self._num_left:
            raise self.damaged(f"needs {size_bytes} bytes, {self._num_left} are left")
        start = self.offset
        self.offset += size_bytes
        return self._mapped.data[start : self.offset]

    def _value(self, kind: int, depth: int) -> MetadataValue:
        if kind in _NUMBERS:
            number: int | float = self._numbers(_NUMBERS[kind], 1)[0]
            return number
        if kind == _BOOL:
            return self._bools(1)[0]
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(depth + 1)
        raise self.damaged(f"has the unknown value type {kind}")

    def _array(self, depth: int) -> list[object]:
        if depth > _MAX_DEPTH:
            raise self.damaged(f"nests arrays deeper than {_MAX_DEPTH}")
        kind = self.u32()
        if kind not in _MIN_BYTES:
            raise self.damaged(f"is an array of the unknown value type {kind}")
        count = self.count(
            min_bytes=_MIN_BYTES[kind], most=_MAX_ARRAY_ITEMS - self._num_array_items
        )
        self._num_array_items += count
        if kind in _NUMBERS:
            return list(self._numbers(_NUMBERS[kind], count))
        if kind == _BOOL:
            return list(self._bools(count))
        if kind == _STRING:
            return list(self._texts(count))
        return [self._array(depth + 1) for _ in range(count)]

    def _numbers(self, code: str, count: int) -> tuple[int | float, ...]:
        return struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize("<" + code)))

    def _bools(self, count: int) -> list[bool]:
        data = self._take(count)
        if data.strip(b"\0\1"):
            raise self.damaged("holds a boolean that is neither 0 nor 1")
        return [byte == 1 for byte in data]

    def _texts(self, count: int) -> list[str]:
        # Vocabularies have 100,000s of strings: this is `text`, written out for speed.
        texts = []
        data, offset, end = self._mapped.data, self.offset, self._mapped.size_bytes
        from_bytes = int.from_bytes
        try:
            for _ in range(count):
                start = offset + 8
                offset = start + from_bytes(data[offset:start], "little")
                if offset > end:
                    raise self.damaged("holds a string that ends beyond the file")
                texts.append(str(data[start:offset], "utf-8"))
        except UnicodeDecodeError as error:
            raise self.damaged(f"holds a string that is not UTF-8: {error.reason}") from error
        self.offset = offset
        return texts
