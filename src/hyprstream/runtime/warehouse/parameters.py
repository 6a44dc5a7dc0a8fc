"""Parameters of statements: their types, and Arrow columns as values for them."""

import json
from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa

from hyprstream.errors import InvalidSqlError
from hyprstream.runtime.warehouse.statements import Parsed

Row = list[Any] | dict[str, Any]


def parameter_schema(cursor: Any, parsed: Parsed) -> pa.Schema:
    """Tell the types of parameters: those of a query, text for any other statement.

    DuckDB's interface for Python does not tell them; its serialized plan of a query does.
    Clients such as JDBC bind no value to a parameter without a type.
    """
    known: dict[str, str] = {}
    if parsed.parameters and parsed.kind == "SELECT":
        rows = cursor.execute("SELECT json_serialize_plan($1)", [parsed.text]).fetchall()
        waiting: list[Any] = [json.loads(rows[0][0])]
        while waiting:
            part = waiting.pop()
            if isinstance(part, dict):
                if part.get("type") == "VALUE_PARAMETER" and "identifier" in part:
                    known.setdefault(part["identifier"], part.get("return_type", {}).get("id"))
                waiting += part.values()
            elif isinstance(part, list):
                waiting += part
    types = [_arrow_type(cursor, known.get(name) or "VARCHAR") for name in parsed.parameters]
    return pa.schema(list(zip(parsed.parameters, types, strict=True)))


def parameter_rows(parsed: Parsed, table: pa.Table) -> list[Row | None]:
    """Turn bound columns into one set of values per run of the statement.

    Raises:
        InvalidSqlError: There are more or fewer than parameters.
    """
    names = parsed.parameters
    if not names:
        return [None]
    if table.num_columns != len(names):
        raise InvalidSqlError(
            f"the statement has {len(names)} parameters, {table.num_columns} are bound"
        )
    if not parsed.numbered and set(table.column_names) == set(names):
        table = table.select(list(names))
    rows = zip(*(_values(column) for column in table.columns), strict=True)
    if parsed.numbered:
        return [list(row) for row in rows]
    return [dict(zip(names, row, strict=True)) for row in rows]


def nulls(parsed: Parsed) -> Row | None:
    """Return values that a statement can be bound with when only its types are wanted."""
    if not parsed.parameters:
        return None
    return [None] * len(parsed.parameters) if parsed.numbered else dict.fromkeys(parsed.parameters)


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    """Convert a column; Python's times have neither nanoseconds nor all years: they go as text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(column.cast(kind.value_type))
    is_timestamp = pa.types.is_timestamp(kind)
    if not (is_timestamp or pa.types.is_time(kind)):
        values: Sequence[Any] = column.to_pylist()
        return values
    if is_timestamp and kind.tz:
        name = "TIMESTAMPTZ"
    else:
        name = ("TIMESTAMP" if is_timestamp else "TIME") + ("_NS" if kind.unit == "ns" else "")
    wanted = duckdb.sqltype(name)
    texts = column.cast(pa.string()).to_pylist()
    return [None if text is None else duckdb.Value(text, wanted) for text in texts]


def _arrow_type(cursor: Any, name: str) -> pa.DataType:
    try:
        found = cursor.sql(f"SELECT NULL::{name} AS x").limit(0).to_arrow_table()
    except duckdb.Error:
        return pa.utf8()
    return found.schema.field(0).type
