"""All tensors of an adapter as one grid, and back.

The tensors are laid end to end, each from the next multiple of 512 on, and the number of an
element in that line is the key of its voxel. A leaf thus holds 512 consecutive elements of one
tensor, leaves are packed, and values lie in the order of the tensors. One grid, because the nodes
above the leaves take 304 KB for a single voxel already.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import CorruptGridError, InvalidAdapterError
from hyprstream.vdb.grid import SparseGrid, narrowed, widened
from hyprstream.vdb.nanovdb.keys import KEY_BITS
from hyprstream.vdb.tensors import ARRAY_DTYPES, DType, SparseTensor

TABLE = "tensors"
"""Name of the channel that holds the table of tensors, as JSON."""

_STEP = 512
_MAX_TABLE_BYTES = 16 << 20
_MAX_ELEMENTS = 1 << KEY_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One tensor of the table.

    Attributes:
        name: Its name.
        shape: Its dimensions.
        dtype: What its values are.
        base: Key of its first element.
        dense: Whether it was given without indices.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    base: int
    dense: bool

    @property
    def end(self) -> int:
        """Key behind its last element."""
        return self.base + prod(self.shape)


def pack_tensors(tensors: Mapping[str, SparseTensor], *, name: str = "") -> SparseGrid:
    """Make one grid of an adapter's tensors.

    The grid's values are in the dtype that all tensors share. If they differ it is float32, which
    holds each of them exactly.

    Raises:
        InvalidAdapterError: The tensors have more than 2^36 elements, or are too many.
    """
    dtypes = {tensor.dtype for tensor in tensors.values()}
    dtype: DType = dtypes.pop() if len(dtypes) == 1 else "float32"
    rows: list[_Row] = []
    keys: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    values: list[NDArray[Any]] = [np.zeros(0, ARRAY_DTYPES[dtype])]
    end = 0
    for key, tensor in tensors.items():
        base = -(-end // _STEP) * _STEP
        end = base + tensor.size
        _check_fits(end)
        indices = np.arange(tensor.size) if tensor.indices is None else tensor.indices
        keys.append(base + indices)
        same = tensor.dtype == dtype
        values.append(tensor.values if same else widened(tensor.values, tensor.dtype))
        rows.append(_Row(name=key, shape=tensor.shape, dtype=tensor.dtype, base=base,
                         dense=tensor.indices is None))  # fmt: skip
    table = json.dumps([asdict(row) for row in rows], separators=(",", ":")).encode()
    if len(table) > _MAX_TABLE_BYTES:
        raise InvalidAdapterError(
            f"the adapter's {len(rows)} tensors need a table of {len(table)} bytes",
            hint="Store it as several adapters.",
        )
    return SparseGrid.of_keys(
        np.concatenate(keys).view(np.uint64),
        np.concatenate(values),
        dtype,
        name=name,
        blind={TABLE: table},
    )


def unpack_tensors(grid: SparseGrid, file: object = "the grid") -> dict[str, SparseTensor]:
    """Return the tensors that a grid was made of, in their order, bit for bit.

    Values are views of the grid unless the tensors' dtypes differ.

    Raises:
        CorruptGridError: The grid was not made by `pack_tensors`, or not of these tensors.
    """
    table = grid.view.channels.get(TABLE)
    if table is None or table.nbytes > _MAX_TABLE_BYTES:
        raise CorruptGridError("it has no table of tensors, or far too long a one", file)
    rows = _rows(table.tobytes(), file)
    keys = grid.view.keys()
    if grid.view.tiles.any() or not (keys[1:] > keys[:-1]).all():
        raise CorruptGridError("its voxels are not elements of tensors in a line", file)
    starts = np.searchsorted(keys, np.array([row.base for row in rows], np.uint64))
    ends = np.searchsorted(keys, np.array([row.end for row in rows], np.uint64))
    if (ends - starts).sum() != len(keys):
        raise CorruptGridError("some of its voxels belong to no tensor", file)
    tensors = {}
    for row, start, end in zip(rows, starts.tolist(), ends.tolist(), strict=True):
        values = grid.values[start:end]
        if row.dtype != grid.dtype:
            if grid.dtype != "float32":
                raise CorruptGridError(f"{row.name!r} is not of the grid's dtype", file)
            values = narrowed(values, row.dtype)
        indices = (keys[start:end] - np.uint64(row.base)).astype(np.int64)
        if row.dense and len(indices) != prod(row.shape):
            raise CorruptGridError(f"elements of {row.name!r} are missing", file)
        tensors[row.name] = SparseTensor(
            shape=row.shape,
            dtype=row.dtype,
            values=values,
            indices=None if row.dense else indices,
        )
    return tensors


def _check_fits(num_elements: int) -> None:
    if num_elements > _MAX_ELEMENTS:
        raise InvalidAdapterError(
            f"the adapter has over 2^{KEY_BITS} elements", hint="Store it as several adapters."
        )


def _rows(table: bytes, file: object) -> Sequence[_Row]:
    """Read the table, which may be anything."""
    try:
        entries = json.loads(table)
    except (ValueError, RecursionError) as error:
        raise CorruptGridError("its table of tensors cannot be read", file) from error
    rows = [_row(entry, file) for entry in entries] if isinstance(entries, list) else None
    if rows is None or len({row.name for row in rows}) != len(rows):
        raise CorruptGridError("its table of tensors is not a list of different ones", file)
    end = 0
    for row in rows:
        if row.base != -(-end // _STEP) * _STEP or row.end > _MAX_ELEMENTS:
            raise CorruptGridError(f"{row.name!r} lies where it cannot", file)
        end = row.end
    return rows


def _row(entry: object, file: object) -> _Row:
    match entry:
        case {
            "name": str(name),
            "shape": list(shape),
            "dtype": "float32" | "float16" | "bfloat16" as dtype,
            "base": int(base),
            "dense": bool(dense),
        } if len(shape) <= 32 and all(type(n) is int and 0 <= n <= _MAX_ELEMENTS for n in shape):
            return _Row(name=name, shape=tuple(shape), dtype=dtype, base=base, dense=dense)
    raise CorruptGridError("its table of tensors has a row that is none", file)
