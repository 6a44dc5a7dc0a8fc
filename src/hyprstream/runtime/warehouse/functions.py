"""Functions of ours in SQL: `embed`, `generate`, `similarity` and `search`.

DuckDB calls with Arrow arrays of at most 2,048 rows, from threads of its own, and leaves
rows out that are NULL. A function without rows answers with an array without rows.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hyprstream.errors import IncompatibleVectorsError, InvalidRequestError
from hyprstream.runtime.warehouse.brain import Brain
from hyprstream.runtime.warehouse.database import LIVE, Function
from hyprstream.vectors.store import VectorStore

_HIT = "STRUCT(id BIGINT, key VARCHAR, text VARCHAR, metadata VARCHAR, score FLOAT)[]"
_HIT_TYPE = pa.list_(
    pa.struct(
        [
            *(("id", pa.int64()), ("key", pa.utf8()), ("text", pa.utf8())),
            *(("metadata", pa.utf8()), ("score", pa.float32())),
        ]
    )
)
_SIMILARITY = f"""CREATE MACRO {LIVE}.main.similarity(a, b) AS
    list_cosine_similarity(a::FLOAT[], b::FLOAT[])"""
_SEARCH = f"""CREATE MACRO {LIVE}.main.search(name, query, k := 10, exact := false)
    AS TABLE SELECT
    unnest(hyprstream_search(name, query::VARCHAR, typeof(query), k, exact), recursive := true)"""
_EMBED = f"""CREATE MACRO {LIVE}.main.embed(content) AS hyprstream_embed(content, ''),
    (content, adapter) AS hyprstream_embed(content, adapter)"""
_GENERATE = f"""CREATE MACRO {LIVE}.main.generate(prompt, adapter := '', max_tokens := 64) AS
    hyprstream_generate(prompt, adapter, max_tokens)"""


def functions_of(brain: Brain | None, vectors: VectorStore) -> list[Function]:
    """Return what a database gets before it is locked; without a model, `search` alone."""
    text = "VARCHAR"
    found = [
        Function(
            name="hyprstream_search",
            call=_searching(brain, vectors),
            takes=(text, text, text, "BIGINT", "BOOLEAN"),
            returns=_HIT,
        )
    ]
    if brain is not None:
        found += [
            Function(
                name="hyprstream_embed",
                call=_embedding(brain),
                takes=(text, text),
                returns=f"FLOAT[{brain.dim}]",
            ),
            Function(
                name="hyprstream_generate",
                call=_generating(brain),
                takes=(text, text, "BIGINT"),
                returns=text,
            ),
        ]
    return found


def macros_of(brain: Brain | None) -> list[str]:
    """Return the statements that give those functions their names."""
    return [_SIMILARITY, _SEARCH, *((_EMBED, _GENERATE) if brain is not None else ())]


def _embedding(brain: Brain) -> Callable[..., pa.Array]:
    def embed(contents: pa.ChunkedArray, adapters: pa.ChunkedArray) -> pa.Array:
        texts, names = contents.to_pylist(), adapters.to_pylist()
        vectors = np.empty((len(texts), brain.dim), np.float32)
        for adapter, rows in _grouped(names):
            vectors[rows] = brain.embed([texts[i] for i in rows], adapter).vectors
        return vector_array(vectors)

    return embed


def _generating(brain: Brain) -> Callable[..., pa.Array]:
    def generate(
        prompts: pa.ChunkedArray, adapters: pa.ChunkedArray, limits: pa.ChunkedArray
    ) -> pa.Array:
        texts = prompts.to_pylist()
        answers: list[str] = [""] * len(texts)
        how = zip(adapters.to_pylist(), limits.to_pylist(), strict=True)
        for (adapter, limit), rows in _grouped(list(how)):
            made = brain.generate([texts[i] for i in rows], adapter, limit)
            for i, answer in zip(rows, made, strict=True):
                answers[i] = answer
        return pa.array(answers, pa.utf8())

    return generate


def _searching(brain: Brain | None, vectors: VectorStore) -> Callable[..., pa.Array]:
    def search(
        names: pa.ChunkedArray,
        queries: pa.ChunkedArray,
        kinds: pa.ChunkedArray,
        ks: pa.ChunkedArray,
        exacts: pa.ChunkedArray,
    ) -> pa.Array:
        columns = [column.to_pylist() for column in (names, kinds, ks, exacts)]
        texts = queries.to_pylist()
        found: list[list[dict[str, Any]]] = [[] for _ in texts]
        for (name, kind, k, exact), rows in _grouped(list(zip(*columns, strict=True))):
            asked = [texts[i] for i in rows]
            found_here = hits_of(brain, vectors, name, asked, kind, k, exact=exact)
            for i, hits in zip(rows, found_here, strict=True):
                found[i] = hits
        return pa.array(found, _HIT_TYPE)

    return search


def hits_of(
    brain: Brain | None,
    vectors: VectorStore,
    name: str,
    queries: Sequence[str],
    kind: str,
    k: int,
    *,
    exact: bool,
) -> Iterator[list[dict[str, Any]]]:
    """Search a table for texts, or for vectors that are written as texts.

    Args:
        brain: Embeds texts; None where there is no model.
        vectors: The tables.
        name: Of the table.
        queries: What to search for.
        kind: SQL type that the queries had: a text is embedded, a list is a vector.
        k: How many rows to find for each.
        exact: Look at every row, also where there is an index.

    Raises:
        IncompatibleVectorsError: The table's vectors are not those of the model.
        InvalidRequestError: A query is of no use.
        HyprstreamError: There is no such table.
    """
    table = vectors.table(name)
    matrix = (
        _numbers(queries) if kind.endswith("]") else query_vectors(brain, vectors, name, queries)
    )
    hits = table.search(matrix, k, exact=exact)
    for ids, scores in zip(hits.ids, hits.scores, strict=True):
        rows = table.rows([int(i) for i in ids])
        yield [{**row, "score": float(score)} for row, score in zip(rows, scores, strict=True)]


def query_vectors(
    brain: Brain | None, vectors: VectorStore, name: str, texts: Sequence[str]
) -> NDArray[np.float32]:
    """Embed texts as the vectors of a table were made.

    Raises:
        IncompatibleVectorsError: They were made with something else than the model.
    """
    stamp = vectors.table(name).stamp
    if brain is None or not stamp.model:
        raise IncompatibleVectorsError(
            f"it is not known how to embed texts for table {name!r}",
            hint="Search with a vector, or let the server embed the texts of the table.",
        )
    adapter = f"{stamp.adapter}@{stamp.version}" if stamp.adapter else ""
    embedded = brain.embed(texts, adapter)
    if embedded.stamp != stamp:
        raise IncompatibleVectorsError(
            f"table {name!r} was made with {stamp.model}, the model is {embedded.stamp.model}",
            hint="Serve that model, or search with a vector.",
        )
    return embedded.vectors


def vector_array(vectors: NDArray[np.float32]) -> pa.Array:
    """Return vectors as an Arrow array, without a copy."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    item = pa.field("item", pa.float32(), nullable=False)
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(item, vectors.shape[1]))


def _numbers(texts: Sequence[str]) -> NDArray[np.float32]:
    try:
        return np.array([json.loads(text) for text in texts], np.float32)
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(
            f"{texts[0][:40]!r} is no vector to search with", hint="Give a list of numbers."
        ) from error


def _grouped(keys: Iterable[Any]) -> list[tuple[Any, list[int]]]:
    """Group the numbers of rows by what they have in common, in order of appearance."""
    groups: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return list(groups.items())
