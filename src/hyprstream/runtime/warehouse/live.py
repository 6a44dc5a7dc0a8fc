"""What the program has, as Arrow tables: copies of the moment in which they are asked for."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from hyprstream.catalog.catalog import Catalog
from hyprstream.errors import CorruptStoreError
from hyprstream.refs import AdapterName
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.warehouse.runs import events, training_runs
from hyprstream.vectors.store import VectorStore
from hyprstream.vectors.table import VectorTable

Source = Callable[[], pa.Table]

_TEXT, _NUMBER, _TIME = pa.utf8(), pa.int64(), pa.timestamp("us", tz="UTC")
_REAL, _FLAG = pa.float64(), pa.bool_()
_MODELS = pa.schema(
    [("ref", _TEXT), ("state", _TEXT), ("size_bytes", _NUMBER), ("fetched_at", _TIME)]
)
_ADAPTERS = pa.schema(
    [
        *(("name", _TEXT), ("version", _TEXT), ("moved_at", _TIME), ("base", _TEXT)),
        *(("codec", _TEXT), ("size_bytes", _NUMBER)),
    ]
)
_VERSIONS = pa.schema(
    [
        *(("adapter", _TEXT), ("version", _TEXT), ("parent", _TEXT), ("base", _TEXT)),
        *(("kinds", _TEXT), ("codec", _TEXT), ("size_bytes", _NUMBER), ("created_at", _TIME)),
        *(("metrics", _TEXT), ("made_by", _TEXT)),
    ]
)
_MOVES = pa.schema([("adapter", _TEXT), ("at", _TIME), ("action", _TEXT), ("version", _TEXT)])
_VECTOR_TABLES = pa.schema(
    [
        *(("name", _TEXT), ("dim", _NUMBER), ("num_rows", _NUMBER), ("size_bytes", _NUMBER)),
        *(("model", _TEXT), ("adapter", _TEXT), ("version", _TEXT), ("pooling", _TEXT)),
        *(("num_indexed", _NUMBER), ("recall", _REAL)),
    ]
)
# Who knows the id of an answer may say what they think of it: it is shown as its hash.
_SOURCE = "CASE WHEN source LIKE 'sent-%' THEN source ELSE sha256(source) END"
_JOURNAL: Mapping[str, tuple[str, pa.Schema]] = {
    "samples": (
        f"SELECT id, adapter, {_SOURCE}, at, json_array_length(tokens), "  # noqa: S608 - constant
        "weight, held_out, fate FROM samples ORDER BY id",
        pa.schema(
            [
                *(("id", _NUMBER), ("adapter", _TEXT), ("source", _TEXT), ("at", _TIME)),
                *(("num_tokens", _NUMBER), ("weight", _REAL), ("held_out", _FLAG)),
                ("fate", _TEXT),
            ]
        ),
    ),
    "decisions": (
        "SELECT id, adapter, at, action, parent, version, reasons, numbers "
        "FROM decisions ORDER BY id",
        pa.schema(
            [
                *(("id", _NUMBER), ("adapter", _TEXT), ("at", _TIME), ("action", _TEXT)),
                *(("parent", _TEXT), ("version", _TEXT), ("reasons", _TEXT)),
                ("numbers", _TEXT),
            ]
        ),
    ),
    "requests": (
        "SELECT sha256(id), adapter, version, at, outcome, prompt_tokens, completion_tokens, "
        "feedback FROM requests ORDER BY at",
        pa.schema(
            [
                *(("id", _TEXT), ("adapter", _TEXT), ("version", _TEXT), ("at", _TIME)),
                *(("outcome", _TEXT), ("prompt_tokens", _NUMBER)),
                *(("completion_tokens", _NUMBER), ("feedback", _TEXT)),
            ]
        ),
    ),
}

# The column that says whose a row is; a table that is not here is shown to nobody limited.
_ADAPTER_IN: Mapping[str, str | None] = {
    "models": None,
    "adapters": "name",
    **dict.fromkeys(
        ("versions", "moves", "vector_tables", "training_runs", "events", *_JOURNAL), "adapter"
    ),
}


def live_tables(
    settings: Settings, catalog: Catalog, adapters: Adapters, vectors: VectorStore
) -> dict[str, Source]:
    """Return how to make each table of the schema `live.main`."""
    journal_file = settings.journal_file
    tables: dict[str, Source] = {
        "models": lambda: _models(catalog),
        "adapters": lambda: _adapters(adapters),
        "versions": lambda: _versions(adapters),
        "moves": lambda: _moves(adapters),
        "vector_tables": lambda: vector_tables(vectors),
        **{name: _from_journal(journal_file, name) for name in _JOURNAL},
    }
    tables["training_runs"] = training_runs(
        adapters, settings.training_folder, tables["versions"], tables["decisions"]
    )
    tables["events"] = events(tables["moves"], tables["decisions"], tables["requests"])
    return tables


def visible(sources: Mapping[str, Source], adapters: frozenset[AdapterName]) -> dict[str, Source]:
    """Return the same tables with the rows of some adapters alone.

    Rows that are of no adapter, such as requests to the base model, are not among them; models
    are of everybody.
    """
    return {name: _visible(source, _ADAPTER_IN[name], adapters) for name, source in sources.items()}


def _visible(source: Source, column: str | None, adapters: frozenset[AdapterName]) -> Source:
    if column is None:
        return source
    names = pa.array(sorted(adapters), pa.utf8())

    def read() -> pa.Table:
        table = source()
        return table.filter(pa.compute.is_in(table[column], names))

    return read


def vector_rows(table: VectorTable) -> pa.Table:
    """Return a table of vectors as statements see it: with what made them in every row."""
    rows = table.arrow().drop_columns(["norm"])
    indices = pa.array(np.zeros(len(table), np.int32))
    for name, text in table.stamp.plain().items():
        column = pa.DictionaryArray.from_arrays(indices, pa.array([text]))
        rows = rows.append_column(name, column)
    return rows


def vector_tables(vectors: VectorStore) -> pa.Table:
    """List the tables of vectors."""
    tables = [vectors.table(name) for name in vectors.names()]
    rows = [
        {
            "name": table.name,
            "dim": table.dim,
            "num_rows": len(table),
            "size_bytes": table.size_bytes,
            **table.stamp.plain(),
            "num_indexed": 0 if table.index is None else table.index.num_rows,
            "recall": None if table.index is None else table.index.recall,
        }
        for table in tables
    ]
    return pa.Table.from_pylist(rows, schema=_VECTOR_TABLES)


def _models(catalog: Catalog) -> pa.Table:
    rows = [
        {
            "ref": str(model.card.ref),
            "state": model.state,
            "size_bytes": sum(entry.size_bytes for entry in model.card.files),
            "fetched_at": model.fetched_at,
        }
        for model in catalog.list()
    ]
    return pa.Table.from_pylist(rows, schema=_MODELS)


def _adapters(adapters: Adapters) -> pa.Table:
    rows = [
        {
            "name": adapter.name,
            "version": adapter.version,
            "moved_at": adapter.moved_at,
            "base": adapter.base,
            "codec": adapter.codec,
            "size_bytes": adapter.size_bytes,
        }
        for adapter in adapters.list()
    ]
    return pa.Table.from_pylist(rows, schema=_ADAPTERS)


def _versions(adapters: Adapters) -> pa.Table:
    rows = []
    for adapter in adapters.list():
        moves = adapters.history(adapter.name)
        known = [move.version for move in moves], adapters.tags(adapter.name).values()
        for version in dict.fromkeys(chain(*known)):
            manifest = adapters.manifest(version)
            rows.append(
                {
                    "adapter": adapter.name,
                    "version": version,
                    "parent": manifest.parent,
                    "base": manifest.base.name,
                    "kinds": ", ".join(manifest.kinds),
                    "codec": manifest.codec,
                    "size_bytes": manifest.payload.size_bytes,
                    "created_at": manifest.created,
                    "metrics": json.dumps(dict(manifest.metrics)),
                    "made_by": manifest.provenance.get("made_by"),
                }
            )
    return pa.Table.from_pylist(rows, schema=_VERSIONS)


def _moves(adapters: Adapters) -> pa.Table:
    rows = [
        {"adapter": adapter.name, "at": move.at, "action": move.action, "version": move.version}
        for adapter in adapters.list()
        for move in adapters.history(adapter.name)
    ]
    return pa.Table.from_pylist(rows, schema=_MOVES)


def _from_journal(file: Path, name: str) -> Source:
    query, schema = _JOURNAL[name]

    def read() -> pa.Table:
        if not file.is_file():
            return schema.empty_table()
        try:
            # Beside the process that writes: a reader of its own, which changes nothing.
            journal = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
            try:
                journal.create_function("sha256", 1, _sha256, deterministic=True)
                rows = journal.execute(query).fetchall()
            finally:
                journal.close()
        except sqlite3.DatabaseError as error:
            raise CorruptStoreError(file, str(error)) from error
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
        arrays = [_array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)

    return read


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array([round(value * 1e6) for value in values], pa.int64()).cast(kind)
    if pa.types.is_boolean(kind):
        return pa.array([bool(value) for value in values], kind)
    return pa.array(values, kind)
