"""Statements on what the machine has: functions, transactions, streams, limits."""

import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from hyprstream.errors import (
    DeadlineExceededError,
    HyprstreamError,
    IncompatibleVectorsError,
    InvalidSqlError,
    NotFoundError,
    QueryCancelledError,
    SqlNotAllowedError,
    TableExistsError,
    TableNotFoundError,
    UnavailableError,
)
from hyprstream.runtime.sql_config import SqlConfig
from hyprstream.runtime.warehouse.execution import MESSAGE_BYTES
from hyprstream.runtime.warehouse.ingest import Ingest
from hyprstream.runtime.warehouse.warehouse import Caller, Warehouse
from hyprstream.vectors.store import VectorStore
from tests.runtime.warehouse.fakes import DIM, FakeBrain

READER = Caller("reader")
WRITER = Caller("writer", can_write=True)


def reader_of(table: pa.Table) -> pa.RecordBatchReader:
    return table.to_reader(max_chunksize=3)


@pytest.fixture
def models():
    return [["a", 1]]


@pytest.fixture
def warehouse(tmp_path, models):
    def live():
        return pa.table({"ref": [row[0] for row in models], "size": [row[1] for row in models]})

    with Warehouse(
        None, VectorStore(tmp_path / "vectors"), live={"models": live}, brain=FakeBrain()
    ) as opened:
        yield opened


def rows(warehouse, text, caller=READER, values=None):
    return warehouse.query(caller, text, [values]).to_pylist()


def test_what_the_program_has_is_as_it_is_when_asked(warehouse, models):
    assert rows(warehouse, "SELECT * FROM models") == [{"ref": "a", "size": 1}]
    models.append(["b", 2])
    assert rows(warehouse, "SELECT sum(size) AS s FROM live.models") == [{"s": 3}]


def test_embed_gives_each_text_and_adapter_its_vector(warehouse):
    table = warehouse.query(
        READER,
        "SELECT t, embed(t) AS plain, embed(t, 'pirate') AS pirate "
        "FROM (VALUES ('x'), (NULL), ('y')) v(t) ORDER BY t",
    )
    assert table.schema.field("plain").type.list_size == DIM
    for row in table.to_pylist()[:2]:
        np.testing.assert_array_equal(row["plain"], FakeBrain.vector(row["t"]))
        np.testing.assert_array_equal(row["pirate"], FakeBrain.vector(row["t"], "pirate"))
    assert table.to_pylist()[2] == {"t": None, "plain": None, "pirate": None}
    vectors = np.array([row[k] for row in table.to_pylist()[:2] for k in ("plain", "pirate")])
    assert len(np.unique(vectors, axis=0)) == 4


def test_embed_is_called_with_many_texts_at_once(warehouse):
    warehouse.query(READER, "SELECT embed('t' || i) FROM range(5000) r(i)")
    assert warehouse.brain.num_calls <= 5


def test_the_error_of_a_function_keeps_its_branch(warehouse):
    with pytest.raises(NotFoundError, match="no adapter is called 'nobody'"):
        rows(warehouse, "SELECT embed('x', 'nobody')")


def test_similarity_and_generate(warehouse):
    found = rows(
        warehouse, "SELECT similarity([1, 0], [1, 1]) AS s, generate('hi', max_tokens := 9) AS g"
    )
    assert abs(found[0]["s"] - 0.5**0.5) < 1e-6
    assert found[0]["g"] == ":hi"


def test_search_finds_texts_and_vectors(warehouse):
    texts = [f"text {i}" for i in range(40)]
    given = pa.table({"key": [str(i) for i in range(40)], "text": texts})
    target = Ingest(table="docs", schema="vectors", adapter="poet")
    assert warehouse.ingest(WRITER, target, reader_of(given)) == 40
    hits = rows(warehouse, "SELECT * FROM search('docs', 'text 7', 3)")
    assert (hits[0]["id"], hits[0]["key"], hits[0]["text"]) == (7, "7", "text 7")
    assert abs(hits[0]["score"] - 1) < 1e-5
    matrix = np.stack([FakeBrain.vector(text, "poet") for text in texts])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    assert [hit["id"] for hit in hits] == list(np.argsort(-(matrix @ matrix[7]))[:3])
    vector = list(map(float, FakeBrain.vector("text 9", "poet")))
    by_vector = f"SELECT * FROM search('docs', {vector})"  # noqa: S608
    assert rows(warehouse, by_vector)[0]["id"] == 9
    seen = rows(warehouse, "SELECT count(*) AS n, min(adapter) AS a, min(model) AS m FROM docs")
    assert seen == [{"n": 40, "a": "poet", "m": "fake"}]
    with pytest.raises(HyprstreamError, match="'nobody'"):
        rows(warehouse, "SELECT * FROM search('nobody', 'x')")


def test_a_table_of_unknown_vectors_is_not_searched_by_text(warehouse):
    given = pa.table({"embedding": pa.array([[1.0] * DIM], pa.list_(pa.float32(), DIM))})
    warehouse.ingest(WRITER, Ingest(table="ours", schema="vectors"), reader_of(given))
    by_vector = f"SELECT id FROM search('ours', {[1.0] * DIM})"  # noqa: S608
    assert rows(warehouse, by_vector) == [{"id": 0}]
    with pytest.raises(HyprstreamError, match="not known how to embed"):
        rows(warehouse, "SELECT * FROM search('ours', 'x')")
    texts = pa.table({"text": ["x"]})
    with pytest.raises(IncompatibleVectorsError):
        warehouse.ingest(WRITER, Ingest(table="ours", schema="vectors"), reader_of(texts))


def test_tables_of_users_stay_and_belong_to_one_process(tmp_path):
    file, vectors = tmp_path / "sql" / "tables.duckdb", VectorStore(tmp_path / "vectors")
    with Warehouse(file, vectors) as first:
        first.start(WRITER, "CREATE TABLE t AS SELECT 7 AS a").count()
    with Warehouse(file, vectors) as again:
        assert rows(again, "SELECT * FROM t") == [{"a": 7}]


def test_rows_come_in_by_name_and_all_or_none(warehouse):
    table = pa.table({"b": ["x", "y"], "a": [1, 2]})
    assert warehouse.ingest(WRITER, Ingest(table="t"), reader_of(table)) == 2
    other = pa.table({"a": [3], "b": ["z"]})
    assert warehouse.ingest(WRITER, Ingest(table="t"), reader_of(other)) == 1
    assert [row["a"] for row in rows(warehouse, "SELECT * FROM t ORDER BY b")] == [1, 2, 3]
    broken = pa.table({"a": ["no number"] * 9})
    with pytest.raises(InvalidSqlError):
        warehouse.ingest(WRITER, Ingest(table="t"), reader_of(broken))
    with pytest.raises(TableExistsError):
        warehouse.ingest(WRITER, Ingest(table="t", if_exists="fail"), reader_of(table))
    with pytest.raises(TableNotFoundError):
        warehouse.ingest(WRITER, Ingest(table="u", if_missing="fail"), reader_of(table))
    warehouse.ingest(WRITER, Ingest(table="t", if_exists="replace"), reader_of(other))
    assert len(rows(warehouse, "SELECT * FROM t")) == 1
    with pytest.raises(SqlNotAllowedError):
        warehouse.ingest(READER, Ingest(table="t"), reader_of(table))


def test_a_transaction_is_seen_by_itself_until_it_is_committed(warehouse):
    open_ = warehouse.begin(WRITER)
    warehouse.start(WRITER, "CREATE TABLE t AS SELECT 1 AS a", transaction=open_).count()
    assert warehouse.start(WRITER, "FROM t", transaction=open_).table().num_rows == 1
    with pytest.raises(TableNotFoundError):
        rows(warehouse, "FROM t")
    open_.end(commit=True)
    assert rows(warehouse, "FROM t") == [{"a": 1}]


def test_a_second_statement_leaves_the_rows_of_the_first_whole(warehouse):
    open_ = warehouse.begin(READER)
    first = warehouse.start(READER, "FROM range(300000)", transaction=open_).batches()
    num_rows = next(first).num_rows
    assert warehouse.start(READER, "SELECT 1", transaction=open_).table().num_rows == 1
    assert num_rows + sum(batch.num_rows for batch in first) == 300_000
    open_.end(commit=False)


def test_rows_come_in_small_pieces_and_the_schema_is_told_before(warehouse):
    vector = f"{[1.0] * 64}::FLOAT[64]"
    text = f"SELECT i, repeat('x', 5000) AS t, {vector} AS v FROM range(5000) r(i)"  # noqa: S608
    execution = warehouse.start(READER, text)
    batches = list(execution.batches())
    assert max(batch.nbytes for batch in batches) <= 1.1 * MESSAGE_BYTES
    assert {batch.schema for batch in batches} == {execution.schema}
    assert sum(batch.num_rows for batch in batches) == 5000


def test_a_statement_runs_once_for_each_row_of_parameters(warehouse):
    execution = warehouse.start(READER, "SELECT ? + 1 AS a", [[1], [2], [41]])
    assert execution.table().column("a").to_pylist() == [2, 3, 42]
    described = warehouse.describe(READER, "SELECT $a::INT + 1 AS n, $b::TEXT AS t")
    assert described.parameters.names == ["a", "b"]
    assert described.schema.names == ["n", "t"]


SLOW = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range + b.range = 7"


def test_a_query_can_be_cancelled(warehouse):
    execution = warehouse.start(READER, SLOW)
    canceller = threading.Timer(0.3, execution.cancel)
    canceller.start()
    started = time.monotonic()
    with pytest.raises(QueryCancelledError):
        execution.table()
    assert time.monotonic() - started < 5
    canceller.join()


def test_time_is_limited(tmp_path):
    config = SqlConfig(timeout_s=0.5)
    with Warehouse(None, VectorStore(tmp_path), config=config) as limited:
        with pytest.raises(DeadlineExceededError):
            rows(limited, SLOW)
        assert rows(limited, "SELECT 1 AS a") == [{"a": 1}]


def test_memory_is_limited(tmp_path):
    config = SqlConfig(memory_bytes=64 << 20)
    with Warehouse(None, VectorStore(tmp_path), config=config) as limited:
        with pytest.raises(UnavailableError, match="Out of Memory"):
            rows(limited, "SELECT list(hash(i)) AS l FROM range(20000000) r(i)")
        assert rows(limited, "SELECT 1 AS a") == [{"a": 1}]


def test_without_a_model_the_functions_of_one_are_absent(tmp_path):
    with (
        Warehouse(None, VectorStore(tmp_path)) as bare,
        pytest.raises(NotFoundError, match="embed"),
    ):
        rows(bare, "SELECT embed('x')")
