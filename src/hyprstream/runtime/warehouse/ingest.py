"""Rows that come in as Arrow: to tables of users, and to tables of vectors."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import pyarrow as pa

from hyprstream.errors import (
    InvalidRequestError,
    SqlNotAllowedError,
    TableExistsError,
    TableNotFoundError,
    UnsupportedError,
)
from hyprstream.runtime.warehouse.brain import Brain
from hyprstream.runtime.warehouse.database import CATALOG, LIVE
from hyprstream.runtime.warehouse.failures import translated
from hyprstream.runtime.warehouse.functions import vector_array
from hyprstream.vectors.rows import dim_of
from hyprstream.vectors.store import VectorStore
from hyprstream.vectors.table import Stamp

VECTORS = "vectors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """Where rows go.

    Attributes:
        table: Name of the table.
        schema: Its schema; `vectors` means a table of vectors.
        catalog: Its catalog; empty takes that of the schema.
        temporary: Let it end with the transaction's connection.
        if_missing: Make it, or fail.
        if_exists: Add to it, take its place, or fail.
        adapter: With which texts are embedded that come without vectors.
    """

    table: str
    schema: str = "main"
    catalog: str = ""
    temporary: bool = False
    if_missing: Literal["create", "fail"] = "create"
    if_exists: Literal["append", "replace", "fail"] = "append"
    adapter: str = ""


def ingest_vectors(
    vectors: VectorStore,
    brain: Brain | None,
    target: Ingest,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
) -> int:
    """Add rows to a table of vectors; texts that come without vectors are embedded.

    Returns:
        How many.

    Raises:
        HyprstreamError: The rows are of no use, or do not fit the table.
    """
    if target.temporary or target.if_exists == "replace":
        raise UnsupportedError("tables of vectors are neither temporary nor replaced at once")
    stamp = Stamp()
    if schema.get_field_index("embedding") < 0 and schema.get_field_index("text") >= 0:
        if brain is None:
            raise UnsupportedError("there is no model to embed texts with")
        stamp = brain.embed(["."], target.adapter).stamp
        batches = _embedded(brain, target.adapter, batches)
        schema = schema.append(pa.field("embedding", pa.list_(pa.float32(), brain.dim)))
    elif target.adapter:
        raise InvalidRequestError("an adapter embeds texts, and these rows have vectors")
    if not vectors.shows(stamp):
        raise SqlNotAllowedError(
            "a key for some adapters adds vectors that are made with one of these",
            hint="Send texts, and name the adapter.",
        )
    dim = dim_of(schema)
    if target.table in vectors.names():
        if target.if_exists == "fail":
            raise TableExistsError(f"table {target.table!r} exists")
    elif target.if_missing == "fail":
        raise TableNotFoundError(f"table {target.table!r} does not exist")
    elif dim is None:
        raise InvalidRequestError(
            "the length of the vectors is not known", hint="Send lists of a fixed size."
        )
    else:
        vectors.create(target.table, dim, stamp)
    return vectors.append(target.table, schema, batches, stamp)


def _embedded(
    brain: Brain, adapter: str, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        texts = batch.column("text").to_pylist()
        if None in texts:
            raise InvalidRequestError("a text is missing")
        column = vector_array(brain.embed(texts, adapter).vectors)
        yield batch.append_column("embedding", column)


def ingest_rows(cursor: Any, target: Ingest, reader: pa.RecordBatchReader) -> int:
    """Add rows to a table of users, inside the transaction of the cursor; columns match by name.

    Raises:
        HyprstreamError: The table is, or is not, there; or the rows do not fit it.
    """
    if target.catalog == LIVE or (target.catalog and target.catalog not in {CATALOG, "temp"}):
        raise SqlNotAllowedError(f"rows cannot be added to the catalog {target.catalog!r}")
    catalog = "temp" if target.temporary else CATALOG
    schema = "main" if target.temporary else target.schema
    name = ".".join('"' + part.replace('"', '""') + '"' for part in (catalog, schema, target.table))
    with translated():
        found = cursor.execute(
            "SELECT 1 FROM duckdb_tables() "
            "WHERE database_name = $1 AND schema_name = $2 AND table_name = $3",
            [catalog, schema, target.table],
        ).fetchall()
    if found and target.if_exists == "fail":
        raise TableExistsError(f"table {target.table!r} exists")
    if not found and target.if_missing == "fail":
        raise TableNotFoundError(f"table {target.table!r} does not exist")
    if found and target.if_exists == "append":
        statement = f"INSERT INTO {name} BY NAME SELECT * FROM hyprstream_incoming"  # noqa: S608
    else:
        begin = "CREATE OR REPLACE" if found else "CREATE"
        kind = "TEMP TABLE" if target.temporary else "TABLE"
        statement = f"{begin} {kind} {name} AS SELECT * FROM hyprstream_incoming"  # noqa: S608
    with translated():
        cursor.register("hyprstream_incoming", reader)
        try:
            count: int = cursor.execute(statement).fetchall()[0][0]
        finally:
            _unregister(cursor)
    return count


def _unregister(cursor: Any) -> None:
    try:
        cursor.unregister("hyprstream_incoming")
    except duckdb.Error:
        return  # of a transaction that has failed: its first error is the one to tell
