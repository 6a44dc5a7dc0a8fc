"""Flight without SQL, through pyarrow's own client."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from hyprstream.flight.metadata import Metadata
from hyprstream.flight.protocol import pack, unpack
from tests.runtime.warehouse.fakes import DIM, FakeBrain


@pytest.fixture
def client(port):
    with fl.connect(f"grpc://127.0.0.1:{port}") as opened:
        yield opened


def command(name, **arguments):
    return json.dumps({name: arguments}).encode()


def put(client, path, table):
    writer, reader = client.do_put(fl.FlightDescriptor.for_path(*path), table.schema)
    writer.write_table(table, max_chunksize=10)
    writer.done_writing()
    answer = json.loads(reader.read().to_pybytes())
    writer.close()
    return answer["rows"]


@pytest.fixture(scope="module")
def docs(port):
    with fl.connect(f"grpc://127.0.0.1:{port}") as client:
        texts = [f"text {i}" for i in range(30)]
        table = pa.table({"key": [str(i) for i in range(30)], "text": texts})
        assert put(client, ("vectors", "docs"), table) == 30
    return texts


def test_the_tickets(client, docs):
    def get(name, **arguments):
        return client.do_get(fl.Ticket(command(name, **arguments))).read_all()

    hits = get("SimilaritySearch", table="docs", text="text 5", k=2).to_pylist()
    assert (hits[0]["key"], len(hits)) == ("5", 2)
    vector = [float(number) for number in FakeBrain.vector("text 8")]
    assert get("SimilaritySearch", table="docs", vector=vector)["key"][0].as_py() == "8"
    found = get("GetEmbedding", table="docs", key="3").to_pylist()[0]
    np.testing.assert_array_equal(found["embedding"], FakeBrain.vector(docs[3]))
    everything = get("ListEmbeddings", table="docs")
    assert everything.num_rows == 30
    assert set(everything["model"].to_pylist()) == {"fake"}
    stats = get("EmbeddingStats").to_pylist()
    assert [(row["name"], row["dim"], row["num_rows"]) for row in stats] == [("docs", DIM, 30)]


def test_an_exchange_embeds_as_the_texts_come(client):
    descriptor = fl.FlightDescriptor.for_command(command("Embed", adapter="pirate"))
    writer, reader = client.do_exchange(descriptor)
    schema = pa.schema([("text", pa.utf8())])
    with writer:
        writer.begin(schema)
        for number, texts in enumerate((["a", "b"], ["c"])):
            batch = pa.record_batch([texts], schema=schema)
            writer.write_with_metadata(batch, f"batch {number}".encode())
            chunk = reader.read_chunk()
            assert chunk.app_metadata.to_pybytes() == f"batch {number}".encode()
            for text, vector in zip(texts, chunk.data["embedding"].to_pylist(), strict=True):
                np.testing.assert_array_equal(vector, FakeBrain.vector(text, "pirate"))
        writer.done_writing()
        assert reader.schema.metadata[b"hyprstream.adapter"] == b"pirate"


@pytest.mark.usefixtures("docs")
def test_what_there_is_can_be_listed_and_read(client):
    flights = {tuple(p.decode() for p in f.descriptor.path): f for f in client.list_flights()}
    assert ("main", "models") in flights
    assert ("vectors", "docs") in flights
    descriptor = fl.FlightDescriptor.for_path("models")
    info = client.get_flight_info(descriptor)
    rows = client.do_get(info.endpoints[0].ticket).read_all()
    assert rows.to_pylist() == [{"ref": "pypi://one", "size_bytes": 7}]
    assert client.get_schema(descriptor).schema == rows.schema == info.schema
    with pytest.raises(KeyError, match="expired"):
        client.do_get(info.endpoints[0].ticket)
    assert {action.type for action in client.list_actions()} >= {"CancelFlightInfo", "DropVectors"}


def test_tables_of_vectors_can_be_joined_and_dropped(client):
    table = pa.table({"text": ["x"]})
    for _ in range(3):
        put(client, ("vectors", "brief"), table)
    body = json.dumps({"table": "brief"}).encode()
    answer = next(client.do_action(fl.Action("CompactVectors", body)))
    assert json.loads(answer.body.to_pybytes()) == {"files": 3}
    list(client.do_action(fl.Action("DropVectors", body)))
    with pytest.raises(KeyError, match="brief"):
        client.do_get(fl.Ticket(command("ListEmbeddings", table="brief")))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b'{"Nothing": {}}', b'{"SimilaritySearch": 1}', command("GetEmbedding"),
     command("SimilaritySearch", table="docs", vector="x"), b"[" * 100_000,
     command("SimilaritySearch", table="../docs", text="x"),
     pack("TicketStatementQuery", statement_handle=b"x"),
     pack("CommandStatementQuery", query="SELECT 1")[:-2]],
)  # fmt: skip
@pytest.mark.usefixtures("docs")
def test_tickets_that_make_no_sense_get_a_status(client, content):
    with pytest.raises((pa.ArrowException, KeyError)) as caught:
        client.do_get(fl.Ticket(content)).read_all()
    assert "Traceback" not in str(caught.value)
    assert "internal error" not in str(caught.value)


# What ArrowDatabaseMetadata of the JDBC driver reads, by the type that it casts to.
JDBC = {
    "string_value": {0, 1, 2, 504, 513, 514, 529, 530, 531},
    "bool_value": {3, 500, 501, 502, 506, 515, 516, 518, 519, 520, 521, 523, 524, 527, 532, 536,
                   537, 539, 556, 563, 565, 566, 572, 573, 574, 575, 576},
    "bigint_value": {503, 505, 507, *range(541, 556), *range(557, 563)},
    "int32_bitmask": {522, 525, 526, 528, 533, 534, 535, 538, 540, 564, 567, 568, 569, 570, 571},
    "string_list": {508, 509, 510, 511, 512},
    "int32_to_int32_list_map": {517},
}  # fmt: skip


def test_every_fact_that_jdbc_reads_is_there_in_its_type(client):
    descriptor = fl.FlightDescriptor.for_command(pack("CommandGetSqlInfo", info=[]))
    info = client.get_flight_info(descriptor)
    table = client.do_get(info.endpoints[0].ticket).read_all()
    assert info.schema == table.schema
    union = table["value"].chunk(0)
    kinds = [union.type.field(code).name for code in union.type_codes.to_pylist()]
    found = dict(zip(table["info_name"].to_pylist(), kinds, strict=True))
    for kind, codes in JDBC.items():
        assert {code: found.get(code) for code in codes} == dict.fromkeys(codes, kind)
    assert Metadata.__doc__


def test_all_commands_about_the_database_answer_in_the_columns_they_announce(client):
    commands = [
        pack("CommandGetCatalogs"),
        pack("CommandGetDbSchemas", catalog="live"),
        pack("CommandGetTables", include_schema=True, table_types=["VIEW"]),
        pack("CommandGetTables", db_schema_filter_pattern="ma_n", table_name_filter_pattern="%"),
        pack("CommandGetTableTypes"),
        pack("CommandGetPrimaryKeys", table="x"),
        pack("CommandGetExportedKeys", table="x"),
        pack("CommandGetImportedKeys", table="x"),
        pack("CommandGetCrossReference", pk_table="x", fk_table="y"),
        pack("CommandGetXdbcTypeInfo", data_type=12),
    ]
    for content in commands:
        info = client.get_flight_info(fl.FlightDescriptor.for_command(content))
        table = client.do_get(info.endpoints[0].ticket).read_all()
        assert table.schema == info.schema, unpack(content)


def test_others_do_not_read_a_ticket(guarded_port):
    def options(key):
        return fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {key}".encode())])

    with fl.connect(f"grpc://127.0.0.1:{guarded_port}") as client:
        content = pack("CommandStatementQuery", query="SELECT 7 AS a")
        descriptor = fl.FlightDescriptor.for_command(content)
        info = client.get_flight_info(descriptor, options("writer-key"))
        ticket = info.endpoints[0].ticket
        with pytest.raises(KeyError):
            client.do_get(ticket, options("other-key"))
        rows = client.do_get(ticket, options("writer-key")).read_all()
        assert rows.to_pylist() == [{"a": 7}]
