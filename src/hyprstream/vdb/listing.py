"""Tensors as bytes for a compressor: a table of contents in JSON, then indices and values.

    0  4  magic "HYRT"
    4  4  bytes of the table of contents, which follows: [{"name", "shape", "dtype", "active"}]
       .  for each tensor its indices, if not all elements are active, and its values

"active" is the number of active elements, or null for all. Indices are told by the
differences between them, as u64. Arrays are written byte by byte, all first bytes first,
which a compressor can do more with. All integers are little-endian.
"""

import json
import struct
from collections.abc import Mapping
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import CorruptGridError, InvalidAdapterError
from hyprstream.vdb.tensors import ARRAY_DTYPES, DType, SparseTensor

MAGIC = b"HYRT"

_PREFIX = struct.Struct("<4sI")
_MAX_SIZE = 1 << 40  # elements of one tensor, active or not


def write(tensors: Mapping[str, SparseTensor]) -> bytes:
    """Write tensors; `read` returns them."""
    table, arrays = [], []
    for name, tensor in tensors.items():
        active = None if tensor.indices is None else tensor.num_active
        entry = {"name": name, "shape": tensor.shape, "dtype": tensor.dtype, "active": active}
        table.append(entry)
        if tensor.indices is not None:
            arrays.append(np.diff(tensor.indices, prepend=0).astype("<u8"))
        arrays.append(tensor.values.astype(tensor.values.dtype.newbyteorder("<")))
    head = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    return b"".join([_PREFIX.pack(MAGIC, len(head)), head, *map(_transposed, arrays)])


def read(data: bytes) -> dict[str, SparseTensor]:
    """Read tensors; the bytes need not be sound.

    Raises:
        CorruptGridError: They are not what `write` wrote.
    """
    if len(data) < _PREFIX.size or data[:4] != MAGIC:
        raise CorruptGridError("it does not begin as a list of tensors")
    size = _PREFIX.unpack_from(data)[1]
    start = _PREFIX.size + size
    if start > len(data):
        raise CorruptGridError("its table of contents ends early")
    try:
        table = json.loads(data[_PREFIX.size : start])
        entries = [_entry(described) for described in table]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptGridError("its table of contents cannot be read") from error
    tensors: dict[str, SparseTensor] = {}
    arrays = _Arrays(data, start)
    for name, shape, dtype, active in entries:
        if name in tensors:
            raise CorruptGridError(f"two of its tensors are called {name!r}")
        tensors[name] = _tensor(arrays, shape, dtype, active)
    arrays.finish()
    return tensors


def _tensor(
    arrays: "_Arrays", shape: tuple[int, ...], dtype: DType, active: int | None
) -> SparseTensor:
    indices = None
    if active is not None:
        steps = arrays.take(active, np.dtype("<u8"))
        if steps.sum(dtype=np.float64) >= _MAX_SIZE:
            raise CorruptGridError("an index is outside its tensor")
        indices = np.cumsum(steps, dtype=np.int64)
    count = prod(shape) if active is None else active
    values = arrays.take(count, np.dtype(ARRAY_DTYPES[dtype]).newbyteorder("<"))
    try:
        return SparseTensor(
            shape=shape, dtype=dtype, values=values.astype(ARRAY_DTYPES[dtype]), indices=indices
        )
    except InvalidAdapterError as error:
        raise CorruptGridError(str(error)) from error


def _entry(described: Any) -> tuple[str, tuple[int, ...], DType, int | None]:
    name, dtype, active = described["name"], described["dtype"], described["active"]
    shape = tuple(_natural(n) for n in described["shape"])
    if not isinstance(name, str) or dtype not in ARRAY_DTYPES or len(shape) > 8:
        raise ValueError(described)
    if prod(shape) > _MAX_SIZE or (active is not None and _natural(active) > prod(shape)):
        raise ValueError(described)
    return name, shape, cast("DType", dtype), active


def _natural(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_SIZE:
        raise ValueError(value)
    return value


def _transposed(array: NDArray[Any]) -> bytes:
    return array.view(np.uint8).reshape(-1, array.dtype.itemsize).T.tobytes()


class _Arrays:
    """Takes arrays from the bytes after the table of contents."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data = data
        self._position = start

    def take(self, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        start = self._position
        self._position += count * dtype.itemsize
        if self._position > len(self._data):
            raise CorruptGridError("its values end early")
        part = np.frombuffer(self._data, np.uint8, count * dtype.itemsize, start)
        return np.ascontiguousarray(part.reshape(dtype.itemsize, count).T).reshape(-1).view(dtype)

    def finish(self) -> None:
        if self._position != len(self._data):
            raise CorruptGridError("it goes on after its last value")
