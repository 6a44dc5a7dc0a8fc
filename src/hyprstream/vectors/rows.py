"""Rows from outside to rows of a table: checked, numbered, in pieces of a good size."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from hyprstream.errors import InvalidRequestError
from hyprstream.vectors.table import MAX_DIM, stored_schema, vectors_of

_PIECE_BYTES = 8 << 20
"""At least so much is written, and searched, at once, where there is as much."""
_TEXTS = ("key", "text", "metadata")


def dim_of(schema: pa.Schema) -> int | None:
    """Return the length of the vectors in a column `embedding`; None where it is not fixed.

    Raises:
        InvalidRequestError: There is no such column, or it holds no vectors.
    """
    if schema.get_field_index("embedding") < 0:
        raise InvalidRequestError(
            f"there is no column 'embedding' among {_shown(schema.names)}",
            hint="Name the vectors so; key, text and metadata may stand beside them.",
        )
    kind = schema.field("embedding").type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_list(kind) for is_list in lists) or not (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    ):
        raise InvalidRequestError(f"the column 'embedding' holds {kind} and no vectors")
    return kind.list_size if pa.types.is_fixed_size_list(kind) else None


def check_columns(schema: pa.Schema) -> None:
    """Refuse columns that a table has no place for.

    Raises:
        InvalidRequestError: There are some; names them.
    """
    unknown = sorted(set(schema.names) - {*_TEXTS, "embedding", "id", "norm"})
    if unknown or len(set(schema.names)) < len(schema.names):
        raise InvalidRequestError(
            f"a table of vectors has no columns {_shown(unknown or schema.names)}",
            hint="It has key, text, metadata and embedding; put the rest into metadata, as JSON.",
        )


def stored_batches(
    batches: Iterable[pa.RecordBatch], dim: int, first: int
) -> Iterator[pa.RecordBatch]:
    """Turn batches into what the files of a table hold, number their rows, join small ones.

    Args:
        batches: With a column `embedding`, and texts beside it.
        dim: Length of the vectors.
        first: Number of the first row.

    Raises:
        InvalidRequestError: A vector is missing, of another length, or holds something that
            is no number.
    """
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        stored = _stored(batch, dim, first)
        first += stored.num_rows
        waiting.append(stored)
        size += stored.nbytes
        if size >= _PIECE_BYTES:
            yield from _joined(waiting)
            waiting, size = [], 0
    if waiting:
        yield from _joined(waiting)


def joined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Join batches of a table's files to such of a good size."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(part.nbytes for part in waiting) >= _PIECE_BYTES:
            yield from _joined(waiting)
            waiting = []
    if waiting:
        yield from _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    if len(batches) == 1:
        yield batches[0]
        return
    table = pa.Table.from_batches(batches).combine_chunks()
    yield from table.to_batches()


def _stored(batch: pa.RecordBatch, dim: int, first: int) -> pa.RecordBatch:
    schema = stored_schema(dim)
    num_rows = batch.num_rows
    vectors = _vectors(batch.column("embedding"), schema.field("embedding").type)
    columns = {"id": pa.array(np.arange(first, first + num_rows)), "embedding": vectors}
    for name in _TEXTS:
        given = batch.schema.get_field_index(name) >= 0
        columns[name] = _text(batch.column(name)) if given else pa.nulls(num_rows, pa.utf8())
    columns["norm"] = pa.nulls(num_rows, pa.float32()).fill_null(0)
    stored = pa.record_batch([columns[name] for name in schema.names], schema=schema)
    matrix = vectors_of(stored)
    norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix))
    if not np.isfinite(norms).all():
        raise InvalidRequestError(
            "a vector holds something that is no number, or is too long for float32"
        )
    return stored.set_column(schema.names.index("norm"), schema.field("norm"), pa.array(norms))


def _vectors(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a column of vectors as the table keeps them; one that is such already as it is."""
    if column.null_count or column.flatten().null_count:
        raise InvalidRequestError("a vector, or a number of one, is missing")
    if column.type.equals(kind):
        return column
    try:
        if pa.types.is_fixed_size_list(column.type) and column.type.list_size == kind.list_size:
            flat = column.flatten().cast(pa.float32())
            return pa.FixedSizeListArray.from_arrays(flat, type=kind)
        lengths = np.unique(np.asarray(pa.compute.list_value_length(column)))
        if list(lengths) != [kind.list_size]:
            raise InvalidRequestError(
                f"vectors of {kind.list_size} numbers are wanted, some have {lengths[0]}"
                + (f" to {lengths[-1]}" if len(lengths) > 1 else "")
            )
        return pa.FixedSizeListArray.from_arrays(column.flatten().cast(pa.float32()), type=kind)
    except pa.ArrowException as error:
        raise InvalidRequestError(f"the column 'embedding' is of no use: {error}") from error


def _text(column: pa.Array) -> pa.Array:
    try:
        return column.cast(pa.utf8())
    except pa.ArrowException as error:
        raise InvalidRequestError(f"a column of texts holds {column.type}: {error}") from error


def check_dim(dim: int) -> None:
    """Refuse a length that no vector has.

    Raises:
        InvalidRequestError: It is out of range.
    """
    if not 1 <= dim <= MAX_DIM:
        raise InvalidRequestError(f"vectors of {dim} numbers", hint=f"Choose 1 to {MAX_DIM}.")


def _shown(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in list(names)[:8])
