"""Statements that mean harm: refused, with an error of ours, whoever sends them."""

import pytest

from hyprstream.errors import HyprstreamError, InvalidSqlError, SqlNotAllowedError
from hyprstream.runtime.sql_config import SqlConfig
from hyprstream.runtime.warehouse.warehouse import Caller, Warehouse
from hyprstream.vectors.store import VectorStore
from tests.runtime.warehouse.fakes import FakeBrain

READER, WRITER = Caller("reader"), Caller("writer", can_write=True)

HOSTILE = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/*')",
    "SELECT * FROM read_parquet('https://example.org/x.parquet')",
    "SELECT * FROM read_json_auto('/etc/hostname')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM parquet_metadata('/tmp/x.parquet')",
    "COPY (SELECT 1) TO '/tmp/hyprstream_hostile.csv'",
    "COPY t FROM '/etc/passwd'",
    "EXPORT DATABASE '/tmp/hyprstream_hostile'",
    "IMPORT DATABASE '/tmp/hyprstream_hostile'",
    "ATTACH '/tmp/hyprstream_hostile.db' AS x",
    "ATTACH ':memory:' AS x",
    "DETACH hyprstream",
    "USE live",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET memory_limit = '100GB'",
    "RESET threads",
    "PRAGMA threads = 64",
    "PRAGMA database_list",
    "CALL enable_logging()",
    "CHECKPOINT",
    "VACUUM",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "DEALLOCATE p",
    "BEGIN",
    "COMMIT",
    "SELECT 1; SELECT 2",
    "",
    "-- nothing",
    "SELECT * FROM checkpoint()",
    "SELECT * FROM enable_logging(storage := 'file')",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM \"query\" /* */ ('SELECT 1')",
    "SELECT * FROM json_execute_serialized_sql('{}')",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM register_external_resource('a', 'b')",
    "SELECT * FROM add_grammar_extension('x')",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM pandas_scan(1)",
    "SELECT write_log('x')",
    "CREATE SECRET s (TYPE s3)",
    "CREATE TABLE live.main.models AS SELECT 1",
    "CREATE TABLE live . vectors . docs AS SELECT 1",
    'DROP VIEW "live".main.models',
    "DROP SCHEMA live.vectors",
    "INSERT INTO models VALUES ('x')",
    "DELETE FROM models",
    "UPDATE live.models SET ref = 'x'",
    "CREATE TABLE x AS SELECT * FROM read_text('/etc/passwd')",
    "CREATE VIEW x AS SELECT * FROM read_text('/etc/passwd')",
    "CREATE TABLE x AS SELECT * FROM checkpoint()",
    "EXPLAIN ANALYZE SELECT * FROM checkpoint()",
    "SELECT path FROM duckdb_databases()",
    "FROM duckdb_databases",
    "FROM system.main.duckdb_databases",
    "SELECT * FROM duckdb_settings()",
    "FROM pg_catalog.pg_settings",
    "SELECT current_setting('home_directory')",
    "SELECT getenv('HOME')",
    "FROM duckdb_extensions()",
    "FROM duckdb_live_query_metrics()",
    "FROM pragma_database_list()",
    "FROM query_table('models')",
    "SHOW ALL SETTINGS",
    "CREATE VIEW x AS FROM duckdb_databases",
    "CREATE MACRO x() AS current_setting('home_directory')",
    "CREATE TABLE x AS SELECT * FROM \"query\" /* /* */ */ ('SELECT 1')",
    "CREATE TABLE x AS SELECT * FROM query -- (\n ('SELECT 1')",
    'CREATE VIEW x AS SELECT * FROM U&"\\0063heckpoint"()',
    "COPY models TO STDOUT",
    "COPY (SELECT 1) TO '/dev/stdout'",
    "FROM read_duckdb('x.db')",
    "FROM parquet_schema('/etc/passwd')",
    "SELECT repeat('a', 10000000000)",
    "SELECT list(range) FROM range(1000000000000)",
    "SELECT string_agg(repeat('x', 1000000), '') FROM range(100000)",
    "SELECT range(1000000000000)",
    "SELECT count(*) FROM range(1000000000000) r(i) GROUP BY i % 1000000007",
    "SELECT * FROM range(1000000) a, range(1000000) b, range(1000000) c ORDER BY ALL",
    "WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r",
    "SELECT " + "NOT " * 20_000 + "true",
    "SELECT " + "[" * 5000 + "]" * 5000,
    "SELECT * FROM " + "(SELECT * FROM " * 2000 + "models" + ")" * 2000,
    "SELECT secret",  # a variable of Python
    "SELECT * FROM secret",
    "SELECT " + "(" * 3000 + "1" + ")" * 3000,
    "SELECT '\ud800'",
    "SELECT 1\x00",
    "SELECT " + "1," * 600_000 + "1",
]


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    import pyarrow as pa

    live = {"models": lambda: pa.table({"ref": ["a"]})}
    vectors = VectorStore(tmp_path_factory.mktemp("vectors"))
    bounds = SqlConfig(timeout_s=0.5, memory_bytes=128 << 20)
    with Warehouse(None, vectors, config=bounds, live=live, brain=FakeBrain()) as opened:
        yield opened


@pytest.mark.parametrize("caller", [READER, WRITER], ids=["reader", "writer"])
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_what_means_harm_is_refused(warehouse, number, caller):
    secret = [["of this process"]]  # noqa: F841
    with pytest.raises(HyprstreamError) as caught:
        warehouse.query(caller, HOSTILE[number])
    assert "Traceback" not in str(caught.value)
    assert warehouse.query(READER, "SELECT ref FROM models").to_pylist() == [{"ref": "a"}]


@pytest.mark.parametrize(
    "text",
    [
        "CREATE TABLE t (a INT)",
        "CREATE TEMP TABLE t (a INT)",
        "INSERT INTO kept VALUES (2)",
        "DELETE FROM kept",
        "UPDATE kept SET a = 3",
        "DROP TABLE kept",
        "ALTER TABLE kept ADD COLUMN b INT",
        "CREATE MACRO f(x) AS x",
        "CREATE SEQUENCE s",
        "EXPLAIN ANALYZE DELETE FROM kept",
        "explain ( analyze ) DELETE FROM kept",
        "WITH x AS (INSERT INTO kept VALUES (5) RETURNING a) SELECT * FROM x",
        "MERGE INTO kept USING (SELECT 1 AS a) s ON kept.a = s.a WHEN MATCHED THEN DELETE",
    ],
)
def test_who_may_not_write_does_not(warehouse, text):
    warehouse.start(WRITER, "CREATE OR REPLACE TABLE kept AS SELECT 1 AS a").count()
    with pytest.raises(SqlNotAllowedError):
        warehouse.query(READER, text)
    assert warehouse.query(READER, "SELECT a FROM kept").to_pylist() == [{"a": 1}]


def test_a_reader_of_a_transaction_changes_nothing_either(warehouse):
    open_ = warehouse.begin(READER)
    with pytest.raises(SqlNotAllowedError):
        warehouse.start(READER, "CREATE TABLE z (a INT)", transaction=open_)
    open_.end(commit=True)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 'query (x)', 'checkpoint' AS query",
        "CREATE OR REPLACE TABLE words AS SELECT 'the last query' AS query, 'checkpoint' AS b",
        "FROM information_schema.tables",
        "FROM pg_catalog.pg_database",
        "SHOW TABLES",
        "DESCRIBE models",
        "SUMMARIZE models",
    ],
)
def test_words_are_no_functions_and_harmless_ones_answer(warehouse, text):
    assert "'/" not in str(warehouse.query(WRITER, text).to_pylist())


def test_a_mistake_is_told_as_one(warehouse):
    with pytest.raises(InvalidSqlError, match="syntax error"):
        warehouse.query(READER, "SELEC 1")
    with pytest.raises(InvalidSqlError, match="nobody"):
        warehouse.query(READER, "SELECT nobody FROM models")
