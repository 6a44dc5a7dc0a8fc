"""A key for some adapters sees nothing of any other, however it asks."""

import json

import pyarrow as pa
import pyarrow.flight as fl
import pytest

from hyprstream.flight.protocol import pack

# Every way to a row that statements have.
READS = [
    "SELECT name FROM adapters",
    "SELECT adapter FROM versions",
    "SELECT adapter FROM live.main.samples",
    "SELECT a.name FROM adapters a JOIN samples s ON s.adapter = a.name",
    "SELECT s.adapter FROM samples s LEFT JOIN adapters a ON true",
    "SELECT adapter FROM samples UNION SELECT name FROM adapters",
    "SELECT max(adapter) FROM samples GROUP BY adapter",
    "WITH RECURSIVE r AS (SELECT adapter FROM samples UNION SELECT adapter FROM r) SELECT * FROM r",
    "SELECT unnest(list(adapter)) FROM samples",
    "SELECT (SELECT first(name) FROM adapters WHERE name <> 'poet')",
    "SELECT adapter FROM docs_pirate",
    "SELECT adapter FROM vectors.docs_poet",
    "SELECT table_name FROM information_schema.tables WHERE table_schema = 'vectors'",
    "SELECT view_name FROM duckdb_views() WHERE schema_name = 'vectors'",
    "SELECT sql FROM duckdb_views() WHERE NOT internal",
    "SELECT text FROM search('docs_pirate', 'x', 5)",
    "SELECT text FROM search('docs_poet', 'x', 5)",
    "SELECT text FROM search('docs_base', [1,0,0,0,0,0,0,0], 5)",
    "SELECT embed('x', 'pirate')",
    "SELECT generate('x', adapter := 'pirate')",
    "SELECT * FROM secrets_of_all",
    "SELECT * FROM view_of_all",
    "SELECT * FROM summarize('samples')",
    "SUMMARIZE samples",
    "DESCRIBE samples",
]


def options(key):
    return fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {key}".encode())])


def ask(client, key, text):
    descriptor = fl.FlightDescriptor.for_command(pack("CommandStatementQuery", query=text))
    info = client.get_flight_info(descriptor, options(key))
    return client.do_get(info.endpoints[0].ticket, options(key)).read_all()


def put(client, key, command, table):
    descriptor = fl.FlightDescriptor.for_command(command)
    writer, reader = client.do_put(descriptor, table.schema, options(key))
    writer.write_table(table)
    writer.done_writing()
    reader.read()
    writer.close()


def ingest(table, adapter=""):
    options = {"adapter": adapter} if adapter else {}
    how = {"if_not_exist": 1, "if_exists": 2}
    return pack("CommandStatementIngest", table=table, schema="vectors", options=options,
                table_definition_options=how)  # fmt: skip


@pytest.fixture(scope="module")
def client(guarded_port):
    with fl.connect(f"grpc://127.0.0.1:{guarded_port}") as opened:
        for adapter in ("pirate", "poet", ""):
            table = pa.table({"text": [f"of {adapter}"]})
            put(opened, "writer-key", ingest(f"docs_{adapter or 'base'}", adapter), table)
        for text in ("CREATE TABLE secrets_of_all AS SELECT adapter FROM samples",
                     "CREATE VIEW view_of_all AS SELECT adapter FROM samples"):  # fmt: skip
            ask(opened, "writer-key", text)
        yield opened


@pytest.mark.parametrize("text", READS)
def test_no_statement_shows_what_is_of_others(client, text):
    try:
        rows = ask(client, "poet-key", text).to_pylist()
    except (pa.ArrowException, KeyError) as error:
        told = str(error).replace(text, "").replace("'pirate'", "").replace("docs_pirate", "")
        assert "pirate" not in told
    else:
        assert "pirate" not in json.dumps(rows, default=str)


def test_what_is_of_the_key_is_there_and_others_see_everything(client):
    assert ask(client, "poet-key", "SELECT name FROM adapters").to_pylist() == [{"name": "poet"}]
    assert ask(client, "poet-key", "SELECT id FROM samples")["id"].to_pylist() == [2]
    assert ask(client, "poet-key", "FROM search('docs_poet', 'x')").num_rows == 1
    assert ask(client, "poet-key", "SELECT embed('x', 'poet')").num_rows == 1
    assert ask(client, "reader-key", "SELECT id FROM samples").num_rows == 3
    assert ask(client, "reader-key", "FROM view_of_all").num_rows == 3
    flights = {tuple(f.descriptor.path) for f in client.list_flights(options=options("poet-key"))}
    shown = {path[1] for path in flights if path[0] == b"vectors"}
    assert b"docs_poet" in shown
    assert not shown & {b"docs_pirate", b"docs_base"}


def test_tickets_and_uploads_of_a_limited_key(client):
    def get(name, **arguments):
        ticket = fl.Ticket(json.dumps({name: arguments}).encode())
        return client.do_get(ticket, options("poets-ingest-key")).read_all()

    assert set(get("EmbeddingStats")["adapter"].to_pylist()) == {"poet"}
    with pytest.raises(KeyError, match="docs_base"):
        get("ListEmbeddings", table="docs_base")
    with pytest.raises(fl.FlightUnauthorizedError, match="some adapters"):
        put(client, "poets-ingest-key", ingest("mine"), pa.table({"text": ["x"]}))
    put(client, "poets-ingest-key", ingest("mine", "poet"), pa.table({"text": ["x"]}))
    assert ask(client, "poet-key", "FROM vectors.mine").num_rows == 1
    with pytest.raises(KeyError, match="pirate"):
        put(client, "poets-ingest-key", ingest("theirs", "pirate"), pa.table({"text": ["x"]}))


def test_tables_of_a_limited_key_are_its_own(client):
    ask(client, "poets-ingest-key", "CREATE TABLE notes AS SELECT 7 AS a")
    assert ask(client, "poets-ingest-key", "FROM notes")["a"].to_pylist() == [7]
    for key in ("poet-key", "reader-key"):
        with pytest.raises(KeyError):
            ask(client, key, "FROM notes")


def test_a_key_without_the_scope_is_not_let_in(client):
    with pytest.raises(fl.FlightUnauthorizedError, match="not for inference"):
        ask(client, "voter-key", "SELECT 1")
    with pytest.raises(fl.FlightUnauthorizedError, match="leave to write"):
        ask(client, "reader-key", "CREATE TABLE x AS SELECT 1")
