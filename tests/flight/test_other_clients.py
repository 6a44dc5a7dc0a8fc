"""Clients that are no relatives of ADBC: `flightsql-dbapi`, and one in JavaScript."""

import os
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

flightsql = pytest.importorskip("flightsql", reason="flightsql-dbapi is not installed")

_JAVASCRIPT = """
import { Client } from "@lancedb/arrow-flight-sql-client";
const [host, password] = process.argv.slice(2);
const client = await Client.connect({ host, username: "any", password, insecure: true });
const rows = async (text) => (await client.query(text)).collectToObjects();
const many = await rows("SELECT i, 'x' || i AS t FROM range(100000) r(i)");
const large = await rows(`SELECT ${JSON.stringify(Array(384).fill(0.5))}::FLOAT[384] AS v ` +
                         "FROM range(20000)");
let refused = "";
try { await rows("SELECT * FROM read_text('/etc/passwd')"); } catch (e) { refused = String(e); }
console.log(JSON.stringify([many.length, many[5].t, large.length, refused]));
process.exit(0);
"""


@pytest.fixture
def client(port):
    return flightsql.FlightSQLClient(host="127.0.0.1", port=int(port), insecure=True)


def rows(client, info):
    return client.do_get(info.endpoints[0].ticket).read_all()


def test_statements_and_what_the_database_has(client):
    assert rows(client, client.execute("SELECT 1 AS a")).to_pylist() == [{"a": 1}]
    client.execute_update("CREATE OR REPLACE TABLE second (a INT PRIMARY KEY, b TEXT)")
    assert client.execute_update("INSERT INTO second VALUES (1, 'x'), (2, 'y')") == 2
    info = client.get_tables(table_name_filter_pattern="second", include_schema=True)
    tables = rows(client, info)
    schema = pa.ipc.read_schema(pa.py_buffer(tables["table_schema"][0].as_py()))
    assert schema.names == ["a", "b"]
    keys = rows(client, client.get_primary_keys(flightsql.TableRef(table="second")))
    assert keys["column_name"].to_pylist() == ["a"]
    assert "hyprstream" in rows(client, client.get_catalogs())["catalog_name"].to_pylist()
    assert rows(client, client.get_sql_info([0, 1, 2])).num_rows == 3
    for info in (client.get_db_schemas(), client.get_table_types()):
        assert rows(client, info).num_rows


def test_prepared_statements_and_dbapi(client):
    with client.prepare("SELECT ? + 1 AS b") as prepared:
        binding = pa.record_batch([pa.array([41])], names=["0"])
        assert rows(client, prepared.execute(binding)).to_pylist() == [{"b": 42}]
    cursor = flightsql.connect(client).cursor()
    cursor.execute("SELECT i, embed('x' || i) AS v FROM range(3) r(i) ORDER BY i")
    assert [row[0] for row in cursor.fetchall()] == [0, 1, 2]


def test_the_client_in_javascript(guarded_port, tmp_path):
    folder = os.environ.get("HYPRSTREAM_TEST_JS")
    node = shutil.which("node")
    if not folder or not node:
        pytest.skip("HYPRSTREAM_TEST_JS names no folder with @lancedb/arrow-flight-sql-client")
    (tmp_path / "node_modules").symlink_to(Path(folder) / "node_modules")
    program = tmp_path / "client.mjs"
    program.write_text(_JAVASCRIPT)
    found = subprocess.run(
        [node, "--preserve-symlinks", program, f"127.0.0.1:{guarded_port}", "reader-key"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert '[100000,"x5",20000,"Error: 7 PERMISSION_DENIED' in found.stdout
    assert "Traceback" not in found.stdout
