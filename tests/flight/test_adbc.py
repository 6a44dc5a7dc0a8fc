"""The client that most programs use, against a server as a process."""

import datetime
import decimal
import threading
import time

import adbc_driver_manager
import numpy as np
import pyarrow as pa
import pytest
from adbc_driver_flightsql import dbapi

from tests.runtime.warehouse.fakes import DIM, FakeBrain

COOKIES = "adbc.flight.sql.rpc.with_cookie_middleware"
HEADER = "adbc.flight.sql.authorization_header"


def connect(port, **options):
    return dbapi.connect(f"grpc://127.0.0.1:{port}", db_kwargs={COOKIES: "true", **options})


@pytest.fixture
def connection(port):
    with connect(port) as opened:
        yield opened


@pytest.fixture
def cursor(connection):
    with connection.cursor() as opened:
        yield opened


def one(cursor, text, values=None):
    cursor.execute(text, values)
    return cursor.fetchone()


def test_queries_parameters_and_rows(cursor):
    assert one(cursor, "SELECT 1 AS a, 'x' AS b") == (1, "x")
    assert one(cursor, "SELECT ? + 1, ? || '!'", (41, "x")) == (42, "x!")
    cursor.execute("SELECT i FROM range(5) r(i)")
    assert cursor.fetchmany(2) == [(0,), (1,)]
    assert cursor.fetchall() == [(2,), (3,), (4,)]
    cursor.execute("SELECT ref FROM models")
    assert cursor.fetch_df()["ref"].tolist() == ["pypi://one"]


def test_the_functions_of_the_model(cursor):
    cursor.execute("SELECT embed('x') AS a, embed('x', 'pirate') AS b, generate('p') AS g")
    row = cursor.fetch_arrow_table().to_pylist()[0]
    np.testing.assert_array_equal(row["a"], FakeBrain.vector("x"))
    np.testing.assert_array_equal(row["b"], FakeBrain.vector("x", "pirate"))
    assert row["g"] == ":p"


def test_changes_and_many_rows_of_parameters(connection, cursor):
    cursor.execute("CREATE OR REPLACE TABLE many (a INT, b TEXT)")
    cursor.executemany("INSERT INTO many VALUES (?, ?)", [(i, str(i)) for i in range(20)])
    connection.commit()
    assert one(cursor, "SELECT sum(a), count(b) FROM many") == (190, 20)
    with pytest.raises(dbapi.Error):
        cursor.executemany("INSERT INTO many VALUES (?, ?)", [("1", "x"), ("no number", "y")])
    connection.rollback()
    assert one(cursor, "SELECT count(*) FROM many") == (20,)


def test_transactions(connection, port):
    with connection.cursor() as cursor:
        cursor.execute("CREATE OR REPLACE TABLE trans (a INT)")
        connection.commit()
        cursor.execute("INSERT INTO trans VALUES (1)")
        cursor.adbc_ingest("trans", pa.table({"a": pa.array([2], pa.int32())}), mode="append")
        assert one(cursor, "SELECT count(*) FROM trans") == (2,)
        connection.rollback()
        assert one(cursor, "SELECT count(*) FROM trans") == (0,)
        cursor.execute("INSERT INTO trans VALUES (5)")
        connection.commit()
    with connect(port) as other, other.cursor() as cursor:
        assert one(cursor, "SELECT sum(a) FROM trans") == (5,)


def test_an_aborted_transaction_can_be_rolled_back(connection, cursor):
    with pytest.raises(dbapi.Error):
        cursor.execute("SELECT * FROM nobody")
    connection.rollback()
    assert one(cursor, "SELECT 1") == (1,)


def test_upload_and_every_mode(connection, cursor):
    table = pa.table({"a": [1, 2, 3], "b": ["x", "y", None]})
    assert cursor.adbc_ingest("up", table, mode="replace") in {3, -1}
    assert cursor.adbc_ingest("up", table.slice(0, 1), mode="append") in {1, -1}
    connection.commit()
    with pytest.raises(dbapi.Error, match="exists"):
        cursor.adbc_ingest("up", table, mode="create")
    connection.rollback()
    assert one(cursor, "SELECT count(*) FROM up") == (4,)


def test_vectors_come_in_and_are_searched(connection, cursor):
    texts = pa.table({"key": ["a", "b", "c"], "text": ["one", "two", "three"]})
    cursor.adbc_ingest("notes", texts, mode="create_append", db_schema_name="vectors")
    connection.commit()
    found = one(cursor, "SELECT key, text, score FROM search('notes', 'two', 1)")
    assert found[:2] == ("b", "two")
    assert abs(found[2] - 1) < 1e-5
    assert one(cursor, "SELECT count(*), min(model) FROM notes") == (3, "fake")


def test_what_the_database_has(connection, cursor):
    cursor.execute("CREATE OR REPLACE TABLE keyed (a INT PRIMARY KEY, b VARCHAR NOT NULL)")
    connection.commit()
    objects = connection.adbc_get_objects(depth="all").read_all().to_pylist()
    catalogs = {row["catalog_name"]: row["catalog_db_schemas"] for row in objects}
    assert set(catalogs) == {"hyprstream", "live"}
    tables = {
        table["table_name"]: table
        for schemas in catalogs.values()
        for schema in schemas
        for table in schema["db_schema_tables"]
    }
    assert [column["column_name"] for column in tables["models"]["table_columns"]] == [
        "ref",
        "size_bytes",
    ]
    schema = connection.adbc_get_table_schema("keyed")
    assert schema.field("a").type == pa.int32()
    assert not schema.field("b").nullable
    assert set(connection.adbc_get_table_types()) == {"BASE TABLE", "LOCAL TEMPORARY", "VIEW"}
    assert connection.adbc_get_info()["vendor_name"] == "hyprstream"
    assert connection.adbc_current_catalog == "hyprstream"
    assert connection.adbc_current_db_schema == "main"


TYPES = [
    ("TIMESTAMP_NS '2024-02-29 01:02:03.123456789'", pa.timestamp("ns"), 1709168523123456789),
    ("TIMESTAMPTZ '2024-02-29 01:02:03+00'", pa.timestamp("us", tz="UTC"), None),
    ("1234567890.123456789::DECIMAL(30, 9)", pa.decimal128(30, 9),
     decimal.Decimal("1234567890.123456789")),
    ("DATE '1234-05-06'", pa.date32(), datetime.date(1234, 5, 6)),
    ("TIME '01:02:03.5'", pa.time64("us"), datetime.time(1, 2, 3, 500_000)),
    ("'ab'::BLOB", pa.binary(), b"ab"),
    ("[1, NULL, 3]::BIGINT[]", pa.list_(pa.int64()), [1, None, 3]),
    ("{'a': 1, 'b': ['x']}", None, {"a": 1, "b": ["x"]}),
    ("MAP {'k': 1.5::DOUBLE}", None, [("k", 1.5)]),
    ("INTERVAL 3 MONTH", pa.month_day_nano_interval(), pa.MonthDayNano([3, 0, 0])),
    ("true", pa.bool_(), True),
    ("NULL::INT", pa.int32(), None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "value"), TYPES, ids=[row[0][:20] for row in TYPES])
def test_types_arrive_as_they_are(cursor, text, kind, value):
    cursor.execute(f"SELECT {text} AS x")
    column = cursor.fetch_arrow_table().column("x")
    if kind is not None:
        assert column.type == kind
    if value is not None:
        scalar = column[0]
        assert (
            scalar.value if isinstance(value, int) and value > 10**9 else scalar.as_py()
        ) == value


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (pa.array([1709168523123456789], pa.timestamp("ns")), "2024-02-29 01:02:03.123456789"),
        (pa.array([3_723_000_000_001], pa.time64("ns")), "01:02:03.000000001"),
        (pa.array([decimal.Decimal("1.50")]), "1.50"),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array([None], pa.int64()), None),
    ],
    ids=["timestamp", "time", "decimal", "dictionary", "null"],
)
def test_parameters_keep_what_they_are(cursor, array, text):
    cursor.execute("SELECT ?::VARCHAR AS x", pa.record_batch([array], names=["0"]))
    assert cursor.fetchone() == (text,)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("SELEC 1", dbapi.ProgrammingError),
        ("SELECT * FROM nobody", dbapi.ProgrammingError),
        ("SELECT 'x'::INT", dbapi.ProgrammingError),
        ("SELECT embed('x', 'nobody')", dbapi.ProgrammingError),
        ("SELECT * FROM read_text('/etc/passwd')", dbapi.ProgrammingError),
        ("SET threads = 1", dbapi.ProgrammingError),
    ],
)
def test_errors_are_of_the_right_class_and_tell_no_secrets(connection, cursor, text, kind):
    with pytest.raises(kind) as caught:
        one(cursor, text)
    assert "Traceback" not in str(caught.value)
    assert ".py" not in str(caught.value)
    connection.rollback()


SLOW = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range + b.range = 7"


def test_a_query_is_cancelled(cursor):
    cursor.execute(SLOW)
    canceller = threading.Timer(0.5, cursor.adbc_cancel)
    canceller.start()
    started = time.monotonic()
    with pytest.raises(adbc_driver_manager.Error, match=r"(?i)cancel"):
        cursor.fetchall()
    assert time.monotonic() - started < 10
    canceller.join()


def test_keys_and_scopes(guarded_port):
    with (
        connect(guarded_port, **{HEADER: "Bearer writer-key"}) as writer,
        writer.cursor() as cursor,
    ):
        cursor.execute("CREATE TABLE mine AS SELECT 1 AS a")
        writer.commit()
    with (
        connect(guarded_port, **{HEADER: "Bearer reader-key"}) as reader,
        reader.cursor() as cursor,
    ):
        assert one(cursor, "SELECT a FROM mine") == (1,)
        with pytest.raises(dbapi.ProgrammingError, match="leave to write"):
            cursor.execute("DELETE FROM mine")
        reader.rollback()
    for options, message in (({HEADER: "Bearer nobody"}, "not known"), ({}, "key is needed")):
        refused = dbapi.connect(f"grpc://127.0.0.1:{guarded_port}", options, autocommit=True)
        with refused, refused.cursor() as cursor, pytest.raises(dbapi.Error, match=message):
            cursor.execute("SELECT 1")


def test_a_password_starts_a_session(guarded_port):
    options = {"username": "anyone", "password": "writer-key"}
    with connect(guarded_port, **options) as opened, opened.cursor() as cursor:
        assert one(cursor, "SELECT 1") == (1,)
    with pytest.raises(dbapi.Error, match="not known"):
        connect(guarded_port, username="anyone", password="wrong")  # noqa: S106


def test_a_large_result_comes_in_messages_that_the_client_takes(cursor):
    vector = f"{[0.5] * 384}::FLOAT[384]"
    cursor.execute(f"SELECT i, {vector} AS v FROM range(70000) r(i)")  # noqa: S608
    num_rows = sum(batch.num_rows for batch in cursor.fetch_record_batch())
    assert num_rows == 70_000
    assert DIM < 384
