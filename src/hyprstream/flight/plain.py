"""Flight without SQL: tickets, uploads and exchanges that are JSON and paths.

path ["NAME"], ["SCHEMA", "NAME"]                  rows of a table; DoPut adds to it
{"SimilaritySearch": {"table", "text" | "vector", "k", "exact"}}     the rows most like it
{"GetEmbedding": {"table", "key"}}                 one vector
{"ListEmbeddings": {"table"}}                      all rows of a table of vectors
{"EmbeddingStats": {}}                             the tables of vectors
{"Embed": {"adapter"}}                             DoExchange: texts in, vectors out
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from hyprstream.errors import (
    InvalidRequestError,
    NotFoundError,
    SqlNotAllowedError,
    UnsupportedError,
)
from hyprstream.runtime.warehouse.execution import MESSAGE_BYTES, pieces, row_bytes
from hyprstream.runtime.warehouse.functions import hits_of, vector_array
from hyprstream.runtime.warehouse.ingest import Ingest
from hyprstream.runtime.warehouse.live import vector_rows, vector_tables
from hyprstream.runtime.warehouse.warehouse import Caller, Warehouse

Arguments = Mapping[str, Any]
_MOST_TEXTS = 4096
_HITS = pa.schema(
    [
        *(("id", pa.int64()), ("key", pa.utf8()), ("text", pa.utf8())),
        *(("metadata", pa.utf8()), ("score", pa.float32())),
    ]
)


class Plain:
    """Answers what is not Flight SQL."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse

    def read_command(self, command: bytes) -> tuple[str, Arguments]:
        """Read `{"NAME": {arguments}}`.

        Raises:
            InvalidRequestError: It is nothing of the kind.
        """
        try:
            parsed = json.loads(command)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(
                "the command is neither of Flight SQL nor JSON",
                hint="See docs/reference/flight.md.",
            ) from error
        if not isinstance(parsed, dict) or len(parsed) != 1:
            raise InvalidRequestError('a command is {"NAME": {...}}')
        name, arguments = next(iter(parsed.items()))
        if not isinstance(arguments, dict):
            raise InvalidRequestError(f"the arguments of {name!r} are no object")
        return name, arguments

    def table(self, command: bytes) -> pa.Table:
        """Make the rows that a command asks for; those of tables are not copied."""
        name, arguments = self.read_command(command)
        if name == "SimilaritySearch":
            return self._search(arguments)
        if name == "GetEmbedding":
            return self._embedding(arguments)
        if name == "ListEmbeddings":
            return vector_rows(self._warehouse.vectors.table(_text(arguments, "table")))
        if name == "EmbeddingStats":
            return vector_tables(self._warehouse.vectors)
        raise NotFoundError(f"there is no command {name!r}", hint="See docs/reference/flight.md.")

    def put(self, caller: Caller, path: list[bytes], reader: Any) -> int:
        """Add rows to a table; return how many."""
        names = [part.decode(errors="replace") for part in path]
        if len(names) not in {1, 2}:
            raise NotFoundError("rows go to a path of one name, or of schema and name")
        schema = names[0] if len(names) == 2 else "main"
        target = Ingest(table=names[-1], schema=schema)
        return self._warehouse.ingest(caller, target, reader.to_reader())

    def exchange(self, command: bytes, reader: Any, writer: Any) -> None:
        """Embed texts, batch by batch, as they come; what came with a batch goes back with it."""
        name, arguments = self.read_command(command)
        brain = self._warehouse.brain
        if name != "Embed":
            raise NotFoundError(f"there is no exchange {name!r}", hint="There is Embed.")
        if brain is None:
            raise UnsupportedError("there is no model to embed with")
        adapter = _text(arguments, "adapter", "")
        stamp = brain.embed(["."], adapter).stamp
        told = {f"hyprstream.{key}": text for key, text in stamp.plain().items()}
        item = pa.field("item", pa.float32(), nullable=False)
        vector = pa.field("embedding", pa.list_(item, brain.dim), nullable=False)
        schema = pa.schema([pa.field("index", pa.int64(), nullable=False), vector], metadata=told)
        writer.begin(schema)
        first = 0
        for chunk in reader:
            if chunk.data is None:
                continue
            texts = _texts(chunk.data)
            for start in range(0, len(texts), _MOST_TEXTS):
                part = texts[start : start + _MOST_TEXTS]
                index = pa.array(np.arange(first, first + len(part)))
                vectors = vector_array(brain.embed(part, adapter).vectors)
                batches = list(pieces(pa.record_batch([index, vectors], schema=schema)))
                for batch in batches[:-1]:
                    writer.write_batch(batch)
                is_last = start + _MOST_TEXTS >= len(texts)
                if is_last and chunk.app_metadata is not None:
                    writer.write_with_metadata(batches[-1], chunk.app_metadata)
                else:
                    writer.write_batch(batches[-1])
                first += len(part)

    def _search(self, arguments: Arguments) -> pa.Table:
        name, k = _text(arguments, "table"), arguments.get("k", 10)
        if not isinstance(k, int) or isinstance(k, bool):
            raise InvalidRequestError(f"k is {k!r}")
        exact = arguments.get("exact", False)
        if not isinstance(exact, bool):
            raise InvalidRequestError(f"exact is {exact!r}")
        if "vector" in arguments:
            query, kind = json.dumps(arguments["vector"]), "FLOAT[]"
        else:
            query, kind = _text(arguments, "text"), "VARCHAR"
        vectors, brain = self._warehouse.vectors, self._warehouse.brain
        found = next(iter(hits_of(brain, vectors, name, [query], kind, k, exact=exact)))
        return pa.Table.from_pylist(found, schema=_HITS)

    def _embedding(self, arguments: Arguments) -> pa.Table:
        name, key = _text(arguments, "table"), _text(arguments, "key")
        table = self._warehouse.vectors.table(name)
        vector = table.vector(key)
        if vector is None:
            raise NotFoundError(f"table {name!r} has no vector with the key {key!r}")
        return pa.table({"key": [key], "embedding": vector_array(vector[None])})


def streamed_schema(table: pa.Table) -> pa.Schema:
    """Return the columns of `batches_of`: not all clients read dictionaries."""
    kinds = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    return pa.schema(kinds, metadata=table.schema.metadata)


def batches_of(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """Cut a table into batches of at most 2 MiB; only dictionaries are copied."""
    schema = streamed_schema(table)
    at_once = min(max(MESSAGE_BYTES // row_bytes(table.schema), 1), 65_536)
    for part in table.to_batches(max_chunksize=at_once):
        batch = part.cast(schema)
        yield from pieces(batch) if batch.nbytes > 2 * MESSAGE_BYTES else (batch,)


def require_write(caller: Caller) -> None:
    """Refuse who may not write.

    Raises:
        SqlNotAllowedError: The caller may not.
    """
    if not caller.can_write:
        raise SqlNotAllowedError("this needs leave to write", hint="Use a key with the scope.")


def drop_vectors(warehouse: Warehouse, caller: Caller, name: str) -> None:
    """Remove a table of vectors."""
    require_write(caller)
    warehouse.vectors.drop(name)
    warehouse.refresh(frozenset())


def compact_vectors(warehouse: Warehouse, caller: Caller, name: str) -> int:
    """Join the files of a table of vectors; return how many there were."""
    require_write(caller)
    num_files = warehouse.vectors.compact(name)
    warehouse.refresh(frozenset({name}))
    return num_files


def index_vectors(warehouse: Warehouse, caller: Caller, name: str) -> dict[str, Any]:
    """Index a table of vectors now; return what the index is."""
    require_write(caller)
    entry = warehouse.vectors.index(name)
    return {"rows": entry.num_rows, "recall": entry.recall, "size_bytes": entry.size_bytes}


def _texts(batch: pa.RecordBatch) -> list[str]:
    if batch.schema.get_field_index("text") < 0:
        raise InvalidRequestError("there is no column 'text'")
    texts: list[str] = batch.column("text").to_pylist()
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequestError("the column 'text' holds something that is no text")
    return texts


def _text(arguments: Arguments, name: str, default: str | None = None) -> str:
    value = arguments.get(name, default)
    if not isinstance(value, str):
        raise InvalidRequestError(f"the argument {name!r} is missing, or no text")
    return value
